"""Dark Room: its steps at the walls, its labels against a search, the release's split of goals, contexts."""

import hashlib
from collections import deque
from itertools import permutations

import numpy as np
import pytest
import torch

from foundation.envs.dark_room import MOVES, DarkRoom
from foundation.envs.worlds import interact, per_row
from foundation.learners import Optimal, Uniform
from pipelines.schema import ACTION, NEXT_OBSERVATION, OBSERVATION, REWARD, DataError
from tests.foundation.in_context import generator


def everywhere(world, tasks):
    """The states for every task [b S s]."""
    return world.states.expand(len(tasks["goal"]), -1, -1)


@pytest.mark.parametrize("permuted", [False, True])
def test_steps_at_every_cell_are_moves_within_the_walls(permuted):
    world = DarkRoom(permuted=permuted)
    tasks = world.draw(6, generator())
    for action in range(5):
        chosen = torch.full((6, 100), action)
        reward, following = world.step(per_row(tasks), everywhere(world, tasks), chosen)
        for b in range(6):
            move = MOVES[int(tasks["permutation"][b, action])]
            expected = np.clip(world.states.numpy() + move, 0, 9)
            np.testing.assert_array_equal(following[b].numpy(), expected)
            np.testing.assert_array_equal(reward[b].numpy(), (expected == tasks["goal"][b].numpy()).all(-1))


def test_the_split_of_goals_is_the_releases():
    world = DarkRoom()
    train, heldout = (world.hypotheses(split)["goal"] for split in ("train", "heldout"))
    assert (len(train), len(heldout)) == (80, 20)
    assert len(torch.cat([train, heldout]).unique(dim=0)) == 100
    digest = hashlib.sha256(torch.cat([train, heldout]).numpy().astype("<i8").tobytes()).hexdigest()
    assert digest.startswith("a762fe7a7f37e447")
    order = np.array([(x, y) for x in range(10) for y in range(10)])
    np.random.RandomState(0).shuffle(order)
    np.testing.assert_array_equal(order[:80], train)
    for split, goals in (("train", train), ("heldout", heldout)):
        drawn = world.draw(500, generator(), split)["goal"]
        assert set(map(tuple, drawn.tolist())) == set(map(tuple, goals.tolist()))


def test_permutations_are_split_and_the_goal_is_the_far_corner():
    world = DarkRoom(permuted=True)
    train, heldout = (world.hypotheses(split) for split in ("train", "heldout"))
    both = torch.cat([train["permutation"], heldout["permutation"]])
    assert (len(train["goal"]), len(heldout["goal"])) == (96, 24)
    assert set(map(tuple, both.tolist())) == set(permutations(range(5)))
    assert (world.hypotheses()["goal"] == 9).all()


@pytest.mark.parametrize("permuted", [False, True])
def test_labels_are_shortest_ways(permuted):
    world = DarkRoom(size=6, permuted=permuted)
    tasks = world.draw(5, generator())
    states = everywhere(world, tasks)
    labels = world.optimal(tasks, states)
    reward, following = world.step(per_row(tasks), states, labels)
    for b in range(5):
        distance = search(world, {name: x[b : b + 1] for name, x in tasks.items()})
        for state, after, r in zip(states[b].tolist(), following[b].tolist(), reward[b].tolist(), strict=True):
            assert distance[tuple(after)] == max(0, distance[tuple(state)] - 1)
            assert r == (distance[tuple(after)] == 0)


def search(world, task):
    """{cell: steps to the goal}, by trying all actions backwards from it, one task."""
    cells = [tuple(cell) for cell in world.states.tolist()]
    to = {cell: [] for cell in cells}
    for cell in cells:
        for action in range(5):
            _, after = world.step(task, torch.tensor([cell]), torch.tensor([action]))
            to[tuple(after[0].tolist())].append(cell)
    goal = tuple(task["goal"][0].float().tolist())
    found, queue = {goal: 0}, deque([goal])
    while queue:
        here = queue.popleft()
        for cell in to[here]:
            if cell not in found:
                found[cell] = found[here] + 1
                queue.append(cell)
    return found


