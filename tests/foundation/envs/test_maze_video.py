"""Mazes as video: connected maps, pictures that show the agent's cell and no code of it, seeds, keys, the player."""

import time

import numpy as np
import pytest

from foundation.envs.maze_grid import MazeGrid
from foundation.envs.maze_video import BODY, MAZE, MazeVideo, painted, slid
from foundation.envs.registry import make
from pipelines.pixels import encode
from pipelines.schema import DataError
from pipelines.video import open_reader

STILL = np.zeros(2, np.float32)


def press(*keys):
    return {"keys": np.array([key in keys for key in MAZE.keys], np.uint8), "mouse": STILL}


def located(frame, background, shape):
    """The cell in which the picture differs from the empty maze: what a frame alone says about the place."""
    change = np.abs(frame.astype(float) - background).sum(-1)
    change *= change > change.max() / 2
    middle = [(np.indices(change.shape)[axis] + 0.5).ravel() @ change.ravel() / change.sum() for axis in (0, 1)]
    return tuple((np.array(middle) * shape / change.shape).astype(int).tolist())


@pytest.mark.parametrize("size", [(64, 64), (32, 40)])
def test_a_frame_shows_the_cell_of_the_agent_drawn_and_stored(size):
    env = MazeVideo(size, show_goal=False)
    for number in range(4):
        grid, picture, _ = painted("train", number, (5, 0.2), size)
        frames = [picture.frame(cell + 0.5) for cell in grid.cells]
        for cell, frame in zip(grid.cells, frames, strict=True):
            assert located(frame, picture.background, grid.walls.shape) == tuple(cell)
        stored = open_reader(encode(frames, 10, crf=18)).frames(np.arange(len(frames)))
        known = np.float32([env._stored(frame) for frame in frames])
        nearest = [((known - frame) ** 2).sum((1, 2, 3)).argmin() for frame in stored]
        assert nearest == list(range(len(grid)))


def test_the_frames_follow_every_position_of_an_episode():
    env = MazeVideo(show_goal=False, episode_frames=200)
    for seed in range(3):
        frame, _ = env.reset(seed=seed, options={"roam": True})
        player, done = env.player(seed, 0.3), False
        while not done:
            _, _, _, done, info = env.step(player.act())
            frame = env.render()
            inside = np.abs(np.array(info["position"]) % 1 - 0.5) < 0.35  # nearer to an edge a pixel decides
            if inside.all():
                assert located(frame, env.picture.background, env.grid.walls.shape) == tuple(env.grid.cells[env.cell])


def test_maps_are_connected_differ_and_have_loops_on_request():
    rng = np.random.default_rng(0)
    for rooms in (2, 5, 8):
        tree, looped = (MazeGrid.carved(rooms, loops, rng) for loops in (0.0, 0.5))
        assert np.isfinite(tree.distances).all() and len(tree) == 2 * rooms**2 - 1  # rooms, and ways of a tree
        assert np.isfinite(looped.distances).all()
        assert len(MazeGrid.carved(rooms, 1.0, rng)) == 3 * rooms**2 - 2 * rooms
    rows = {tuple(painted(split, n, (5, 0.2), (64, 64))[0].rows) for split in ("train", "heldout") for n in range(20)}
    assert len(rows) == 40


def views(rng, maps, count):
    """(pixels [n d], positions [n 2]) of agents anywhere in mazes."""
    x, y = [], []
    for number in maps:
        grid, picture, _ = painted("train", number, (5, 0.2), (32, 32))
        y += list(grid.cells[rng.integers(len(grid), size=count)] + 0.5 + rng.uniform(-0.2, 0.2, (count, 2)))
        x += [picture.frame(position).ravel() / 255 for position in y[-count:]]
    return np.array(x), np.array(y)


def explained(fitted, other, ridge):
    """R^2 of positions by ridge regression from pixels, on other views than those it was fitted to."""
    (x, y), (new, wanted) = fitted, other
    x, new = x - x.mean(0), new - x.mean(0)
    said = new @ x.T @ np.linalg.solve(x @ x.T + ridge * np.eye(len(x)), y - y.mean(0)) + y.mean(0)
    return 1 - ((said - wanted) ** 2).sum() / ((wanted - wanted.mean(0)) ** 2).sum()


def test_pixels_are_a_linear_code_of_the_place_in_one_maze_only():
    rng = np.random.default_rng(1)
    assert explained(views(rng, [0], 200), views(rng, [0], 100), 0.1) > 0.9
    others = views(rng, range(40), 15), views(rng, range(100, 120), 10)
    assert max(explained(*others, ridge) for ridge in (1, 10, 100)) < 0.1


