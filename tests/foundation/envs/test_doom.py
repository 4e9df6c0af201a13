"""The engine behind the human interface: what a key or a degree of mouse motion does, and what a seed decides."""

import numpy as np
import pytest
import vizdoom

from foundation.envs.doom import DoomEnv
from foundation.envs.doom_engine import FACTS
from pipelines.actions import DOOM
from pipelines.schema import DataError

HOME, PIT = ["my_way_home:map01"], ["health_gathering_supreme:map01"]
ANGLE, PITCH = FACTS.index("angle"), FACTS.index("pitch")


def action(*keys, mouse=(0.0, 0.0)):
    return {"keys": np.array([key in keys for key in DOOM.keys], np.uint8), "mouse": np.array(mouse, np.float32)}


def wrap(degrees):
    return (degrees + 180) % 360 - 180


@pytest.fixture(scope="module")
def home():
    env = DoomEnv(HOME)
    yield env
    env.close()


def test_spaces_and_frames(home):
    observation, info = home.reset(seed=0)
    assert home.observation_space.contains(observation)
    assert observation.shape == (120, 160, 3)
    assert home.action_space.contains(action("forward", mouse=(1, -2)))
    assert info["map"] == "my_way_home:MAP01"
    assert home.fps == 17.5


def test_mouse_is_degrees_per_frame(home):
    home.reset(seed=0)
    before = home.facts.copy()
    home.step(action(mouse=(0, 10)))  # right by 10 degrees: the engine's angle counts to the left
    assert wrap(home.facts[ANGLE] - before[ANGLE]) == pytest.approx(-10, abs=0.05)
    home.step(action(mouse=(5, 0)))
    assert home.facts[PITCH] - before[PITCH] == pytest.approx(5, abs=0.05)  # down
    home.step(action(mouse=(-8, -10)))
    assert home.facts[PITCH] - before[PITCH] == pytest.approx(-3, abs=0.05)
    assert wrap(home.facts[ANGLE] - before[ANGLE]) == pytest.approx(0, abs=0.05)


def test_mouse_is_clipped_at_the_spec(home):
    home.reset(seed=0)
    before = home.facts[ANGLE]
    home.step(action(mouse=(0, 90)))
    assert wrap(home.facts[ANGLE] - before) == pytest.approx(-DOOM.camera_max, abs=0.05)


@pytest.mark.parametrize(("key", "degrees"), [("forward", 0), ("backward", 180), ("left", 90), ("right", -90)])
def test_keys_move_along_the_view(home, key, degrees):
    home.reset(seed=2)
    before = home.facts.copy()
    for _ in range(3):
        home.step(action(key))
    dx, dy = home.facts[:2] - before[:2]
    assert np.hypot(dx, dy) > 5
    assert abs(wrap(np.degrees(np.arctan2(dy, dx)) - before[ANGLE] - degrees)) < 5


def test_a_turn_shows_in_the_next_frame(home):
    observation, _ = home.reset(seed=2)
    same, *_ = home.step(action())
    turned, *_ = home.step(action(mouse=(0, 15)))
    change = np.abs(turned.astype(int) - same).mean()
    assert change > 5
    assert change > 10 * np.abs(same.astype(int) - observation).mean()


def play(env, seed, n=30):
    rng = np.random.default_rng(0)
    frames = [env.reset(seed=seed)[0]]
    for _ in range(n):
        keys = [key for key in DOOM.keys[:4] if rng.random() < 0.5]
        frames.append(env.step(action(*keys, mouse=rng.normal(0, 5, 2)))[0])
    return np.stack(frames)


def test_a_seed_decides_the_frames(home):
    first, other = play(home, 7), play(home, 8)
    assert np.array_equal(first, play(home, 7))
    assert not np.array_equal(first, other)


def test_another_engine_shows_the_same(home):
    env = DoomEnv(HOME)
    assert np.array_equal(play(env, 7), play(home, 7))
    env.close()


def test_reset_without_seed_goes_on_from_the_last():
    def starts(seed):
        env = DoomEnv(HOME, seed=seed)
        places = [tuple(env.reset()[1]["facts"][:2]) for _ in range(6)]
        env.close()
        return places

    assert starts(3) == starts(3)
    assert len(set(starts(3))) > 1


def test_far_start():
    far = [[240, -176], [544, -672]]
    env = DoomEnv(HOME, start="far", starts={"far": far})
    places = {tuple(np.round(env.reset(seed=s)[1]["facts"][:2])) for s in range(8)}
    assert places == {(240, -176), (544, -672)}
    env.close()


