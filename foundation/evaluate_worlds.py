"""Evaluation of learners in context: the half of `python -m foundation.evaluate` for tasks with a `protocol`.

    online   the context grows by what the learner does: cumulative regret of bandits, returns of episodes elsewhere
    offline  one decision, or one episode, on a given context (by the context policy of pretraining)

The policy and its rivals, in closed form, meet the same tasks; every number is a mean over tasks with its standard
error. Protocols and rivals are those of DPT (arXiv:2306.14892), whose paper shows them as curves.
"""

import csv
import json
import logging
import time
from pathlib import Path

import torch
from omegaconf import OmegaConf

from foundation import in_context, learners, posteriors, protocols
from foundation.envs.bandits import Bandit, LinearBandit
from foundation.envs.dark_room import DarkRoom
from foundation.envs.recovering_bandit import RecoveringBandit, best_periodic
from foundation.envs.world_env import WorldEnv
from foundation.envs.worlds import SPLITS, checked, differences
from foundation.training import made
from pipelines import construct
from pipelines.schema import REWARD, DataError

PREFIXES = (1, 2, 5, 10, 20, 50, 100, 200, 500)  # of a context, at which the distance to the posterior is measured
MODES = [{"context": context, "update": update} for context in ("all", "last") for update in ("episode", "step")]
IDLE = {"memory": "episode", "cache": "exact", "target": None, "greedy": None, "video": 0}
ROWS = 500  # tasks that a network plays at once
log = logging.getLogger("foundation-policy")


def is_world(task):
    """Whether a task (its mapping) is a world with a protocol for learners in context."""
    kind = construct.find_class(task["env"]["_target_"], "foundation", object)
    return task.get("protocol") is not None and issubclass(kind, WorldEnv)


def score(task, bundle, cfg):
    """Numbers of the policy (a Bundle, or None: the rivals alone) on a world's protocol.

    Writes run.dir/curves.csv and, of a policy in Dark Room, policy.json; foundation.report draws both.
    """
    task = OmegaConf.to_container(task, resolve=True) if OmegaConf.is_config(task) else task
    check_idle(cfg)
    world, protocol = made_world(task["env"]["world"]), task["protocol"]
    protocol |= {} if cfg.episodes is None else {"tasks": cfg.episodes}
    check(protocol, bundle, world, cfg.policy)
    if bundle and (other := differences(bundle.config.get("world", {}), task["env"]["world"])):
        log.warning("%s was trained in another world; this one differs in %s", cfg.policy, other)
    policy = bundle and in_context.NetLearner(bundle.net.to(cfg.device), world.states, bundle.statistics)
    evaluation = Evaluation(world, protocol, policy)
    curves = evaluation.bandit() if isinstance(world, Bandit) else evaluation.episodes()
    write(Path(cfg.run.dir) / "curves.csv", curves)
    if evaluation.pictured:
        (Path(cfg.run.dir) / "policy.json").write_text(json.dumps(evaluation.pictured) + "\n")
    return evaluation.numbers


def check_idle(cfg):
    """DataError for options of evaluate that mean nothing here, and would be passed over in silence."""
    idle = [f"{name}={cfg[name]}" for name, usual in IDLE.items() if cfg[name] != usual]
    idle += [f"policy={cfg.policy}"] if cfg.policy in ("noop", "player") else []
    if idle:
        raise DataError(f"{', '.join(idle)}: a world is played as task.protocol says, beside its own rivals"
                        " (policy=random: these alone); leave that out")  # fmt: skip


def made_world(node):
    """The world of a task; DataError where its options do not fit it."""
    construct.find_class(node["_target_"], "foundation", object)
    return made(node)


def check(protocol, bundle, world, name):
    """DataError for a policy that was made for something else, and for a protocol that cannot be played."""
    check_protocol(protocol, world)
    if bundle is None:
        return
    if bundle.net.state_dim != world.state_dim:
        raise DataError(f"{name} takes observations of {bundle.net.state_dim} numbers, {type(world).__name__} shows"
                        f" {world.state_dim}; pretrain with data= of this world")  # fmt: skip
    if bundle.net.n_actions != world.n_actions:
        raise DataError(f"{name} chooses among {bundle.net.n_actions} actions, {type(world).__name__} has"
                        f" {world.n_actions}; pretrain with data= of this world")  # fmt: skip
    if bundle.net.positions is not None:
        fit(protocol, bundle.net.context, world, name)


def fit(protocol, most, world, name):
    """Leaves out of a protocol how contexts grow beyond `most` transitions, and says so; DataError if that is all."""
    longest = protocol["rounds"] if isinstance(world, Bandit) else protocol["context"]
    if longest > most:
        raise DataError(
            f"{name} has positions for {most} transitions, contexts of this protocol grow to {longest}; shorten"
            " task.protocol, or pretrain with longer ones or method.net.positions=none"
        )
    for mode in list(protocol.get("online", ())):
        episodes = protocol["episodes"] if mode["context"] == "all" else 1 + (mode["update"] == "step")
        if world.horizon * episodes > most:
            protocol["online"].remove(mode)
            log.warning(
                "%s has positions for %d transitions: left out %s, whose contexts grow to %d; with"
                " method.net.positions=none there is no limit", name, most, mode, world.horizon * episodes,
            )  # fmt: skip


