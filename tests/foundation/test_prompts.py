"""Prompts of a policy of skills: skills by hand, plans by brute force, what cannot be told."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from foundation.prompts import FixedPrompt, PromptedActor, Prompts, fitted, unit
from foundation.rollout import Frame
from models.hilbert import HilbertPolicy
from models.in_context import InContext
from pipelines.checkpoint import Bundle
from pipelines.schema import DataError
from pipelines.trajectories import Spaces

SPACES = Spaces(3, 2, low=(-2.0, -1.0), high=(2.0, 1.0))


def bundle(statistics=None, **options):
    torch.manual_seed(0)
    net = HilbertPolicy(3, 2, latent_dim=4, width=16, layers=1, **options)
    return Bundle(net, None, None, 1.0, {"spaces": SPACES.to_dict()}, statistics or {}, "")


def states(n, seed=0):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))


def test_a_goal_is_a_direction_that_is_taken_anew():
    prompts = Prompts(bundle())
    s, g = states(5), states(5, 1)
    phi = prompts.net.representation.latent
    skill = prompts.goal(g)(s)
    difference = phi(g) - phi(s)
    torch.testing.assert_close(skill, difference / difference.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(prompts.goal(g[0])(s)[0], skill[0])  # one goal for all
    assert (prompts.goal(g)(g) == 0).all()  # there: no direction, and no division by 0


def test_states_are_normalised_as_in_training():
    mean, std = [1.0, 2.0, 3.0], [2.0, 2.0, 0.5]
    normal, plain = Prompts(bundle({"state_mean": mean, "state_std": std})), Prompts(bundle())
    raw = states(4) * torch.tensor(std) + torch.tensor(mean)
    torch.testing.assert_close(normal.latent(raw), plain.latent(states(4)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("features", ["difference", "state", "centred"])
def test_a_reward_recovers_the_skill_that_made_it(features):
    prompts = Prompts(bundle(features=features))
    now, following = states(500), states(500, 1)
    planted = unit(torch.tensor([1.0, -2.0, 0.5, 3.0]))
    reward = prompts.features(now, following) @ planted
    prompt = prompts.reward(now, following, reward + 7, ridge=0)  # a constant changes nothing
    torch.testing.assert_close(prompt(states(2)), planted.expand(2, -1), atol=1e-4, rtol=1e-4)
    assert prompt.explained == pytest.approx(1)
    noisy = prompts.reward(now, following, reward + 0.01 * torch.randn(500), ridge=1e-3)
    assert noisy(states(1))[0] @ planted > 0.99 and 0.5 < noisy.explained < 1


def test_a_policy_of_differences_climbs_a_reward_of_places():
    prompts = Prompts(bundle())  # features=difference
    now, following = states(500), states(500, 1)
    planted = unit(torch.tensor([1.0, -2.0, 0.5, 3.0]))
    prompt = prompts.reward(now, following, prompts.latent(following) @ planted, ridge=0)
    torch.testing.assert_close(prompt(states(1))[0], planted, atol=1e-4, rtol=1e-4)
    assert prompt.explained == pytest.approx(1)


def test_a_ridge_shrinks_what_hardly_varies():
    feature = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0)).double() * torch.tensor([10.0, 0.1])
    reward = feature @ torch.tensor([1.0, 1.0]).double()
    explained, free = fitted(feature, reward, 0.0)
    torch.testing.assert_close(free, torch.ones(2).double())
    assert explained == pytest.approx(1)
    variance = feature.var(0, correction=0)
    shrunk = fitted(feature, reward, 0.1)[1]  # w = cov / (var + ridge), as the two are nearly uncorrelated
    torch.testing.assert_close(shrunk, variance / (variance + 0.1 * variance.mean()), atol=2e-3, rtol=0.05)


def test_a_reward_that_no_skill_says_is_warned_of(caplog):
    prompts, now = Prompts(bundle()), states(2000)
    with caplog.at_level(logging.WARNING):
        prompt = prompts.reward(now, states(2000, 1), torch.rand(2000, generator=torch.Generator().manual_seed(3)))
    assert prompt.explained < 0.05 and "that is little" in caplog.text


def test_a_goal_lies_among_the_states_of_training(caplog):
    prompts = Prompts(bundle({"state_low": [0, 0, 0], "state_high": [1.0, 2.0, 3.0]}))
    inside, outside, far = [[1.0, 2.0, 0.0]], [[1.5, 2.0, 0.0]], [[0.0, 4.5, 0.0]]
    with caplog.at_level(logging.WARNING):
        prompts.goal(inside)
        assert not caplog.text
        prompts.goal(outside)
        assert "a goal lies 0.5 outside" in caplog.text
    for told in (lambda: prompts.goal(far), lambda: prompts.plan(far, states(9), neighbours=2),
                 lambda: prompts.goal().aim(torch.tensor([True]), torch.tensor(far))):  # fmt: skip
        with pytest.raises(DataError, match=r"far outside of the states .* give one among them"):
            told()
    with pytest.raises(DataError, match="state_low, state_high are not 3 numbers"):
        Prompts(bundle({"state_low": [0, 0], "state_high": [1, 1]}))


def test_a_demonstration_leads_from_its_first_to_its_last_state():
    prompts = Prompts(bundle())
    shown = states(6)
    phi = prompts.latent(shown)
    torch.testing.assert_close(prompts.demonstration(shown)(states(1))[0], unit(phi[-1] - phi[0]))


@pytest.mark.parametrize("recursions", [1, 3])
def test_plans_are_those_of_a_search_through_everything(recursions):
    prompts = Prompts(bundle())
    s, g, exemplars = states(4), states(4, 1), states(200, 2)
    w, phi_s, target = prompts.latent(exemplars), prompts.latent(s), prompts.latent(g).clone()
    for _ in range(recursions):
        for b in range(4):
            cost = torch.maximum((w - phi_s[b]).norm(dim=-1), (w - target[b]).norm(dim=-1))
            target[b] = w[cost.argsort()[:7]].mean(0)
    plan = prompts.plan(g, exemplars, neighbours=7, recursions=recursions)
    torch.testing.assert_close(plan(s), unit(target - phi_s), atol=1e-5, rtol=1e-4)
    plan.keep(torch.tensor([1, 3]))
    torch.testing.assert_close(plan(s[[1, 3]]), unit(target - phi_s)[[1, 3]], atol=1e-5, rtol=1e-4)
    later = prompts.plan(None, exemplars, neighbours=7, recursions=recursions)
    later.aim(torch.ones(4, dtype=torch.bool), g)
    torch.testing.assert_close(later(s), unit(target - phi_s), atol=1e-5, rtol=1e-4)


def slots(goals):
    return [SimpleNamespace(environment=SimpleNamespace(goal=goal)) for goal in goals]


def frame(observation, first):
    n = len(first)
    return Frame(observation.numpy(), np.array(first), np.ones(n, bool), np.zeros(n, np.float32))


def test_the_actor_follows_the_goals_of_its_environments():
    actor = PromptedActor(bundle())
    s, g = states(3), states(3, 1)
    cells = slots(g.numpy())
    actor.start(cells)
    actions = np.stack(actor.act(frame(s, [True] * 3)))
    skill = actor.prompts.goal(g)(s)
    with torch.no_grad():
        mode = actor.net({"observation": s[:, None], "condition": skill[:, None]})[0].mode()[:, 0]
    np.testing.assert_allclose(actions, SPACES.from_unit(mode.numpy()), rtol=1e-5)
    cells[1].environment.goal = g[0].numpy()  # no news until an episode begins
    np.testing.assert_array_equal(np.stack(actor.act(frame(s, [False] * 3))), actions)
    changed = np.stack(actor.act(frame(s, [False, True, False])))
    assert (changed[1] != actions[1]).any() and (changed[0] == actions[0]).all()
    actor.keep(np.array([0, 2]))
    np.testing.assert_array_equal(np.stack(actor.act(frame(s[[0, 2]], [False] * 2))), actions[[0, 2]])
    fixed = PromptedActor(bundle(), FixedPrompt(skill[0]))
    fixed.start(slots([None]))  # needs no goal
    assert len(fixed.act(frame(s[:1], [True]))) == 1


def test_what_cannot_be_told():
    prompts, s = Prompts(bundle()), states(20)
    for call, message in (
        (lambda: prompts.reward(s[:3], s[:3], torch.rand(3)), "3 samples cannot tell 4 latent numbers apart"),
        (lambda: prompts.reward(s, s, torch.ones(20)), "all 20 rewards are 1"),
        (lambda: prompts.reward(s, s, torch.full((20,), torch.nan)), "no finite numbers"),
        (lambda: prompts.reward(s, s, torch.rand(7)), "20 steps has 7 rewards"),
        (lambda: prompts.reward(s, s, torch.rand(20), ridge=-1), "ridge=-1"),
        (lambda: prompts.reward(s, s, torch.rand(20), ridge=float("inf")), "ridge=inf"),
        (lambda: prompts.reward(s[:1].repeat(20, 1), s[:1].repeat(20, 1), torch.rand(20)), "all at one place"),
        (lambda: prompts.goal(s[:2])(s[:3]), "2 goals for 3 states"),
        (lambda: prompts.demonstration(s[:1].repeat(5, 1)), "5 states lead nowhere"),
        (lambda: Prompts("outputs/hilp"), r"hub\.load\('outputs/hilp'\)"),
        (lambda: prompts.goal(torch.rand(2)), "expected 3 numbers each"),
        (lambda: prompts.goal([float("nan")] * 3), "no finite number"),
        (lambda: prompts.goal()(s), "no goal yet"),
        (lambda: prompts.plan(s), "midpoints among states of the data"),
        (lambda: prompts.plan(s, s, neighbours=30), "expected 1 to 20"),
        (lambda: prompts.demonstration(s[:1]), "1 states shows no way"),
        (lambda: Prompts(bundle(metric="inner")).plan(s, s), "metric=inner"),
        (lambda: PromptedActor(bundle()).start(slots([None])), "no goals"),
        (lambda: Prompts(Bundle(InContext(3), None, None, 1.0, {}, {}, "")), "this is a InContext"),
    ):
        with pytest.raises(DataError, match=message):
            call()
