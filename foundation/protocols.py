"""What a learner is put through in a world, by DPT's evaluation (arXiv:2306.14892): online and on given contexts.

Axes: b tasks, n rounds, l context lengths.
"""

import torch
from tqdm import tqdm

from foundation import posteriors
from foundation.envs.worlds import count, played
from pipelines.schema import ACTION, REWARD


def bandit_online(world, learner, tasks, rounds, generator):
    """Suboptimality mu* - mu_a per round, by true means, [b n]; the context grows by the learner's own pulls."""
    steps = shown(range(rounds), "round")
    _, rows = played(world, learner, tasks, steps, generator, learner.start(count(tasks)))
    return lost(world, tasks, rows[ACTION])


def bandit_offline(world, learner, tasks, context, lengths, generator):
    """Suboptimality of the one greedy pull after the first n transitions of a context, n of `lengths`, [b l]."""
    observation = world.start(tasks)
    states = prefixes(learner, context, lengths, len(observation))
    return lost(world, tasks, torch.stack([learner.act(one, observation, generator, greedy=True) for one in states], 1))


def to_posterior(world, learner, tasks, context, lengths, generator):
    """Total variation between the learner's and the exact posterior's action after n transitions, n of `lengths`.

    At one query per task; [b l], 0 = the same distribution, 1 = nothing in common.
    """
    query = world.queries(tasks, 1, generator)
    exact = posteriors.probabilities(world, context, query, lengths)  # b l a
    states = prefixes(learner, context, lengths, len(query))
    said = [learner.distribution(state, query[:, 0]).log_probs.exp() for state in states]
    return 0.5 * (torch.stack(said, 1) - exact).abs().sum(-1)


def online(world, learner, tasks, episodes, generator, context="all", update="step", greedy=False):
    """Returns of episodes played one after another, [b episodes].

    context: all | last = at an episode's start, only the transitions of the one before are known. update: step |
    episode = what an episode brings is known when it is over (DPT's protocol: last, episode).
    """
    b, steps, learning = count(tasks), range(world.horizon), update == "step"
    state, before, returns = learner.start(b), None, []
    for _ in shown(range(episodes), "episode"):
        if context == "last" and before:
            state = learner.observe(learner.start(b), before)
        state, before = played(world, learner, tasks, steps, generator, state, learning, greedy)
        if context == "all" and not learning:
            state = learner.observe(state, before)
        returns.append(before[REWARD].sum(1))
    return torch.stack(returns, 1)


def offline(world, learner, tasks, context, generator, greedy):
    """Return of an episode on a given context that does not grow, [b]."""
    state = learner.observe(learner.start(len(context[ACTION])), context)
    _, rows = played(world, learner, tasks, range(world.horizon), generator, state, learning=False, greedy=greedy)
    return rows[REWARD].sum(1)


# small parts


def prefixes(learner, context, lengths, b):
    """The learner's states after the first n transitions, n of the ascending `lengths`; use each before the next."""
    state, done = learner.start(b), 0
    for n in lengths:
        if n > done:
            state = learner.observe(state, {name: value[:, done:n] for name, value in context.items()})
            done = n
        yield state


def lost(world, tasks, actions):
    """How much less than the best arm's the means of these actions [b n] are, [b n]."""
    best = world.optimal(tasks, world.start(tasks)[:, None])  # b 1
    return world.mean_reward(tasks, best) - world.mean_reward(tasks, actions)


def shown(steps, unit):
    """The steps with a progress bar, in a terminal."""
    return tqdm(steps, unit=unit, desc="playing", disable=None, leave=False)
