"""A network as a learner: the same contract as the closed-form ones of foundation.learners, for many tasks at once.

What a context left in the trunk is kept where that is exact: with query=last always, with query=first where there is
only one state to ask about (bandits). Elsewhere the context is run through the network again, with all states there
are as queries if it is asked again before it grows (a table of the policy).
"""

import torch
from einops import rearrange
from tqdm import tqdm

from foundation import posteriors
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
        names = (OBSERVATION, ACTION, REWARD, NEXT_OBSERVATION)
        parts = []
        for i in range(0, len(query), rows):
            part = {name: context[name][i : i + rows] for name in names}
            parts.append(self.net.first(part, query[i : i + rows], last))
        return torch.cat(parts)

    def act(self, state, observation, generator, greedy=False):
        distribution = self.distribution(state, observation)
        return distribution.mode() if greedy else distribution.sample(generator)


# what learners do in a world


def bandit_online(world, learner, tasks, rounds, generator):
    """Suboptimality mu* - mu_a per round, by true means, [b n]; the context grows by the learner's own pulls."""
    best, observation = world.mean_reward(tasks, world.optimal(tasks, world.start(tasks)[:, None])), world.start(tasks)
    state, lost = learner.start(len(best)), []
    for _ in shown(range(rounds), "round"):
        action = learner.act(state, observation, generator)
        reward, following = world.step(tasks, observation, action, generator)
        state = learner.observe(state, one_step(observation, action, reward, following))
        lost.append(best[:, 0] - world.mean_reward(tasks, action[:, None])[:, 0])
    return torch.stack(lost, 1)


def bandit_offline(world, learner, tasks, context, lengths, generator):
    """Suboptimality of the one greedy pull after the first n transitions of a context, n of `lengths`, [b l]."""
    best, observation = world.mean_reward(tasks, world.optimal(tasks, world.start(tasks)[:, None])), world.start(tasks)
    state, done, lost = learner.start(len(best)), 0, []
    for n in lengths:
        if n > done:
            state = learner.observe(state, {name: value[:, done:n] for name, value in context.items()})
            done = n
        action = learner.act(state, observation, generator, greedy=True)
        lost.append(best[:, 0] - world.mean_reward(tasks, action[:, None])[:, 0])
    return torch.stack(lost, 1)


def to_posterior(world, learner, tasks, context, lengths, generator):
    """Total variation between the learner's and the exact posterior's action after n transitions, n of `lengths`.

    At one query per task; [b l], 0 = the same distribution, 1 = nothing in common.
    """
    query = world.queries(tasks, 1, generator)
    exact = posteriors.probabilities(world, context, query, lengths)  # b l a
    state, done, found = learner.start(len(query)), 0, []
    for n in lengths:
        if n > done:
            state = learner.observe(state, {name: value[:, done:n] for name, value in context.items()})
            done = n
        found.append(learner.distribution(state, query[:, 0]).log_probs.exp())
    return 0.5 * (torch.stack(found, 1) - exact).abs().sum(-1)


def online(world, learner, tasks, episodes, generator, context="all", update="step", greedy=False):
    """Returns of episodes played one after another, [b episodes].

    context: all | last = at an episode's start, only the transitions of the one before are known. update: step |
    episode = what an episode brings is known when it is over (DPT's protocol: last, episode).
    """
    b, returns = len(next(iter(tasks.values()))), []
    state, before = learner.start(b), []
    for _ in shown(range(episodes), "episode"):
        if context == "last" and before:
            state = learner.observe(learner.start(b), joined(before))
        state, rows = episode(world, learner, tasks, state, generator, update == "step", greedy)
        if update == "episode" and context == "all":
            state = learner.observe(state, joined(rows))
        before = rows
        returns.append(joined(rows)[REWARD].sum(1))
    return torch.stack(returns, 1)


def episode(world, learner, tasks, state, generator, learning=False, greedy=False):
    """(state after it, `horizon` transitions [b 1 ...]) of one episode; `learning`: the state follows every step."""
    observation, rows = world.start(tasks), []
    for _ in range(world.horizon):
        action = learner.act(state, observation, generator, greedy)
        reward, following = world.step(tasks, observation, action, generator)
        rows.append(one_step(observation, action, reward, following))
        if learning:
            state = learner.observe(state, rows[-1])
        observation = following
    return state, rows


def offline(world, learner, tasks, context, generator, greedy):
    """Return of an episode on a given context that does not grow, [b]."""
    state = learner.observe(learner.start(len(context[ACTION])), context)
    _, rows = episode(world, learner, tasks, state, generator, greedy=greedy)
    return joined(rows)[REWARD].sum(1)


def shown(steps, unit):
    """The steps with a progress bar, in a terminal."""
    return tqdm(steps, unit=unit, desc="playing", disable=None, leave=False)


def one_step(observation, action, reward, following):
    """A context of one transition, [b 1 ...]."""
    names = (OBSERVATION, ACTION, REWARD, NEXT_OBSERVATION)
    return dict(zip(names, (rearrange(x, "b ... -> b 1 ...") for x in (observation, action, reward, following)),
                    strict=True))  # fmt: skip


def joined(rows):
    """Contexts one after another, [b n ...]."""
    return {name: torch.cat([row[name] for row in rows], 1) for name in rows[0]}
