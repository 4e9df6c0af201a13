"""What a policy of skills can be told without more training: a goal, a reward, a plan, a demonstration (HILP,
arXiv:2402.15567).

    prompts = Prompts(hub.load("outputs/hilp"))
    prompt = prompts.goal(g)  # or .plan(g, states), .reward(states, following, rewards), .demonstration(states)
    skill = prompt(states)    # [b z] for the states [b s] that b environments show now

Axes: b environments, n samples, m exemplars, s numbers of a state, z of a latent. Skills have length 1, as in training;
where a goal is reached, 0.
"""

import logging

import numpy as np
import torch

from foundation.rollout import take
from foundation.seen_states import SeenStates
from models.goal_policy import GoalPolicy
from models.hilbert import HilbertPolicy
from pipelines.schema import CONDITION, OBSERVATION, DataError
from pipelines.trajectories import Spaces
from pipelines.values import is_number, list_of

log = logging.getLogger("foundation-policy")

ROWS = 8192  # states encoded at once
NEIGHBOURS, RECURSIONS = 50, 3  # states in a plan's midpoint, midpoints: HILP's
RIDGE = 1.0  # of the features' mean variance
STILL = 1e-6  # length of a way below which it has no direction
LITTLE = 0.1  # share of a reward's variance, below which a skill says next to nothing of it


class Prompts(SeenStates):
    """The prompts of a loaded policy (a Bundle with a models.hilbert.HilbertPolicy). States are as environments show
    them; they are normalised here as in training."""

    def __init__(self, bundle, device="cpu"):
        if not hasattr(bundle, "net"):
            raise DataError(f"expected a loaded policy, got {bundle!r:.80}; load it: Prompts(hub.load({bundle!r:.60}))")
        if not isinstance(bundle.net, HilbertPolicy):
            raise DataError(f"prompts are for policies of skills (method=hilp), this is a {type(bundle.net).__name__}")
        super().__init__(bundle, device)
        self.representation = self.net.representation

    def goal(self, goals=None):
        """To goals [b s] or [s]: z = (phi(g) - phi(s)) / its length, anew in every state."""
        return GoalPrompt(self, goals)

    def plan(self, goals=None, exemplars=None, neighbours=NEIGHBOURS, recursions=RECURSIONS):
        """To goals [b s] or [s] by way of midpoints among the states `exemplars` [m s]."""
        return PlanPrompt(self, goals, exemplars, neighbours, recursions)

    def reward(self, observation, next_observation, reward, ridge=RIDGE):
        """To where rewards [n] of steps [n s] -> [n s] are high: z ~ least squares of the reward on phi's features.

        Fitted with an intercept, as a constant changes no policy. ridge: of the features' mean variance. 0, as in the
        paper, fits best but may put nearly all weight on latent directions in which states hardly differ, whose skills
        are learned badly. A policy of features=difference was rewarded for moving along z: told a reward of moves, z is
        fitted on phi(s') - phi(s); told one of places, on phi(s'), which its skill climbs and stays on top of. The
        better fit is taken, `explained` of the prompt is its share of the rewards' variance. DataError for rewards that
        say nothing, a warning where a skill can say hardly any of them.
        """
        if not 0 <= ridge < float("inf"):
            raise DataError(f"ridge={ridge}: expected a number of at least 0")
        feature = self.features(observation, next_observation).double().cpu()
        reward = torch.as_tensor(reward, dtype=torch.float64).flatten().cpu()
        n, z = feature.shape
        if len(reward) != n:
            raise DataError(f"a reward prompt of {n} steps has {len(reward)} rewards; expected one for each")
        if not torch.isfinite(reward).all():
            raise DataError("a reward prompt holds rewards that are no finite numbers; leave such steps out")
        if n < z:
            raise DataError(f"a reward prompt of {n} samples cannot tell {z} latent numbers apart; give {z} or more,"
                            " better some thousands")  # fmt: skip
        if reward.max() == reward.min():
            raise DataError(f"all {n} rewards are {float(reward[0]):g}: every skill is as good; give steps with others")
        fits = [fitted(feature, reward, ridge)]
        if self.representation.features == "difference":
            fits.append(fitted(self.latent(next_observation).double().cpu(), reward, ridge))
        explained, skill = max(fits, key=lambda fit: fit[0])
        if not skill.any():
            raise DataError(f"the {n} steps of the reward prompt are all at one place of phi; give steps that differ")
        log.info("the reward as a skill: %.2f of its variance over %d steps is explained", explained, n)
        if explained < LITTLE:
            moves = self.representation.features != "difference"
            log.warning("that is little: expect no better play than by chance; no direction of phi says this reward%s",
                        " (of moves: train with method.net.features=difference)" if moves else "")  # fmt: skip
        return FixedPrompt(unit(skill.float().to(self.device)), explained)

    def demonstration(self, states):
        """Along a demonstration [n s]: z ~ the mean of its steps' features; of features=difference, last - first."""
        states = self.seen(states)
        if len(states) < 2:
            raise DataError(f"a demonstration of {len(states)} states shows no way; give at least 2")
        way = self.features_of(states[:-1], states[1:]).mean(0)
        if way.norm() < STILL:
            raise DataError(f"the demonstration's {len(states)} states lead nowhere: it stands, or ends where it began;"
                            " give one that goes somewhere")  # fmt: skip
        return FixedPrompt(unit(way))

    # latents

    @torch.no_grad()
    def latent(self, states):
        """phi [n z] of states as environments show them."""
        return torch.cat([self.representation.latent(part) for part in self.seen(states).split(ROWS)])

    def goal_latent(self, goals):
        """phi [n z] of goals; those outside of the states of the training data are made up, see `check_goals`."""
        latent = self.latent(goals)
        self.check_goals(goals)
        return latent

    def features(self, observation, next_observation):
        """What a skill is multiplied with to be rewarded, of steps [n s] -> [n s]; [n z]."""
        observation, next_observation = self.seen(observation), self.seen(next_observation)
        if len(observation) != len(next_observation):
            raise DataError(f"{len(observation)} states and {len(next_observation)} following ones: expected as many")
        return self.features_of(observation, next_observation)

    @torch.no_grad()
    def features_of(self, observation, next_observation):
        phi = self.representation
        pairs = zip(observation.split(ROWS), next_observation.split(ROWS), strict=True)
        return torch.cat([phi.feature(phi.latent(now), phi.latent(following)) for now, following in pairs])