def check_protocol(protocol, world):
    """DataError for a protocol that cannot be played."""
    bandit = isinstance(world, Bandit)
    checked("protocol.split", protocol["split"], SPLITS)
    for name in ("rounds",) if bandit else ("episodes", "context"):
        if not isinstance(protocol.get(name), int) or protocol[name] < 1:
            raise DataError(f"protocol.{name}={protocol.get(name)}: expected a whole number of at least 1")
    for name in ("report", "lengths" if bandit else "online"):
        if not isinstance(protocol.get(name), list):
            raise DataError(f"protocol.{name}={protocol.get(name)}: expected a list; see configs/task")
    if protocol["tasks"] < 2:
        raise DataError(f"{protocol['tasks']} tasks have no standard error: expected at least 2 (protocol.tasks)")
    if bandit:
        if not any(0 <= n <= protocol["rounds"] for n in protocol["lengths"]) or min(protocol["lengths"]) < 0:
            raise DataError(f"protocol.lengths={protocol['lengths']}: expected some in 0..{protocol['rounds']} rounds")
        return
    for mode in protocol["online"]:
        if mode not in MODES:
            raise DataError(f"protocol.online holds {mode}: expected context all or last, and update episode or step")


class Evaluation:
    """One world, one protocol; `numbers` collects what was measured, curves are [(figure, who, x, mean, sem)]."""

    def __init__(self, world, protocol, policy=None):
        self.world, self.protocol, self.policy, self.numbers, self.pictured = world, protocol, policy, {}, None
        self.generator = torch.Generator().manual_seed(protocol["seed"])
        self.tasks = world.draw(protocol["tasks"], self.generator, protocol["split"])

    # bandits

    def bandit(self):
        """Cumulative regret online, suboptimality offline."""
        protocol, rounds, curves = self.protocol, self.protocol["rounds"], []
        lengths = within(protocol, "lengths", 0, rounds)
        context = self.world.context(self.tasks, max(lengths), self.generator)
        at = within(protocol, "report", 1, rounds)
        for who, learner in self.contenders("online").items():
            lost = self.played(who, learner, protocols.bandit_online, rounds)
            regret = lost.cumsum(1)
            self.say("online", who, "regret", at, regret[:, [n - 1 for n in at]])
            curves += points("cumulative regret, online", who, range(1, rounds + 1), regret)
        for who, learner in self.contenders("offline").items():
            lost = self.played(who, learner, protocols.bandit_offline, context, lengths)
            self.say("offline", who, "suboptimality", lengths, lost)
            curves += points("suboptimality, offline", who, lengths, lost)
        return curves + self.distance(context, lengths)

    def distance(self, context, lengths):
        """How far the policy's distribution over actions is from the exact posterior's, where there is one."""
        if self.policy is None or not posteriors.known(self.world):
            return []
        lengths = sorted({0, *lengths})
        found = self.played("policy", self.policy, protocols.to_posterior, context, lengths)
        self.say("posterior", "policy", "distance", lengths, found)
        return points("total variation to the exact posterior", "policy", lengths, found)

    # episodes

    def episodes(self):
        """Returns online, by how the context grows; and on given contexts, by whether they show the goal."""
        protocol, curves = self.protocol, []
        at = within(protocol, "report", 1, protocol["episodes"])
        for mode in protocol["online"]:
            figure = f"online, context {mode['context']}, update per {mode['update']}"
            for who, learner in self.contenders("online").items():
                returns = self.played(who, learner, protocols.online, protocol["episodes"], **mode)
                name = f"online/{mode['context']}_{mode['update']}"
                self.say(name, who, "return", at, returns[:, [n - 1 for n in at]])
                curves += points(f"return, {figure}", who, range(1, protocol["episodes"] + 1), returns)
        return curves + self.given()

    def given(self):
        """Episodes on contexts of the pretraining policy, sampled and greedy -> curves of the distance."""
        n = self.protocol["context"]
        context = self.world.context(self.tasks, n, self.generator)
        seen = (context[REWARD] > 0).any(1)
        parts = (("seen", seen), ("unseen", ~seen)) if "goal" in self.tasks else ()
        if parts:
            self.numbers["evaluate/offline/goal_seen"] = float(seen.float().mean())
        if self.policy is not None and isinstance(self.world, DarkRoom):
            self.pictured = picture(self.world, self.policy, self.tasks, context, int(seen.int().argmax()))
        for who, learner in self.contenders("offline").items():
            for greedy in (False, True):
                returns = self.played(who, learner, protocols.offline, context, greedy=greedy)
                name = f"offline/{'greedy' if greedy else 'sampled'}"
                self.say(name, who, "return", [n], returns[:, None])
                for label, rows in parts:
                    if rows.any():
                        self.numbers[f"evaluate/{name}/{who}/return_goal_{label}"] = float(returns[rows].mean())
        return self.distance(context, [m for m in PREFIXES if m < n] + [n])

    # who plays

    def contenders(self, kind):
        """{name: learner}: the policy, if there is one, and its rivals of that kind (online | offline)."""
        found = {} if self.policy is None else {"policy": self.policy}
        return found | rivals(self.world, self.tasks, kind)

    def played(self, who, learner, play, *given, **options):
        """`play` over all tasks, for a network some at a time, on equal random numbers for everybody."""
        start, b = time.monotonic(), self.protocol["tasks"]
        rows = ROWS if who == "policy" else b
        generator, parts = torch.Generator().manual_seed(self.protocol["seed"] + 1), []
        for i in range(0, b, rows):
            part = slice(i, i + rows)
            tasks = {name: value[part] for name, value in self.tasks.items()}
            own = [cut(value, part) for value in given]
            parts.append(play(self.world, learner, tasks, *own, generator=generator, **options))
        if who == "policy":
            log.info("policy: %d tasks in %.1f s", b, time.monotonic() - start)
        return torch.cat(parts)

    def say(self, name, who, what, at, values):
        """Keeps means and standard errors [b l] at the places `at`, and prints them; of no places, nothing."""
        if not at:
            return
        mean, sem = spread(values)
        for n, m, s in zip(at, mean.tolist(), sem.tolist(), strict=True):
            self.numbers[f"evaluate/{name}/{who}/{what}@{n}"] = m
            self.numbers[f"evaluate/{name}/{who}/{what}@{n}_sem"] = s
        shown = "  ".join(f"{n}: {m:.4g}" for n, m in zip(at, mean.tolist(), strict=True))
        log.info("%-28s %-18s %s  %s", name, who, what, shown)


