"""Who acts in an evaluation: a policy with its memory, or a baseline that needs no training.

An actor has `start(slots)` at the first frame, `act(frame) -> actions`, and `keep(rows)` when some slots are done.
"""

import torch

from foundation.envs.doom_player import ScriptedPlayer
from foundation.rollout import on_cpu, take, to_environment


class PolicyActor:
    """Samples from a policy (or takes its mode), carrying one memory per environment."""

    def __init__(self, policy, codec, seed=0, greedy=False, device="cpu"):
        self.policy, self.codec, self.greedy, self.device = policy.eval(), codec, greedy, device
        self.seed = seed

    def start(self, slots):
        self.generator = torch.Generator().manual_seed(self.seed)
        self.state = self.policy.initial_state(len(slots), self.device)

    def keep(self, rows):
        """Goes on in these environments only."""
        self.state = take(self.state, rows)

    @torch.no_grad()
    def act(self, frame):
        """Frame of b environments -> b actions."""
        observation, first = torch.from_numpy(frame.observation), torch.from_numpy(frame.first)
        joint, _, self.state = self.policy.step(observation.to(self.device), first.to(self.device), self.state)
        joint = on_cpu(joint)
        return to_environment(self.codec, joint.mode() if self.greedy else joint.sample(self.generator))


class RandomActor:
    """Uniform over the joint classes: the policy that knows nothing."""

    def __init__(self, codec, seed=0):
        self.codec, self.seed = codec, seed

    def start(self, slots):
        self.generator = torch.Generator().manual_seed(self.seed)

    def keep(self, rows):
        pass

    def act(self, frame):
        size = (len(frame.first),)
        buttons = torch.randint(self.codec.n_buttons, size, generator=self.generator)
        camera = torch.randint(self.codec.n_camera, size, generator=self.generator)
        return to_environment(self.codec, torch.stack([buttons, camera], -1))


class NoopActor:
    """Presses nothing."""

    def __init__(self, codec):
        self.codec = codec

    def start(self, slots):
        pass

    def keep(self, rows):
        pass

    def act(self, frame):
        null = torch.tensor([0, self.codec.camera_null]).expand(len(frame.first), 2)
        return to_environment(self.codec, null)


class PlayerActor:
    """The scripted player, which reads the engine's state instead of the picture: what imitation could reach."""

    def __init__(self, seed=0, **style):
        self.seed, self.style = seed, style

    def start(self, slots):
        self.slots = slots
        self.players = [ScriptedPlayer(slot.environment, self.seed + slot.index, **self.style) for slot in slots]

    def keep(self, rows):
        self.slots, self.players = [self.slots[i] for i in rows], [self.players[i] for i in rows]

    def act(self, frame):
        return [self._act(*row) for row in zip(self.slots, self.players, frame.first, strict=True)]

    @staticmethod
    def _act(slot, player, first):
        if first:
            player.reset()
        return None if slot.done else player.act()  # a finished game has no state to read, and ignores the action
