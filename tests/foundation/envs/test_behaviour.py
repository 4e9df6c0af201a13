"""Who plays: shares to within one episode, noise that is executed but not the label, and where an episode is cut."""

import numpy as np
import pytest

from foundation.envs.behaviour import Behaviour, Variant, assign, play, variants
from foundation.envs.states import Gymnasium, StateEnv
from pipelines.schema import DataError
from pipelines.trajectories import Spaces

DEFAULTS = {"behaviour": "scripted", "scale": 1.0, "noise": 0.3, "noisy": 0.5, "mix": None}


class Counter(StateEnv):
    """Observes [steps, last action]; succeeds in step 2 only."""

    def __init__(self, scripted=0.5):
        super().__init__(Spaces(2, 1, low=(0.0,), high=(4.0,)), 5, 6)
        self.wanted = scripted

    def _begin(self, seed):
        self.n = 0
        return [0, 0]

    def _advance(self, action):
        self.n += 1
        return [self.n, action[0]], 1.0, False, False, self.n == 2

    def scripted(self):
        return lambda observation: np.array([self.wanted], np.float32)


def names(n, **changes):
    return [variant.name for variant in assign(variants({**DEFAULTS, **changes}), n)]


def test_variants_take_turns_by_their_shares():
    assert names(4) == ["scripted", "scripted+0.3"] * 2
    assert names(4, noise=0.0) == ["scripted"] * 4
    assert names(4, noisy=1.0, scale=0.5) == ["scripted*0.5+0.3"] * 4
    assert names(3, mix=[0, 0.3, 0.6]) == ["scripted", "scripted+0.3", "scripted+0.6"]
    assert names(4, scale=[0.1, 1], noise=0.0) == ["scripted*0.1", "scripted"] * 2
    assert sorted(names(4, scale=[0.1, 1])) == ["scripted", "scripted*0.1", "scripted*0.1+0.3", "scripted+0.3"]
    assert names(2, behaviour="expert", noise=0.0) == ["scripted"] * 2
    mixed = names(100, mix={"expert": 0.05, "random": 0.95})
    assert mixed.count("scripted") == 5
    assert mixed[:60] == names(60, mix={"expert": 0.05, "random": 0.95})  # more episodes change none
    for n in range(1, 100):
        assert abs(mixed[:n].count("scripted") - 0.05 * n) < 1


@pytest.mark.parametrize(
    "changes",
    [{"behaviour": "player"}, {"noise": -1.0}, {"noisy": 2.0}, {"mix": {"novice": 1.0}}, {"mix": {"random": 0.0}},
     {"scale": []}],
)  # fmt: skip
def test_settings_that_make_no_sense(changes):
    with pytest.raises(DataError, match="expected behaviours among"):
        variants({**DEFAULTS, **changes})


def behaviour(env, *variant):
    return Behaviour(env, Variant(*variant), np.random.default_rng(0))


def test_noise_is_executed_and_clipped_but_not_wanted():
    behave = behaviour(Counter(scripted=3.0), "scripted", 0.5)
    clean, executed = np.stack([behave(None) for _ in range(500)])[:, :, 0].T
    assert (clean == 3).all()
    assert executed.max() == 4 and executed.min() >= 0
    assert abs((executed < 4).mean() - 0.84) < 0.05  # std 0.5 of a half width of 2: one std to the bound


def test_scale_is_about_the_middle_of_the_bounds():
    clean, executed = behaviour(Counter(scripted=3.0), "scripted", 0.0, 0.5)(None)
    assert clean == executed == 2.5


def test_random_play_fills_the_bounds():
    behave = behaviour(Counter(), "random")
    actions = np.array([behave(None)[1] for _ in range(300)])
    assert actions.min() < 0.1 and actions.max() > 3.9 and actions.dtype == np.float32


def test_choices_are_random_too_and_nobody_has_scripted_them():
    env = Gymnasium("CartPole-v1")
    behave = behaviour(env, "random")
    assert {behave(None)[1] for _ in range(20)} == {0, 1}
    with pytest.raises(DataError, match="no scripted policy"):
        behaviour(env, "scripted")
    with pytest.raises(DataError, match=r"states\.policy"):
        behaviour(env, "policy")
    env.close()


@pytest.mark.parametrize(("stop_after", "steps"), [(None, 6), (0, 2), (1, 3), (9, 6)])
def test_an_episode_is_cut_after_its_first_success(stop_after, steps):
    env = Counter()
    arrays, success = play(env, behaviour(env, "scripted", 0.5), 0, "clean", stop_after)
    assert success is True
    assert arrays["observation"][:, 0].tolist() == list(range(steps))
    assert arrays["final_observation"][0] == steps
    assert arrays["truncated"].tolist() == [False] * (steps - 1) + [True]
    assert not arrays["terminated"].any()
    assert (arrays["action"] == 0.5).all()


def test_the_label_may_be_what_was_executed():
    env = Counter()
    arrays, _ = play(env, behaviour(env, "scripted", 0.5), 0, "executed")
    reached = np.append(arrays["observation"][1:, 1], arrays["final_observation"][1])
    np.testing.assert_array_equal(arrays["action"][:, 0], reached)
    assert len(np.unique(reached)) > 2


class Patient(Counter):
    """Its scripted player remembers how often it was asked."""

    def scripted(self):
        asked = []
        return lambda observation: asked.append(observation) or np.float32([min(len(asked), 4)])


@pytest.mark.parametrize("variant", [("scripted", 0.5), ("scripted", 0.0, 0.5), ("random",)])
def test_the_best_action_is_stored_whoever_plays(variant):
    env = Patient()
    arrays, _ = play(env, behaviour(env, *variant), 0, "executed")
    assert arrays["optimal_action"][:, 0].tolist() == [1, 2, 3, 4, 4, 4]  # asked once a step, on what was acted on
    assert (arrays["action"] != arrays["optimal_action"]).any()


def test_nobody_knows_the_best_action_without_a_scripted_player():
    env = Gymnasium("CartPole-v1", episode_steps=5)
    arrays, _ = play(env, behaviour(env, "random"), 0, "clean")
    assert "optimal_action" not in arrays
    env.close()
