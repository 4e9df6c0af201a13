"""Arms of the benchmark do the same work: equal losses, tasks by loop and by tensor, play with and without cache."""

import numpy as np
import torch

from benchmarks import in_context as benchmark
from foundation.envs.bandits import GaussianBandit
from foundation.envs.dark_room import DarkRoom
from foundation.in_context import NetLearner
from foundation.pretraining.world_data import draw
from models.in_context import InContext
from pipelines.schema import ACTION
from tests.models.nets import shaken


def test_both_networks_have_the_same_loss():
    for world in (GaussianBandit(), DarkRoom()):
        batch, _ = draw(world, 3, 6, torch.arange(7), 1, torch.Generator().manual_seed(0), "train")
        theirs = shaken(benchmark.Theirs(world, 6))
        ours = benchmark.ours_from(theirs, world)
        difference = benchmark.their_loss(theirs, batch) - benchmark.our_loss(ours, batch)
        assert difference.abs() < 1e-5


def test_the_loops_draw_tasks_like_ours():
    np.random.seed(0)
    bandits, rooms = benchmark.bandit_loop(400, 20), benchmark.room_loop(400, 60)
    for (_, _, reward, _), label in ((task["context"], task["label"]) for task in bandits):
        assert reward.shape == (20,) and 0 <= label < 5
    best = np.mean([reward[action == task["label"]].mean() for task in bandits
                    for _, action, reward, _ in [task["context"]] if (action == task["label"]).any()])  # fmt: skip
    assert abs(best - 5 / 6) < 0.04  # mean of the best of five U(0, 1)
    seen = np.mean([task["context"][2].any() for task in rooms])
    assert abs(seen - (1 - 0.99**60)) < 0.1
    assert {task["label"] for task in rooms} == set(range(5))


def test_the_loop_and_the_cache_say_the_same():
    torch.manual_seed(0)
    world = GaussianBandit()
    net = shaken(InContext(1, n_actions=5, context=9, heads=1)).eval()
    context, said = benchmark.play_loop(net, world, 9, torch.Generator().manual_seed(0))
    assert context[ACTION].shape == (1, 9)
    learner = NetLearner(net, world.states)
    found = learner.distribution(learner.observe(learner.start(1), context), torch.ones(1, 1)).log_probs[0].exp()
    torch.testing.assert_close(found, said, rtol=0, atol=1e-6)
