"""Keys and values kept from step to step say what a window computed again says, while the episode fits the context."""

import pytest
import torch

from models.decision_transformer import DecisionTransformer
from models.modulation import Modulated
from models.rolling import Rolling

SIZES = {"state_dim": 3, "action_dim": 2, "context": 5, "width": 16, "layers": 2, "heads": 2, "max_timestep": 40}


def policies(layout, n_actions=None, **options):
    torch.manual_seed(0)
    policy = DecisionTransformer(**{**SIZES, **options}, layout=layout, n_actions=n_actions).eval()
    for parameter in policy.parameters():  # larger than at the start, where little depends on the history
        parameter.data.mul_(3)
    return policy, Rolling(policy)


@torch.no_grad()
def outputs(policy, first, seed=0):
    """[t b d] latents over the steps of `first`, bool [t b], with random inputs."""
    generator, b = torch.Generator().manual_seed(seed), first.shape[1]
    state, found, time = policy.initial_state(b), [], torch.zeros(b, dtype=torch.long)
    discrete = policy.n_actions is not None
    for t, starts in enumerate(first):
        time = torch.where(starts, 0, time + 1)
        shape = (b,) if discrete and policy.layout != "tokenised" else (b, 2)
        action = torch.randint(4, shape, generator=generator) if discrete else torch.randn(shape, generator=generator)
        draw = {name: torch.randn(b, n, generator=generator) for name, n in (("observation", 3), ("condition", 1))}
        now = {**draw, "timestep": time, **({"action": action} if t else {})}
        if policy.layout == "tokenised" and t:
            now["reward"] = torch.randn(b, 1, generator=generator)
        distribution, latent, state = policy.step(now, starts, state)
        found.append(torch.cat([latent, distribution.mode().reshape(b, -1).float()], -1))
    return torch.stack(found)


@pytest.mark.parametrize(
    ("layout", "n_actions"),
    [("interleaved", None), ("interleaved", 4), ("merged", None), ("merged", 4), ("tokenised", 4)],
)
def test_same_while_the_episode_fits_the_context(layout, n_actions):
    exact, rolling = policies(layout, n_actions)
    first = torch.zeros(5, 3, dtype=torch.bool)
    first[0] = True
    first[2, 1] = first[4, 2] = True  # episodes that end while others go on
    assert (outputs(exact, first) - outputs(rolling, first)).abs().max() < 1e-5


def test_one_layer_is_the_same_for_ever():
    """Keys and values of one layer depend on their own token alone, so nothing of forgotten steps is in them.

    (With layout=merged a token knows the action before, which the first one of a window does not.)
    """
    exact, rolling = policies("interleaved", layers=1)
    first = torch.zeros(14, 2, dtype=torch.bool)
    first[0] = first[8, 1] = True
    assert (outputs(exact, first) - outputs(rolling, first)).abs().max() < 1e-5


def test_more_layers_remember_traces_and_memory_stays_bounded():
    exact, rolling = policies("interleaved")
    first = torch.zeros(30, 2, dtype=torch.bool)
    first[0] = True
    difference = (outputs(exact, first) - outputs(rolling, first)).abs().amax((1, 2))
    assert difference[:5].max() < 1e-5 < difference[5:].min()
    state = rolling.initial_state(2)
    now = {"observation": torch.zeros(2, 3), "condition": torch.zeros(2, 1), "timestep": torch.zeros(2).long()}
    for _ in range(20):
        _, _, state = rolling.step(now, torch.zeros(2, dtype=torch.bool), state)
    assert state["visible"].shape[1] == state["key0"].shape[2] == 5 * 3 - 1


def test_policies_without_keys_and_values_are_refused():
    base = DecisionTransformer(**SIZES)
    for policy in (torch.nn.Linear(2, 2), Modulated(base)):
        with pytest.raises(ValueError, match="cache=rolling"):
            Rolling(policy)
