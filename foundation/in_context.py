"""A network as a learner: the same contract as the closed-form ones of foundation.learners, for many tasks at once.

What a context left in the trunk is kept where that is exact: with query=last always, with query=first where there is
only one state to ask about (bandits). Elsewhere the context is run through the network again, with all states there
are as queries if it is asked again before it grows (a table of the policy).
"""

import torch

from foundation.envs.worlds import TRANSITION
from foundation.learners import Learner
from pipelines.schema import ACTION, NEXT_OBSERVATION, OBSERVATION, REWARD, DataError
from pipelines.trajectory_windows import Normalizer

TOKENS = 1 << 18  # in a forward pass: bounds memory to some hundred MB


class NetLearner(Learner):
    """`net`: a models.in_context.InContext. states: float32 [S s], all observations there are; None = too many.

    statistics: of the net's hub folder; what it sees is normalised and its rewards are divided as in training.

    A state's memory grows in place: after `observe`, only the state that came out of it may be used.
    """

    def __init__(self, net, states=None, statistics=None):
        self.net, self.device, statistics = net.eval(), net.head.weight.device, statistics or {}
        self.normalizer = Normalizer.from_dict(statistics) if "state_mean" in statistics else None
        self.scale = float(statistics.get("returns_scale", 1.0))
        if self.normalizer is not None and self.normalizer.by:
            raise DataError("a policy with statistics per task cannot play a world, whose tasks have no names")
        self.states = None if states is None else self._seen(states)
        self.constant = states is not None and len(states) == 1

    @torch.no_grad()
    def start(self, b):
        if self.net.query == "first" and self.constant:
            latent, memory = self.net.begin(self.states.expand(b, -1), self.net.room())
            return {"latent": latent, "memory": memory}
        return {"memory": self.net.room()} if self.net.query == "last" else {"context": None, "b": b}

    @torch.no_grad()
    def observe(self, state, transitions):
        if not transitions[ACTION].shape[1]:
            return state
        if not torch.isfinite(transitions[REWARD]).all():
            raise DataError("a context holds rewards that are no finite numbers; leave such transitions out")
        transitions = {
            OBSERVATION: self._seen(transitions[OBSERVATION]), ACTION: transitions[ACTION].to(self.device),
            REWARD: transitions[REWARD].to(self.device) / self.scale,
            NEXT_OBSERVATION: self._seen(transitions[NEXT_OBSERVATION]),
        }  # fmt: skip
        if "memory" in state:
            latent, memory = self.net.read(state["memory"], transitions)
            return {"memory": memory, **({"latent": latent[:, -1]} if "latent" in state else {})}
        before = state["context"]
        if before is not None:
            transitions = {name: torch.cat([before[name], value], 1) for name, value in transitions.items()}
        return {"context": transitions, "b": state["b"]}

    @torch.no_grad()
    def distribution(self, state, observation):
        """Over the action for each observation [b s], [b], on the CPU, where the tasks are."""
        return self._distribution(state, self._seen(observation)).cpu()

    def _seen(self, observation):
        """As the network takes them."""
        if self.normalizer is not None:
            observation = torch.from_numpy(self.normalizer(observation.numpy()))
        return observation.to(self.device)

    def _distribution(self, state, observation):
        net = self.net
        if "latent" in state:
            return net.distribution(state["latent"])
        if "memory" in state:
            return net.distribution(net.answer(state["memory"], observation[:, None])[:, 0])
        if state["context"] is None:
            return net.distribution(net.begin(observation)[0])
        if self.states is None:
            return net.distribution(self._answers(state["context"], observation[:, None])[:, 0])
        if "table" not in state:
            state["table"] = self._answers(state["context"], self.states.expand(len(observation), -1, -1))  # b S d
        row = (observation[:, None] == self.states).all(-1).int().argmax(1)  # b
        return net.distribution(state["table"][torch.arange(len(row)), row])

    def _answers(self, context, query):
        """Latents [b k d] of queries [b k s] after the whole context, a few tasks at a time."""
        n = context[ACTION].shape[1]
        rows = max(1, TOKENS // ((n + 1) * query.shape[1]))
        last = torch.tensor([n], device=self.device)
        parts = []
        for i in range(0, len(query), rows):
            part = {name: context[name][i : i + rows] for name in TRANSITION}
            parts.append(self.net.first(part, query[i : i + rows], last))
        return torch.cat(parts)

    def act(self, state, observation, generator, greedy=False):
        distribution = self.distribution(state, observation)
        return distribution.mode() if greedy else distribution.sample(generator)