def test_the_same_seed_and_keys_are_the_same_frames_whatever_came_before():
    env, rng = MazeVideo(episode_frames=60), np.random.default_rng(0)
    keys, runs = rng.integers(2, size=(60, 4)), []
    for seed in (5, 6, 5):
        frames = [env.reset(seed=seed)[0]]
        for row in keys:
            frames.append(env.step({"keys": row, "mouse": STILL})[0])
        runs.append(np.stack(frames))
    np.testing.assert_array_equal(runs[0], runs[2])
    assert not np.array_equal(runs[0][0], runs[1][0])


def test_keys_move_and_walls_hold():
    walls = MazeGrid.from_rows(["#####", "#...#", "#.###", "#####"]).walls
    assert slid(walls, (1.5, 1.5), 1, 0.2) == (1.5, 1.7)
    assert slid(walls, (1.5, 3.5), 1, 0.4) == pytest.approx((1.5, 4 - BODY), abs=1e-5)
    assert slid(walls, (1.5, 2.5), 0, 0.4) == pytest.approx((2 - BODY, 2.5), abs=1e-5)
    assert slid(walls, (1.5, 1.8), 0, 0.4) == pytest.approx((2 - BODY, 1.8), abs=1e-5)  # half over the opening
    assert slid(walls, (1.5, 1.5), 0, 0.4) == (1.9, 1.5)
    env = MazeVideo(show_goal=False, terminate=False)
    env.reset(seed=0)
    before = env.position
    env.step(press("up", "down"))
    assert env.position == before  # both are neither
    for _ in range(100):
        env.step(press("left", "up"))
    row, column = env.position
    assert env.grid.walls[int(row) - 1, int(column)] and env.grid.walls[int(row), int(column) - 1]
    assert (row % 1, column % 1) == pytest.approx((BODY, BODY), abs=1e-5)


def test_the_player_reaches_the_goal_about_as_soon_as_it_can():
    env = make("maze_video", split="heldout")
    for seed in range(10):
        env.reset(seed=seed)
        steps = env.grid.distances[env.cell, env.target]
        player, rewards, info = env.player(), [], {}
        while "episode" not in info:
            _, reward, terminated, _, info = env.step(player.act())
            rewards.append(reward)
        assert terminated and info["episode"]["success"] and rewards == [-1.0] * (len(rewards) - 1) + [0.0]
        assert 4 * steps - 4 <= len(rewards) <= 6 * steps  # 5 frames a cell, fewer where corners are cut
    env.reset(seed=1, options={"map": 7})
    assert env.map == 7 and located(env.goal, env.picture.background, env.grid.walls.shape)


def test_goals_can_be_few_and_held_out():
    env = MazeVideo(maps=2, goals=[0, 1], episode_frames=5)
    found = set()
    for seed in range(40):
        env.reset(seed=seed)
        found.add((env.map, int(np.flatnonzero(env.places == env.target)[0])))
    assert found == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_thousands_of_frames_a_second():
    env = MazeVideo()
    env.reset(seed=0, options={"roam": True})
    player, start = env.player(0, 0.2), time.process_time()
    for _ in range(500):
        env.step(player.act())
    assert 500 / (time.process_time() - start) > 3000


@pytest.mark.parametrize(
    ("values", "message"),
    [({"rooms": 1}, "rooms=1"), ({"loops": 2}, "loops=2"), ({"speed": 1.0}, "speed=1.0"), ({"maps": 0}, "maps=0"),
     ({"split": "test"}, "heldout"), ({"goals": [25]}, "0..24"), ({"size": (16, 16)}, "2 pixels a cell"),
     ({"size": (33, 64)}, "even"), ({"reward": "dense"}, "sparse")],
)  # fmt: skip
def test_bad_settings_say_what_was_expected(values, message):
    with pytest.raises(DataError, match=message):
        MazeVideo(**values)
    with pytest.raises(DataError, match="share of frames"):
        MazeVideo().player(0, 1.0)


def test_frames_are_those_that_stored_video_shows():
    env, close = MazeVideo((32, 32)), []
    for seed in range(3):
        seen, drawn = [env.reset(seed=seed)[0]], [env.render()]
        for _ in range(20):
            seen.append(env.step(press("right"))[0])
            drawn.append(env.render())
        stored = open_reader(encode(drawn, 10, crf=18)).frames(np.arange(21))
        close.append([np.abs(np.float32(frames) - stored).mean() for frames in (seen, drawn)])
    assert all(one < 2.5 and one < other / 2 for one, other in close)