def fitted(feature, reward, ridge):
    """Ridge regression with an intercept, float64 [n z], [n] -> (share of the variance explained, weights [z])."""
    feature, reward = feature - feature.mean(0), reward - reward.mean()
    gram = feature.T @ feature / len(reward)
    gram = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.linalg.lstsq(gram, (feature.T @ reward / len(reward))[:, None]).solution[:, 0]
    return float(1 - (reward - feature @ weights).square().mean() / reward.square().mean()), weights


class GoalPrompts(SeenStates):
    """What a policy of goals (a Bundle with a models.goal_policy.GoalPolicy) can be told: states to go to."""

    def __init__(self, bundle, device="cpu"):
        super().__init__(bundle, device)
        if not self.net.goal_dim:
            raise DataError("this policy was trained for one reward (data.reward) and is told nothing; play it without")

    def goal(self, goals=None):
        """To goals [b s] or [s]."""
        return StatePrompt(self, goals)

    def goal_latent(self, goals):
        """As the network takes them, [n s]."""
        seen = self.seen(goals)
        self.check_goals(goals)
        return seen


class FixedPrompt:
    """The same skill everywhere; explained: the share of a reward's variance that it says."""

    def __init__(self, skill, explained=None):
        self.skill, self.explained = skill, explained  # [z]

    def __call__(self, states):
        return self.skill.expand(len(states), -1)

    def aim(self, rows, goals):
        """Goals of some environments changed."""

    def keep(self, rows):
        """Goes on in these environments only."""


class GoalPrompt:
    """A direction towards goals; they may be given, or changed, row by row."""

    def __init__(self, prompts, goals=None):
        self.prompts, self.target = prompts, None
        if goals is not None:
            self.target = prompts.goal_latent(goals)  # b z or 1 z

    def __call__(self, states):
        if self.target is None:
            raise DataError("this prompt has no goal yet; give one to `goal` or `plan`")
        return self.told(states)

    def told(self, states):
        """Skills [b z] for these states."""
        latent = self.prompts.latent(states)
        if len(self.target) not in (1, len(latent)):
            raise DataError(f"{len(self.target)} goals for {len(latent)} states: expected one goal, or one for each")
        return unit(self.towards(latent) - latent)

    def towards(self, latent):
        """The latents [b z] to go to from these."""
        return self.target

    def aim(self, rows, goals):
        """Sets the goals [r s] of the environments bool [b] or int [r] `rows`."""
        new = self.prompts.goal_latent(goals)
        if self.target is None:
            self.target = new.new_zeros(len(rows), new.shape[1])
        self.target[rows] = new

    def keep(self, rows):
        self.target = take(self.target, rows)


class StatePrompt(GoalPrompt):
    """The goal itself, for a policy of goals."""

    def told(self, states):
        return self.target.expand(len(states), -1)