def test_random_start_walks_the_map():
    env = DoomEnv(["freedoom2:MAP04"], start="random")
    places = set()
    for seed in range(4):
        env.reset(seed=seed)
        assert env.grid.walkable.flat[env.grid.cell(env.facts[:2])]
        places.add(tuple(np.round(env.facts[:2])))
    assert len(places) == 4
    env.close()


def test_truncation_is_not_termination():
    env = DoomEnv(HOME, episode_tics=60, living_reward=-0.01)
    env.reset(seed=0)
    for _ in range(40):
        observation, reward, terminated, truncated, info = env.step(action())
        assert env.observation_space.contains(observation)
        if truncated:
            break
        assert "episode" not in info
    assert truncated
    assert not terminated
    assert reward == pytest.approx(-0.02, abs=0.011)  # two tics; the last frame may be cut to one
    assert info["episode"]["return"] < 0
    env.close()


def test_death_terminates_and_is_no_success():
    env = DoomEnv(PIT, goal=True, death_penalty=100.0, living_reward=1.0, episode_tics=2100)
    env.reset(seed=0)
    for _ in range(1000):  # the floor kills who stands still
        _, reward, terminated, truncated, info = env.step(action())
        if terminated or truncated:
            break
    assert terminated
    assert reward < -90
    assert info["episode"]["success"] is False
    env.close()


def test_use_opens_the_door_that_the_map_says():
    env = DoomEnv(["freedoom2:MAP01"], skill=1)
    env.reset(seed=0)
    level = env.grid.level
    line = np.flatnonzero(level.door)[0]
    middle, along = (level.start[line] + level.end[line]) / 2, level.end[line] - level.start[line]
    front = np.array([along[1], -along[0]]) / np.hypot(*along)  # the right-hand side
    env._game.send_game_command("warp {:.0f} {:.0f}".format(*(middle + 40 * front)))
    for _ in range(12):
        env.step(action())
    toward = np.degrees(np.arctan2(*-front[::-1]))
    while abs(turn := wrap(env.facts[ANGLE] - toward)) > 0.5:
        env.step(action(mouse=(0, np.clip(turn, -20, 20))))

    def walk():
        for _ in range(25):
            env.step(action("forward"))
        return float((env.facts[:2] - middle) @ front)  # units before the door

    assert level.use_target(env.facts[:2], env.facts[ANGLE]) == line
    assert walk() > 0
    env.step(action("use"))
    assert walk() < -16
    env.close()


def test_disabled_keys_do_nothing():
    env = DoomEnv(HOME, enabled_keys=["attack"])
    env.reset(seed=2)
    before = env.facts[:2].copy()
    for _ in range(3):
        env.step(action("forward"))
    assert np.array_equal(env.facts[:2], before)
    env.close()


def test_bonus_counts_squares():
    env = DoomEnv(HOME, bonus={"cell": 1.0, "cell_units": 32})
    env.reset(seed=2)
    total = sum(env.step(action("forward"))[1] for _ in range(12))
    assert total >= 3
    assert total == env._episode["cells"] - 1  # the first square is no discovery
    env.close()


def test_the_engine_is_silent_and_leaves_no_files(tmp_path, monkeypatch):
    arguments = []
    add = vizdoom.DoomGame.add_game_args
    monkeypatch.setattr(vizdoom.DoomGame, "add_game_args", lambda game, text: (arguments.append(text), add(game, text)))
    monkeypatch.chdir(tmp_path)
    env = DoomEnv(HOME)
    env.reset(seed=0)
    assert "-nosound" in arguments
    env.close()
    assert not list(tmp_path.iterdir())


def test_scaled_frames_are_those_of_stored_video():
    env, small = DoomEnv(HOME), DoomEnv(HOME, size=(64, 80))
    large, little = env.reset(seed=0)[0], small.reset(seed=0)[0]
    assert little.shape == (64, 80, 3)
    assert small.observation_space.contains(little)
    mean = large[:, :, :].reshape(-1, 3).mean(0)
    assert np.abs(little.reshape(-1, 3).mean(0) - mean).max() < 3
    env.close()
    small.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"maps": ["nowhere:MAP01"]}, "expected <wad>:<map>"),
        ({"maps": ["freedoom2:MAP99"]}, "MAP01"),
        ({"maps": {"train": HOME}, "split": "test"}, "split 'test'"),
        ({"maps": HOME, "start": "moon"}, "start 'moon'"),
        ({"maps": HOME, "size": (63, 80)}, "even"),
    ],
)
def test_bad_settings_say_what_to_do(arguments, message):
    with pytest.raises(DataError, match=message):
        DoomEnv(**arguments)
