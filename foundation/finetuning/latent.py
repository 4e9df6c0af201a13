"""Fine-tuning the skill alone (algo=latent): the policy of skills keeps its weights, z is searched without gradients.

The cross-entropy method (Rubinstein 1999; of policies Mannor et al. 2003), with lasting noise (Szita & Lorincz 2006):

    x_1 = mu, x_i ~ N(mu, diag sigma^2),  z_i = x_i / |x_i|        candidates, each played on the same episodes
    E = those whose mean return is at least that of the k-th best  all of them where nothing differs
    mu <- mu + rate (mean_E x - mu),  sigma <- sigma + rate (sqrt(var_E x + noise^2) - sigma)

which is a step of gradient descent on half the squared distances: so mean and deviation are parameters, a generation is
a batch, and checkpoints, metrics.csv and stopping are those of every other algorithm.
"""

from contextlib import ExitStack

import numpy as np
import torch
from hydra.utils import get_class
from lightning import LightningModule
from torch.nn import functional as F
from torch.utils.data import IterableDataset

from foundation.checkpoints import resume_path
from foundation.envs import registry
from foundation.evaluate import check_spaces, load_policy, play
from foundation.finetune_states import Scores, device_of, fit, keep, limit, untrained
from foundation.finetuning.episodes import opened_worlds
from foundation.prompted import from_data
from foundation.prompts import FixedPrompt, PromptedActor, Prompts, own_skill, unit
from foundation.rollout import Episode, training_seed
from foundation.training import plain
from models.hilbert import HilbertPolicy
from pipelines.command import run_folder
from pipelines.schema import DataError
from pipelines.trajectories import Trajectories

KNOWN, ANYWHERE = 1.0, 4.0  # spread of the first generation, from a skill that is worth something and from any
STARTS = 16  # episodes whose directions to their goals are averaged


class LatentSearch(LightningModule):
    """mean, deviation [z] of the candidates. start [z]: length 1."""

    def __init__(self, start, elites=4, rate=0.7, spread=KNOWN, noise=0.02):
        super().__init__()
        if elites < 1 or not 0 < rate <= 1 or spread <= 0 or noise < 0:
            raise DataError(f"algo.agent: elites={elites}, rate={rate}, spread={spread}, noise={noise}: expected at"
                            " least 1, (0, 1], more than 0, at least 0")  # fmt: skip
        self.elites, self.rate, self.noise = elites, rate, noise
        self.mean = torch.nn.Parameter(start.detach().clone())
        self.deviation = torch.nn.Parameter(torch.full_like(self.mean, spread / len(start) ** 0.5))
        self.rollout_metrics = {}

    @property
    def skill(self):
        return unit(self.mean.detach().cpu())

    def sample(self, n, generator):
        """Candidates [n z] before they get length 1, the mean first."""
        noise = torch.randn(n, len(self.mean), generator=generator)
        noise[0] = 0
        return self.mean.detach().cpu() + self.deviation.detach().cpu() * noise

    def losses(self, batch):
        """-> (loss, metrics) of a generation: candidate [n z], return [n]."""
        mean, deviation = elite_moments(batch["candidate"], batch["return"], self.elites, self.noise)
        halves = F.mse_loss(self.mean, mean, reduction="sum"), F.mse_loss(self.deviation, deviation, reduction="sum")
        return 0.5 * sum(halves), {"search/spread": deviation.norm() / mean.norm()}

    def training_step(self, batch, _):
        loss, metrics = self.losses(batch)
        return {"loss": loss, "metrics": {"loss/total": loss.detach(), **metrics}}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


def elite_moments(candidate, returns, elites, noise=0.0):
    """(mean [z], deviation [z]) of the candidates [n z] whose return [n] is at least the `elites`-th best one."""
    best = candidate[returns >= returns.sort(descending=True).values[min(elites, len(returns)) - 1]]
    return best.mean(0), (best.var(0, unbiased=False) + noise**2).sqrt()


