"""PPO of a sequence policy on vectors, with the return it was asked for as its condition (cf. arXiv:2601.00167).

Whole episodes are played by sampling, then trained on in windows of the policy's context, each overlapping the one
before by half: a step is trained where at least half a context is before it, or its episode's start. The condition in
training is what was asked when acting; with the return that came instead, the probability ratio would not be one.
Old probabilities are those of the windows, in the first pass's minibatches, so the ratio starts at exactly 1. An
episode's final observation is a step of its own, with whose value a cut episode goes on.
"""

import numpy as np
import torch

from foundation.finetuning.episodes import stack_episodes
from foundation.finetuning.ppo import PPO
from foundation.losses.advantage import gae
from foundation.losses.value import explained_variance
from foundation.rollout import Episode, Passes
from pipelines.schema import ACTION, FINAL_OBSERVATION, MASK, OBSERVATION, REWARD, TERMINATED, TIMESTEP, TRUNCATED
from pipelines.trajectory_windows import EpisodeWindows, returns_of


class SequencePPO(PPO):
    """PPO whose minibatches are windows: no memory is carried, so the prior looks at the window too."""

    def __init__(self, policy, pretrained=None, condition="return", **options):
        super().__init__(policy, pretrained, **options)
        self.save_hyperparameters({"condition": condition})
        if policy.log_std is not None:
            policy.log_std.requires_grad_(True)

    def distribution(self, batch):
        latent, _ = self.policy.latent(batch)
        return latent, self.policy.distribution(latent)

    @torch.no_grad()
    def reference(self, batch, policy):
        return self.prior(batch)[0]

    @torch.no_grad()
    def look(self, batch):
        """(log-probability, value in the units of returns) of every step, [b t]."""
        latent, policy = self.distribution(batch)
        return policy.log_prob(batch[ACTION]), self.value.value(latent)

    def advantages(self, data, value, real):
        """(advantages, value targets), flat [N] as the data; sets the metrics of the rollout and the value's scale."""
        advantage = torch.zeros_like(value)
        for a, b in zip(data.offsets, data.offsets[1:], strict=False):  # the last row of each is its final observation
            steps = [torch.from_numpy(getattr(data, name)[a : b - 1])[None] for name in (REWARD, TERMINATED, TRUNCATED)]
            found = gae(steps[0], value[None, a:b], *steps[1:], self.hparams.gamma, self.hparams.lambda_)
            advantage[a : b - 1] = found[0]
        target = advantage + value
        self.rollout_metrics["value/explained_variance"] = explained_variance(value, target, real)
        self.value.update(target[real].to(self.device))
        return advantage / self._scale(advantage[real]).cpu(), target