def test_labels_go_along_x_first():
    world = DarkRoom()
    tasks = {"goal": torch.tensor([[5, 5]]), "permutation": torch.arange(5)[None]}
    cells = torch.tensor([[[4.0, 9.0], [6.0, 0.0], [5.0, 4.0], [5.0, 6.0], [5.0, 5.0]]])
    assert world.optimal(tasks, cells).tolist() == [[0, 1, 2, 3, 4]]
    swapped = {**tasks, "permutation": torch.tensor([[4, 3, 2, 1, 0]])}  # action 0 stays, 4 is x+
    assert world.optimal(swapped, cells).tolist() == [[4, 3, 2, 1, 0]]


@pytest.mark.parametrize(("split", "expected"), [("train", 92.2625), ("heldout", 90.9)])
def test_optimal_return_from_the_corner(split, expected):
    world = DarkRoom()
    tasks = world.hypotheses(split)
    played = interact(world, Optimal(world, tasks), tasks, 100, generator())
    assert float(played[REWARD].sum(1).mean()) == pytest.approx(expected)


def test_a_context_contains_the_goal_with_its_chance():
    world, g = DarkRoom(), generator()
    tasks = world.draw(4000, g, "heldout")
    context = world.context(tasks, 100, g)
    seen = (context[REWARD] > 0).any(1).float().mean()
    chance = 1 - 0.99**100  # each cell follows 5 of the 500 pairs of a cell and an action
    assert abs(seen - chance) < 4 * (chance * (1 - chance) / 4000) ** 0.5
    flat = context[OBSERVATION].reshape(-1, 2)
    assert all(abs((flat[:, i] == 3).float().mean() - 0.1) < 0.003 for i in range(2))
    counts = torch.bincount(context[ACTION].flatten(), minlength=5)
    assert (counts / counts.sum() - 0.2).abs().max() < 0.004


def test_trajectories_start_again_with_every_episode():
    world, g = DarkRoom(horizon=20, contexts="random_walk"), generator()
    tasks = world.draw(5, g)
    context = world.context(tasks, 50, g)
    starts = [i for i in range(50) if i % 20 == 0]
    assert (context[OBSERVATION][:, starts] == 0).all()
    inner = [i for i in range(1, 50) if i not in starts]
    assert torch.equal(context[OBSERVATION][:, inner], context[NEXT_OBSERVATION][:, [i - 1 for i in inner]])
    assert not world.ordered


@pytest.mark.parametrize("permuted", [False, True])
def test_contexts_of_posterior_sampling_are_its_play(permuted):
    world, g = DarkRoom(size=4, horizon=10, permuted=permuted, contexts="posterior"), generator()
    tasks = world.draw(200, g)
    context = world.context(tasks, 60, g)
    assert world.ordered
    assert (context[OBSERVATION][:, ::10] == 0).all()
    returns = context[REWARD].reshape(200, 6, 10).sum(-1).mean(0)
    best = interact(world, Optimal(world, tasks), tasks, 10, g)[REWARD].sum(1).mean()
    assert returns[0] < best - 1  # it must find out,
    assert returns[-1] > best - 0.5  # and then knows


def test_a_history_rises_from_chance_to_the_demonstrator():
    world, g = DarkRoom(contexts="history"), generator()
    tasks = world.draw(500, g)
    context = world.context(tasks, 1000, g)
    label = world.optimal(tasks, context[OBSERVATION])
    agree = (label == context[ACTION]).float().mean(0).reshape(10, 100).mean(1)  # per episode
    skill = (torch.arange(10) + 0.5) / 10
    torch.testing.assert_close(agree, skill + (1 - skill) / 5, atol=0.02, rtol=0)
    returns = context[REWARD].reshape(500, 10, 100).sum(-1).mean(0)
    assert returns[0] < 10 and returns[-1] > 80 and world.ordered


def test_the_same_generator_gives_the_same_play():
    def play():
        world, g = DarkRoom(), generator(3)
        tasks = world.draw(4, g)
        return interact(world, Uniform(5), tasks, 150, g)

    first, second = play(), play()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DarkRoom(size=1), "size=1"),
        (lambda: DarkRoom(horizon=0), "horizon=0"),
        (lambda: DarkRoom(contexts="walk"), "iid or random_walk or history"),
        (lambda: DarkRoom(contexts=[]), r"contexts=\[\]: expected one or several"),
        (lambda: DarkRoom(contexts=None), "contexts=None: expected iid"),
        (lambda: DarkRoom().draw(2, generator(), "test"), "train or heldout"),
    ],
)
def test_bad_settings_say_what_was_expected(make, message):
    with pytest.raises(DataError, match=message):
        make()