def rivals(world, tasks, kind):
    """{name: learner} to compare with, where the world has them.

    Thompson sampling keeps the noise and the prior that policies are trained with: a shift is one for it as well. The
    posterior knows the world at hand.
    """
    a, online = world.n_actions, kind == "online"
    if isinstance(world, LinearBandit):
        prior = {"mean": 0.0, "variance": 1.0}
        found = {"thompson": learners.ThompsonSampling(a, world.noise, **prior)}
        name, c = ("linucb", 1.0) if online else ("ridge", 0.0)
        found |= {name: learners.LinUCB(world.features, c)}
    elif isinstance(world, RecoveringBandit):
        best = best_periodic(world, tasks)
        found = {"thompson": learners.ThompsonSampling(a), "ucb": learners.UCB(a)}
        found |= {"periodic": learners.Periodic(best[0], best[1])}
    elif isinstance(world, Bandit):
        found = {"empirical": learners.EmpiricalMean(a), "thompson": learners.ThompsonSampling(a)}
        found |= {"ucb": learners.UCB(a)} if online else {"lcb": learners.LCB(a)}
    else:
        found = {}
    if posteriors.known(world) and isinstance(world, Bandit):
        found |= {"posterior": posteriors.PosteriorSampling(world)}
        found |= {} if online else {"posterior_mean": posteriors.PosteriorMean(world)}
    elif posteriors.known(world):
        found |= {"posterior": posteriors.HypothesisPosterior(world)}
    return found | {"uniform": learners.Uniform(a), "optimal": learners.Optimal(world, tasks)}


def picture(world, learner, tasks, context, row):
    """The most probable action of every cell in one task, on its context, as policy.json has it."""
    cells, seen = world.states, {name: value[row : row + 1] for name, value in context.items()}
    repeated = {name: value.expand(len(cells), *value.shape[1:]) for name, value in seen.items()}
    known = learner.observe(learner.start(len(cells)), repeated)
    actions = learner.act(known, cells, None, greedy=True)
    moves = world.moves[tasks["permutation"][row][actions]]
    return {"cells": cells.tolist(), "moves": moves.tolist(), "goal": tasks["goal"][row].tolist(),
            "transitions": seen[REWARD].shape[1], "goal_seen": bool((seen[REWARD] > 0).any())}  # fmt: skip


# numbers


def within(protocol, name, low, high):
    """The list `name` of a protocol without what lies outside of low..high, which is said; if all does, the end."""
    kept = sorted({n for n in protocol[name] if low <= n <= high})
    if lost := sorted(set(protocol[name]) - set(kept)):
        log.warning("protocol.%s: left out %s, outside of %d..%d", name, lost, low, high)
    return kept or [high] * bool(protocol[name])


def spread(values):
    """(mean [l], standard error [l]) over tasks [b l]."""
    return values.mean(0), values.std(0) / len(values) ** 0.5


def points(figure, who, x, values):
    mean, sem = spread(values)
    return [(figure, who, n, m, s) for n, m, s in zip(x, mean.tolist(), sem.tolist(), strict=True)]


def cut(value, rows):
    """The rows of a context; anything else as it is."""
    return {name: one[rows] for name, one in value.items()} if isinstance(value, dict) else value


def write(path, curves):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["figure", "who", "x", "mean", "sem"])
        out.writerows(curves)
