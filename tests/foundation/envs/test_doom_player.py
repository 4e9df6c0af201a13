"""The scripted player: plays well, moves like a hand, rests a third of the time."""

import numpy as np
import pytest

from foundation.envs.doom import DoomEnv
from foundation.envs.doom_player import Hand, ScriptedPlayer, around, wrap
from foundation.envs.registry import make
from pipelines.actions import DOOM, ActionCodec


def run(env, seed, episodes):
    player, keys, mouse, ends = ScriptedPlayer(env, seed), [], [], []
    for episode in range(episodes):
        env.reset(seed=1000 * seed + episode)
        player.reset()
        done = False
        while not done:
            action = player.act()
            keys.append(action["keys"])
            mouse.append(action["mouse"])
            *_, terminated, truncated, info = env.step(action)
            done = terminated or truncated
        ends.append(info["episode"])
    return np.array(keys), np.array(mouse), ends


@pytest.fixture(scope="module")
def home():
    env = make("doom_my_way_home", privileged=True)
    yield run(env, 0, 5)
    env.close()


def test_reaches_the_armour(home):
    _, _, ends = home
    assert sum(end["success"] for end in ends) >= 4


def test_actions_are_in_range(home):
    keys, mouse, _ = home
    assert keys.dtype == np.uint8
    assert set(np.unique(keys)) <= {0, 1}
    assert np.abs(mouse).max() <= DOOM.camera_max
    assert np.isfinite(mouse).all()


def test_a_third_of_the_frames_is_null(home):
    keys, mouse, _ = home
    codec = ActionCodec(DOOM)
    assert 0.28 < codec.is_null(keys, codec.to_bins(mouse)).mean() < 0.4


def test_every_movement_occurs_and_keys_are_held(home):
    keys, mouse, _ = home
    assert (keys[:, :4].mean(0) > 0.01).all()
    assert keys[:, 0].mean() > 0.25  # forward
    presses = (np.diff(keys[:, 0].astype(int)) == 1).sum()
    assert keys[:, 0].sum() / presses > 2.5  # frames a press
    assert mouse[:, 0].std() > 0.1
    assert 2 < mouse[:, 1].std() < 10


def test_equal_seeds_play_equally():
    def trace():
        env = DoomEnv(["my_way_home:map01"], privileged=True, episode_tics=300)
        keys, mouse, _ = run(env, 3, 1)
        env.close()
        return keys, mouse

    for first, second in zip(trace(), trace(), strict=True):
        assert np.array_equal(first, second)


def test_kills_what_comes():
    env = make("doom_defend_the_center", privileged=True, episode_tics=700)
    keys, _, ends = run(env, 1, 1)
    assert ends[0]["kills"] >= 4
    assert keys[:, DOOM.keys.index("attack")].mean() > 0.05
    env.close()


def test_a_hand_turns_smoothly_and_stops():
    hand, rest, rates = Hand(np.random.default_rng(0), speed=10, acceleration=3), 90.0, []
    for _ in range(40):
        rates.append(hand.turn(rest))
        rest -= rates[-1]
    rates = np.array(rates)
    assert abs(rest) < 7  # within the dead zone
    assert rates.max() <= 13  # the speed and its tremor
    assert np.abs(np.diff(rates)).max() < 10
    assert (rates[-5:] == 0).all()


@pytest.mark.parametrize(
    ("bearing", "keys"),
    [(0, {"forward"}), (45, {"forward", "right"}), (-90, {"left"}), (180, {"backward"}), (-135, {"left", "backward"})],
)
def test_keys_around_the_view(bearing, keys):
    assert set(around(bearing)) == keys


def test_wrap():
    assert [wrap(d) for d in (0, 190, -190, 360, 180)] == [0, -170, 170, 0, -180]