class Generations(IterableDataset):
    """Candidates and what they got, played until `frames` are used up.

    agent: has `sample`; play(skills [n z], seeds) -> [Episode] of every skill on all seeds, skill by skill.
    """

    per_iteration = report_every = 1
    left = offline_updates = 0

    def __init__(self, agent, play, seed, frames, population, episodes, limit=0):
        super().__init__()
        if population < 2 or episodes < 1:
            raise DataError(f"algo.stream: population={population}, episodes={episodes}: expected at least 2 and 1")
        if agent.elites >= population:
            raise DataError(f"algo.agent.elites={agent.elites} of algo.stream.population={population} chooses none of"
                            " them; expected fewer")  # fmt: skip
        self.agent, self.play, self.seed, self.budget = agent, play, seed, frames
        self.population, self.each = population, episodes
        self.online_updates = -(-frames // (population * episodes * max(limit, 1)))  # at least
        self.generation = self.frames = 0
        self.episodes = []  # of the latest generation

    def __len__(self):
        """At most, were every episode a single frame."""
        return -(-self.budget // (self.population * self.each))

    def __iter__(self):
        while self.frames < self.budget:
            yield self.batch()

    def batch(self):
        generator = torch.Generator().manual_seed(training_seed(self.seed, self.population, self.generation))
        candidate = self.agent.sample(self.population, generator)
        seeds = [training_seed(self.seed, slot, self.generation) for slot in range(self.each)]
        self.episodes = self.play(unit(candidate), seeds)
        self.generation += 1
        self.frames += sum(episode.frames for episode in self.episodes)
        returns = torch.tensor([episode.returns for episode in self.episodes]).unflatten(0, (-1, self.each)).mean(1)
        self.agent.rollout_metrics = {"search/return": float(returns[0]), "search/return_best": float(returns.max())}
        return {"candidate": candidate, "return": returns}

    def state_dict(self):
        return {
            "generation": self.generation, "frames": self.frames, "metrics": dict(self.agent.rollout_metrics),
            "episodes": [(e.seed, e.returns, e.frames, e.success) for e in self.episodes],
        }  # fmt: skip

    def load_state_dict(self, state):
        self.generation, self.frames = state["generation"], state["frames"]
        self.agent.rollout_metrics = state["metrics"]
        self.episodes = [Episode(*values) for values in state["episodes"]]


class Candidates(PromptedActor):
    """Plays skills [n z], `each` episodes of one after the other, in the order in which `play` hands them out."""

    def __init__(self, bundle, skills, each=1, device="cpu"):
        self.skills, self.each = skills.to(device), each
        super().__init__(bundle, FixedPrompt(self.skills[:1]), device=device)

    def start(self, slots):
        super().start(slots)
        self.b = len(slots)

    def act(self, frame):
        rows = [(slot.index + self.b * slot.episode) // self.each for slot in self.slots]
        self.prompt.skill = self.skills[rows]  # b z
        return super().act(frame)


def played(bundle, worlds, device="cpu"):
    """The function `play` of Generations: a frozen policy in environments."""

    def run(skills, seeds):
        ended = []  # numbers in the order in which `play` lists their episodes
        watch = lambda number, _, action: ended.append(number) if action is None else None  # noqa: E731
        actor = Candidates(bundle, skills, len(seeds), device)
        found = play(actor, worlds, list(seeds) * len(skills), watch, "candidates")
        order = np.argsort(ended)
        return [found[i] for i in order]

    return run


# where the search begins


def begin(cfg, world):
    """(Bundle of the policy, start [z] of length 1, spread of what is tried around it)"""
    bundle, known = load_policy(cfg.init), ("goal", "reward", None)
    if not isinstance(bundle.net, HilbertPolicy):
        raise DataError(f"algo=latent searches the skill of a policy of skills (method=hilp), init={cfg.init} is a"
                        f" {type(bundle.net).__name__}; use algo=td3_aux or ppo for it")  # fmt: skip
    check_spaces(bundle, world, cfg.init, cfg.task.name)
    if cfg.algo.prompt not in known:
        raise DataError(f"algo.prompt={cfg.algo.prompt!r}: expected one of {known[:2]}, or null")
    prompts = Prompts(bundle)
    if cfg.algo.prompt == "goal":
        return bundle, goal_start(prompts, world, cfg.run.seed), KNOWN
    if cfg.algo.prompt == "reward":
        return bundle, reward_start(prompts, world, cfg.data.train, cfg.run.seed), KNOWN
    found = own_skill(bundle)
    if found is not None:
        return bundle, found, KNOWN
    generator = torch.Generator().manual_seed(cfg.run.seed)
    return bundle, unit(torch.randn(bundle.net.latent_dim, generator=generator)), ANYWHERE


def goal_start(prompts, world, seed):
    """The mean direction from where training episodes start to their goals, [z]."""
    states, goals = [], []
    for number in range(STARTS):
        states.append(world.reset(seed=training_seed(seed, STARTS, number))[0])
        if getattr(world, "goal", None) is None:
            raise DataError("algo.prompt=goal: this task has no goals; use reward, or null")
        goals.append(world.goal)
    states, goals = (torch.as_tensor(np.stack(rows)) for rows in (states, goals))
    return unit(prompts.goal(goals)(states).mean(0))


def reward_start(prompts, world, train, seed):
    """The z of a reward prompt on the steps of trajectory shards. They get the task's reward where it is one of states,
    else they keep their own."""
    if train is None:
        raise DataError("algo.prompt=reward fits a reward on states: give data.train=<trajectory shards>")
    paid = getattr(world, "state_reward", None)
    return from_data(prompts, "reward", Trajectories.load(train), seed, paid).skill


# the command


class SkillScores(Scores):
    """Scores of the skill that the search is at."""

    def __init__(self, cfg, tasks, bundle, environments, agent):
        super().__init__(cfg, tasks, bundle, None, environments)
        self.agent = agent

    def actor(self, task):
        return PromptedActor(self.bundle, FixedPrompt(self.agent.skill.to(device_of(self.cfg))),
                             self.cfg.run.seed, device=device_of(self.cfg))  # fmt: skip


def main(cfg):
    """-> summary. Seeds are set, `cfg.task` shows vectors."""
    folder, algo, tasks = run_folder(cfg), plain(cfg.algo), registry.tasks_of(cfg.task)
    check_one(cfg, tasks)
    stream, settings, device = algo["stream"], dict(algo["agent"]), device_of(cfg)
    with ExitStack() as stack:
        n = stream.pop("environments")
        made = opened_worlds(stack, tasks, n)
        ((_, worlds),) = made.items()
        bundle, begun, spread = begin(cfg, worlds[0])
        start = resume_path(folder, cfg.resume, plain(cfg))
        settings["spread"] = spread if settings["spread"] is None else settings["spread"]
        target = get_class(settings.pop("_target_"))
        agent = target(begun, **settings)
        stream = Generations(agent, played(bundle, worlds, device), cfg.run.seed, cfg.frames, **stream,
                             limit=limit(worlds[0]))  # fmt: skip
        score = SkillScores(cfg, tasks, bundle, n, agent)
        before = untrained(folder, start, score, made, bundle, None) if cfg.evaluate_before else {}
        trained = fit(cfg, folder, algo, agent, stream, score, start, (cfg.frames, "frame", lambda _: stream.frames))
        after = score("fine-tuned", "finetune")
    summary = {**before, **after, **trained, "finetune/skill_cosine": float(agent.skill @ begun)}
    keep(cfg, folder, bundle, None, {"skill": agent.skill.tolist()}, summary, tasks)
    return summary


def check_one(cfg, tasks):
    """DataError unless there is one task, one process and a policy."""
    if len(tasks) > 1:
        raise DataError(f"algo=latent: one skill is for one task, not for {[task['name'] for task in tasks]}")
    if cfg.trainer.devices != 1:
        raise DataError(f"trainer.devices={cfg.trainer.devices}: RL runs in one process; choose trainer=cpu or gpu")
    if cfg.init is None:
        raise DataError("algo=latent searches the skill of a policy that is there: set init=<run of method=hilp>")
    if cfg.skills.init or cfg.shaping.init:
        raise DataError("algo=latent acts with init's skills in the task as it is: leave out skills.init, shaping.init")
