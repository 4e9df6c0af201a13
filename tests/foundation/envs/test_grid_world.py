"""Grid worlds: steps by hand and cell by cell against MiniGrid, labels against a search, layouts and goals."""

from collections import deque

import pytest
import torch

from foundation.envs.grid_world import HEADINGS, GridWorld
from foundation.envs.worlds import interact, per_row
from foundation.learners import Optimal
from pipelines.schema import ACTION, NEXT_OBSERVATION, OBSERVATION, REWARD, DataError
from tests.foundation.in_context import generator

WORLDS = [GridWorld(size=6), GridWorld(size=7, walls="four_rooms")]
EVERY = pytest.mark.parametrize("world", WORLDS, ids=lambda w: w.walls)


def plan(world, openings, goal):
    """The cells without walls, as text would show them: one task, plain loops."""
    n, middle = world.size, world.size // 2
    free = {(x, y) for x in range(1, n - 1) for y in range(1, n - 1)}
    if world.walls == "four_rooms":
        upper, lower, left, right = openings
        free -= {(middle, y) for y in range(n)} | {(x, middle) for x in range(n)}
        free |= {(middle, upper), (middle, lower), (left, middle), (right, middle)}
    assert goal in free
    return free


def after(free, pose, action):
    """MiniGrid's documented semantics: 0 turns left, 1 turns right, 2 goes forward unless the cell is a wall."""
    x, y, heading = pose
    if action < 2:
        return x, y, (heading + (1 if action else -1)) % 4
    dx, dy = HEADINGS[heading]
    return (x + dx, y + dy, heading) if (x + dx, y + dy) in free else pose


def pose_of(observation):
    x, y, *heading = (int(value) for value in observation)
    return x, y, HEADINGS.index(tuple(heading))


def cases(world, b=6, seed=0):
    """(free cells, goal, task of one row) of some tasks."""
    tasks = world.draw(b, generator(seed))
    for i in range(b):
        goal = tuple(tasks["goal"][i].tolist())
        yield plan(world, tasks["openings"][i].tolist(), goal), goal, {k: v[i : i + 1] for k, v in tasks.items()}


@EVERY
def test_every_step_follows_the_documented_semantics(world):
    for free, goal, task in cases(world):
        for action in range(3):
            reward, following = world.step(
                per_row(task), world.states[None], torch.full((1, len(world.states)), action)
            )
            for state, then, r in zip(world.states.tolist(), following[0].tolist(), reward[0].tolist(), strict=True):
                pose = pose_of(state)
                if pose[:2] in free:
                    assert pose_of(then) == after(free, pose, action)
                    assert r == (pose_of(then)[:2] == goal)


@EVERY
def test_labels_and_distances_are_those_of_a_search(world):
    for free, goal, task in cases(world):
        distance = search(free, goal)
        labels = world.optimal(task, world.states[None])[0].tolist()
        for state, label, found in zip(world.states.tolist(), labels, task["distance"][0].tolist(), strict=True):
            pose = pose_of(state)
            if pose[:2] not in free:
                assert found == float("inf")
                continue
            assert found == distance[pose]
            best = [action for action in range(3) if distance[after(free, pose, action)] == max(0, distance[pose] - 1)]
            assert label == best[0]


def search(free, goal):
    """{pose: actions until the goal}, a queue from every pose outwards would be slow: backwards from the goal."""
    poses = [(x, y, heading) for x, y in free for heading in range(4)]
    before = {pose: [] for pose in poses}
    for pose in poses:
        for action in range(3):
            before[after(free, pose, action)].append(pose)
    queue = deque((*goal, heading) for heading in range(4))
    found = dict.fromkeys(queue, 0)
    while queue:
        here = queue.popleft()
        for pose in before[here]:
            if pose not in found:
                found[pose] = found[here] + 1
                queue.append(pose)
    return found


def test_a_walk_by_hand():
    world = GridWorld(size=5, walls="four_rooms")  # rooms of one cell; the cross opens at 1 and 3 everywhere
    task = world.tasks(torch.tensor([[3, 3]]), torch.tensor([[1, 3, 1, 3]]))
    seen, observation = [], world.start(task)
    for action in (2, 2, 2, 1, 2, 2, 0):
        reward, observation = world.step(task, observation, torch.tensor([action]))
        seen.append((*observation[0].tolist(), float(reward)))
    assert seen == [
        (2, 1, 1, 0, 0), (3, 1, 1, 0, 0), (3, 1, 1, 0, 0),  # through the opening, then against the wall
        (3, 1, 0, 1, 0), (3, 2, 0, 1, 0), (3, 3, 0, 1, 1), (3, 3, 1, 0, 1),  # down to the goal, and turning there
    ]  # fmt: skip
    poses = torch.tensor([[[1.0, 1, 1, 0], [3, 1, 1, 0], [3, 1, 0, -1], [3, 3, 1, 0]]])
    assert world.optimal(task, poses).tolist() == [[2, 1, 0, 0]]  # of equally short ways the first action
    assert float(task["distance"][0, 0]) == 5