class PlanPrompt(GoalPrompt):
    """By way of midpoints: among the exemplars' latents w the `neighbours` with the least
    max(||w - phi(s)||, ||w - phi(g)||) are averaged, and their mean is the goal of the next of `recursions`.

    The distances of all exemplars to the goals are kept from step to step; all are squared, which keeps their order.
    """

    def __init__(self, prompts, goals, exemplars, neighbours=NEIGHBOURS, recursions=RECURSIONS):
        if exemplars is None:
            raise DataError("a plan looks for midpoints among states of the data: give it some, [m s]")
        metric = prompts.representation.metric
        if metric != "l2":
            raise DataError(f"a plan needs distances between latents (metric=l2), this policy has metric={metric}")
        self.exemplars = prompts.latent(exemplars)  # m z
        if not 1 <= neighbours <= len(self.exemplars) or recursions < 1:
            raise DataError(f"neighbours={neighbours}, recursions={recursions}: expected 1 to {len(self.exemplars)}"
                            " (the exemplars), and at least 1")  # fmt: skip
        self.neighbours, self.recursions, self.far = neighbours, recursions, None
        super().__init__(prompts, goals)
        self.lengths = self.exemplars.square().sum(-1)  # m
        if self.target is not None:
            self.far = self.squared(self.target)  # b m

    def towards(self, latent):
        near, far, target = self.squared(latent), self.far, self.target
        for i in range(self.recursions):
            far = self.squared(target) if i else far
            best = torch.maximum(near, far).topk(self.neighbours, -1, largest=False, sorted=False).indices  # b k
            target = self.exemplars[best].mean(1)
        return target

    def squared(self, latent):
        """Squared distances [b m] of latents [b z] to all exemplars."""
        inner = torch.addmm(self.lengths, latent, self.exemplars.T, alpha=-2)
        return inner.add_(latent.square().sum(-1, keepdim=True))

    def aim(self, rows, goals):
        super().aim(rows, goals)
        if self.far is None:
            self.far = self.target.new_zeros(len(self.target), len(self.exemplars))
        self.far[rows] = self.squared(self.target[rows])

    def keep(self, rows):
        super().keep(rows)
        self.far = take(self.far, rows)


class PromptedActor:
    """Acts on vectors with a policy of skills or goals. Goals are those of the environments, their `goal` [s]."""

    def __init__(self, bundle, prompt=None, seed=0, greedy=True, device="cpu"):
        """prompt: what a method of `Prompts` or `GoalPrompts` returned for this bundle; None = `goal()`."""
        self.prompts = (GoalPrompts if isinstance(bundle.net, GoalPolicy) else Prompts)(bundle, device)
        self.prompt = self.prompts.goal() if prompt is None else prompt
        self.net, self.seed, self.greedy = self.prompts.net, seed, greedy
        self.spaces = Spaces.from_dict(bundle.config["spaces"])
        explained = getattr(self.prompt, "explained", None)
        self.numbers = {} if explained is None else {"explained": explained}  # beside those of the play

    def start(self, slots):
        self.slots, self.generator = list(slots), torch.Generator().manual_seed(self.seed)
        self.needs = not isinstance(self.prompt, FixedPrompt)
        if self.needs and any(getattr(slot.environment, "goal", None) is None for slot in slots):
            raise DataError("this task has no goals for the policy to be told; choose one that has, such as point_maze")

    def keep(self, rows):
        self.slots = [self.slots[i] for i in rows]
        self.prompt.keep(torch.as_tensor(rows))

    @torch.no_grad()
    def act(self, frame):
        """Frame of b environments -> b actions."""
        if self.needs and frame.first.any():
            goals = [slot.environment.goal for slot, first in zip(self.slots, frame.first, strict=True) if first]
            self.prompt.aim(torch.from_numpy(frame.first), torch.as_tensor(np.stack(goals), dtype=torch.float32))
        now = {OBSERVATION: self.prompts.seen(frame.observation), CONDITION: self.prompt(frame.observation)}
        distribution, _, _ = self.net.step(now, None, {})
        action = distribution.mode() if self.greedy else distribution.cpu().sample(self.generator)
        return list(self.spaces.from_unit(self.net.unit(action).cpu().numpy()))


def own_skill(bundle):
    """The skill that a policy was left with (algo=latent), [z]; None: it has to be told one. DataError if damaged."""
    found = bundle.statistics.get("skill")
    if found is None:
        return None
    if not list_of(is_number)(found) or len(found) != bundle.net.latent_dim or not np.isfinite(found).all():
        raise DataError(f"the model's skill is not {bundle.net.latent_dim} numbers but {found!r:.60}; copy it again")
    return unit(torch.tensor(found, dtype=torch.float32))


def unit(x):
    """x [... z] at length 1; 0 stays 0, where a goal is reached."""
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-6)