class WindowsOnPolicy(Passes):
    """Minibatches of windows of fresh episodes: `iterations` times play, then `epochs` passes in `minibatches` parts.

    An iteration plays rounds until `frames_each` frames per iteration are there. Windows know their rows in the flat
    arrays, which hold what `SequencePPO` trains on.
    """

    def __init__(self, agent, collector, options, statistics, spaces, fps, seed, iterations, frames_each, epochs,
                 minibatches, max_timestep):  # fmt: skip
        super().__init__(iterations, epochs, minibatches, seed)
        self.agent, self.collector, self.options, self.statistics = agent, collector, options, statistics
        self.spaces, self.fps, self.max_timestep = spaces, fps, max_timestep
        self.frames_each, self.round = frames_each, 0
        self.offline_updates, self.online_updates = 0, len(self)
        self.played, self.flat = [], {}

    report_every = Passes.per_iteration

    def _collect(self):
        self.played, self.episodes, self.agent.rollout_metrics = [], [], {}
        while not self.played or self.frames < (self.iteration + 1) * self.frames_each:
            played = self.collector.play(self.round)
            self.round += 1
            self.frames += sum(episode.frames for episode in played.episodes)
            self.played.append((played.arrays, played.tags, played.target))
            self.episodes += played.episodes
            self.agent.rollout_metrics["target"] = played.target
        self.iteration += 1
        self._cut()
        first = self._groups()
        self._annotate(first)
        self.left = [*first, *(rows for _ in range(self.epochs - 1) for rows in self._groups())]

    def _cut(self):
        """Windows of what was played."""
        arrays = [longer(one) for episodes, *_ in self.played for one in episodes]
        tags = [one for _, tags, _ in self.played for one in tags]
        targets = [target for episodes, _, target in self.played for _ in episodes]
        self.data = stack_episodes(arrays, tags, self.spaces, self.fps)
        scales = [returns_of(one, self.statistics).get("returns_scale", 1.0) for one in tags]
        asked = commanded(self.data, targets, scales, self.agent.hparams.condition)
        options = {**self.options, "condition": asked, "gamma": 1.0}
        self.windows = EpisodeWindows(self.data, scale=scales, following=False, **options)
        self.real = torch.ones(len(self.data.reward), dtype=torch.bool)
        self.real[torch.from_numpy(self.data.offsets[1:] - 1)] = False
        self.starts, self.counts = cover(self.data.offsets, self.options["length"])

    def _groups(self):
        return list(torch.randperm(len(self.starts), generator=self.generator).chunk(self.minibatches))

    def _annotate(self, groups):
        flat = {name: torch.zeros(len(self.real)) for name in ("old_log_prob", "value")}
        with self.agent.precision():
            for group in groups:
                batch, rows, counted = self._windows(group)
                batch = {name: value.to(self.agent.device) for name, value in batch.items()}
                for name, seen in zip(flat, self.agent.look(batch), strict=True):
                    flat[name][rows[counted]] = seen.cpu().float()[counted]
        advantage, target = self.agent.advantages(self.data, flat["value"], self.real)
        self.flat = {"old_log_prob": flat["old_log_prob"], "advantage": advantage, "target": target}

    def _windows(self, group):
        """(windows of the group, their rows [b t] in the flat arrays, which of their steps count bool [b t])."""
        batch = self.windows.__getitems__(self.starts[group.numpy()])
        batch[TIMESTEP].clamp_(max=self.max_timestep - 1)
        places = torch.arange(self.options["length"])
        rows = torch.from_numpy(self.starts[group.numpy()])[:, None] + places
        counted = batch[MASK] & (places >= torch.from_numpy(self.counts[group.numpy()])[:, None])
        return batch, rows.clamp(max=len(self.real) - 1), counted

    def batch(self, group):
        batch, rows, counted = self._windows(group)
        flat = {name: values[rows] for name, values in self.flat.items()}
        return {**batch, **flat, MASK: counted & self.real[rows], "iteration": self.iteration - 1}

    def state_dict(self):
        """Where the stream stands: between two minibatches it is all there is."""
        played = [([{n: torch.as_tensor(v) for n, v in one.items()} for one in arrays], tags, target)
                  for arrays, tags, target in self.played]  # fmt: skip
        return {
            "iteration": self.iteration, "frames": self.frames, "round": self.round, "left": list(self.left),
            "generator": self.generator.get_state(), "metrics": dict(self.agent.rollout_metrics),
            "episodes": [(e.seed, e.returns, e.frames, e.success) for e in self.episodes],
            "targets": self.collector.targets.state_dict(), "flat": self.flat, "played": played if self.left else [],
        }  # fmt: skip

    def load_state_dict(self, state):
        for name in ("iteration", "frames", "round", "flat"):
            setattr(self, name, state[name])
        self.left = list(state["left"])
        self.generator.set_state(state["generator"])
        self.agent.rollout_metrics = state["metrics"]
        self.episodes = [Episode(*values) for values in state["episodes"]]
        self.collector.targets.load_state_dict(state["targets"])
        self.played = [([{n: v.numpy() for n, v in one.items()} for one in arrays], tags, target)
                       for arrays, tags, target in state["played"]]  # fmt: skip
        if self.left:
            self._cut()


def longer(arrays):
    """An episode with its final observation as one more step, in which nothing is done."""
    more = {name: np.concatenate([value, np.zeros_like(value[:1])]) for name, value in arrays.items()
            if name not in (OBSERVATION, FINAL_OBSERVATION)}  # fmt: skip
    last = arrays[FINAL_OBSERVATION]
    return {**more, OBSERVATION: np.concatenate([arrays[OBSERVATION], last[None]]), FINAL_OBSERVATION: last}


def commanded(data, targets, scales, condition="return"):
    """What was asked for at each step, float32 [N 1]: the target less what came before, divided by the scale.

    condition: "delayed" = nothing is taken off; "none" = zeros.
    """
    asked = np.zeros((len(data.reward), 1), np.float32)
    if condition == "none":
        return asked
    for e, (a, b) in enumerate(zip(data.offsets, data.offsets[1:], strict=False)):
        came = np.concatenate([[0.0], np.cumsum(data.reward[a : b - 1], dtype=np.float64)])
        asked[a:b, 0] = (targets[e] - (came if condition == "return" else 0.0)) / scales[e]
    return asked


def cover(offsets, length):
    """(starts, counts) int64 [m]: windows of which steps counts[i]:length hold every step of the episodes once.

    All but an episode's first window begin half a length after the one before, and count what that did not see.
    """
    half, starts, counts = max(1, length // 2), [], []
    for a, b in zip(offsets, offsets[1:], strict=False):
        begins = np.arange(a, max(a + 1, b - length + half), half)
        starts.append(begins)
        counts.append(np.where(begins == a, 0, length - half))
    return np.concatenate(starts), np.concatenate(counts)