@EVERY
def test_goals_are_split_and_labels_reach_them(world):
    train, heldout = (world.hypotheses(split)["goal"].unique(dim=0) for split in ("train", "heldout"))
    assert not set(map(tuple, train.tolist())) & set(map(tuple, heldout.tolist()))
    assert len(train) == int(0.8 * (len(train) + len(heldout)))
    tasks = world.draw(200, generator(), "heldout")
    assert set(map(tuple, tasks["goal"].tolist())) == set(map(tuple, heldout.tolist()))
    played = interact(world, Optimal(world, tasks), tasks, world.horizon, generator())
    expected = world.horizon - (tasks["distance"][:, 0] - 1).clamp(min=0)
    torch.testing.assert_close(played[REWARD].sum(1), expected)


@EVERY
def test_contexts_and_queries_are_poses_without_walls(world):
    g = generator()
    tasks = world.draw(50, g)
    context, queries = world.context(tasks, 30, g), world.queries(tasks, 9, g)
    assert context[OBSERVATION].shape == context[NEXT_OBSERVATION].shape == (50, 30, 4)
    assert context[ACTION].shape == context[REWARD].shape == (50, 30) and queries.shape == (50, 9, 4)
    for seen in (context[OBSERVATION], queries, context[NEXT_OBSERVATION]):
        assert world.free(per_row(tasks), seen[..., :2]).all()
    rows = world.index(world.states)
    assert torch.equal(rows, torch.arange(len(rows)))


def test_histories_are_trajectories():
    world, g = GridWorld(size=7, horizon=10, walls="four_rooms", contexts="history"), generator()
    tasks = world.draw(4, g)
    context = world.context(tasks, 25, g)
    inner = [i for i in range(1, 25) if i % 10]
    assert torch.equal(context[OBSERVATION][:, inner], context[NEXT_OBSERVATION][:, [i - 1 for i in inner]])
    assert torch.equal(context[OBSERVATION][:, 20], world.start(tasks)) and world.ordered


def test_families_too_large_have_no_list_but_are_drawn():
    world = GridWorld(size=19, walls="four_rooms")
    assert world.hypotheses() is None
    tasks = world.draw(20, generator())
    assert torch.isfinite(tasks["distance"][:, 0]).all()


@EVERY
def test_steps_are_minigrids(world):
    """Cell by cell, heading by heading, action by action, against the package itself."""
    pytest.importorskip("minigrid")
    from minigrid.core.grid import Grid
    from minigrid.core.mission import MissionSpace
    from minigrid.core.world_object import Wall
    from minigrid.minigrid_env import MiniGridEnv

    class Empty(MiniGridEnv):
        def _gen_grid(self, width, height):
            self.grid, self.mission = Grid(width, height), ""
            for x in range(width):
                for y in range(height):
                    if (x, y) not in self.cells:
                        self.grid.set(x, y, Wall())
            self.agent_pos, self.agent_dir = (1, 1), 0

    env = Empty(MissionSpace(mission_func=lambda: ""), grid_size=world.size, max_steps=10**6)
    for free, _, task in cases(world, 3):
        env.cells = free
        env.reset()
        for x, y in free:
            for heading, ahead in enumerate(HEADINGS):
                for action in range(3):
                    env.agent_pos, env.agent_dir = (x, y), heading
                    env.step(action)
                    _, then = world.step(task, torch.tensor([[x, y, *ahead]]).float(), torch.tensor([action]))
                    assert pose_of(then[0]) == (*map(int, env.agent_pos), int(env.agent_dir))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GridWorld(size=3), "size=3"),
        (lambda: GridWorld(walls="maze"), "empty or four_rooms"),
        (lambda: GridWorld(size=8, walls="four_rooms"), "such as 9"),
        (lambda: GridWorld(contexts="walk"), "iid"),
    ],
)
def test_bad_settings_say_what_was_expected(make, message):
    with pytest.raises(DataError, match=message):
        make()
