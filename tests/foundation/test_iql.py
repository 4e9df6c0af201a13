"""GC-IQL, IQL of one reward and GC-BC through the commands: batches, what is saved and played, wrong inputs, that they
learn."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from foundation import evaluate, hub, pretrain
from foundation.actors import SequenceActor
from foundation.envs.state_rewards import reward_of
from foundation.pretraining.goal_data import GoalData
from foundation.prompts import GoalPrompts, PromptedActor, Prompts
from foundation.rollout import Frame
from foundation.training import plain
from pipelines.schema import (
    ACTION,
    ACTOR_CONDITION,
    CONDITION,
    GOAL,
    NEXT_OBSERVATION,
    OBSERVATION,
    REACHED,
    REWARD,
    TERMINATED,
    DataError,
)
from pipelines.shards import ShardWriter
from pipelines.trajectories import Spaces, Trajectories, write_episode
from tests.foundation.grid_maze import CELLS, distances, moved, state, write_walks
from tests.foundation.running import config, run
from tests.foundation.vector_world import write_pushes

TINY = ["method.net.width=16", "method.net.layers=1", "data.batch_size=8"]
AWR = ["method.extraction=awr", "method.temperature=3"]
EPISODES, STEPS = 6, 100  # of the counting data


@pytest.fixture(scope="module")
def pushes(tmp_path_factory):
    return write_pushes(tmp_path_factory.mktemp("pushes"), 12)


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    return write_walks(tmp_path_factory.mktemp("walks"))


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    """Episodes whose states say (episode, step) and whose rewards their number; the first comes to its own end."""
    root, last = tmp_path_factory.mktemp("counts"), np.arange(STEPS) == STEPS - 1
    with ShardWriter(root, "episodes", samples_per_shard=50) as writer:
        for e in range(EPISODES):
            states = np.stack([np.full(STEPS + 1, e), np.arange(STEPS + 1)], -1)
            arrays = {
                "observation": states[:-1], "action": np.zeros((STEPS, 1)), "reward": e * STEPS + np.arange(STEPS),
                "terminated": last & (e == 0), "truncated": last & (e > 0), "final_observation": states[-1],
            }  # fmt: skip
            write_episode(writer, f"e{e}", arrays, Spaces(2, 1, low=(-1.0,), high=(1.0,)), 10.0, "counts")
    return root


def train(data, folder, *overrides, method="iql"):
    options = [f"method={method}", *TINY, "steps=4", f"data.train={data}", f"run.dir={folder}"]
    return run(pretrain, "pretrain", *options, *overrides)


def goal_data(train, *overrides, method="iql", seed=0):
    cfg = plain(config("pretrain", f"method={method}", *TINY, f"data.train={train}", *overrides).data)
    return GoalData(**{name: value for name, value in cfg.items() if name != "_target_"}, steps=9, seed=seed)


def weights(folder, name="last"):
    return torch.load(folder / f"{name}.ckpt", weights_only=True)["state_dict"]


# batches


def test_goals_of_values_and_of_the_actor_are_drawn_as_in_ogbench(counts):
    """Values: .2 the state, .5 later by a geometric distance, .3 any; actors: any later one, the final one included."""
    batch = goal_data(counts, "data.batch_size=20000", "data.goals.gamma=0.9").dataset[0]
    (episode, now), (goal_episode, goal), (actor_episode, actor) = (
        batch[name].T for name in (OBSERVATION, CONDITION, ACTOR_CONDITION)
    )
    reached, own = batch[REACHED], goal_episode == episode
    assert torch.equal(reached, own & (goal == now))
    random_now = 0.3 / (EPISODES * (STEPS + 1))
    assert reached.float().mean() == pytest.approx(0.2 + random_now, abs=0.01)
    assert (~own).float().mean() == pytest.approx(0.3 * (EPISODES - 1) / EPISODES, abs=0.01)
    near = own & ~reached & (now < 20)
    assert (goal - now)[near & (goal > now) & (goal - now < 60)].mean() == pytest.approx(10, rel=0.1)
    assert torch.equal(actor_episode, episode) and (actor > now).all() and actor.max() == STEPS
    early = now < 5
    expected = (now[early] + 1 + STEPS) / 2
    assert (actor[early] - expected).mean() == pytest.approx(0, abs=3.0)
    assert actor[now == STEPS - 1].unique().tolist() == [STEPS]


def test_the_actors_goals_are_the_values_goals_unless_drawn_apart(counts):
    apart = goal_data(counts).dataset
    same = goal_data(counts, "data.actor_goals=null").dataset
    assert torch.equal(apart[3][CONDITION], same[3][CONDITION])  # the one does not move the other
    assert ACTOR_CONDITION not in same[3] and GOAL not in same[3]
    bc = goal_data(counts, method="goal_bc").dataset
    assert not bc[3][REACHED].any() and ACTOR_CONDITION not in bc[3]


@pytest.mark.parametrize("options", [[], ["data.reward=stored"]])
def test_a_batch_is_a_function_of_seed_step_and_rank(options, counts):
    dataset = goal_data(counts, *options).dataset
    one, again, whole = (goal_data(counts, *options, *more).dataset[1] for more in ([], [], ["data.batch_size=16"]))
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    assert any(not torch.equal(value, dataset[2][name]) for name, value in one.items())
    dataset.world_size = 2
    first = dataset[1]
    dataset.rank = 1
    both = {name: torch.cat([first[name], value]) for name, value in dataset[1].items()}
    assert all(torch.equal(both[name], whole[name]) for name in whole)


def test_stored_rewards_and_terminal_states(counts):
    batch = goal_data(counts, "data.reward=stored", "data.batch_size=3000").dataset[0]
    assert batch.keys() == {OBSERVATION, NEXT_OBSERVATION, ACTION, REWARD, TERMINATED}
    episode, now = batch[OBSERVATION].T
    assert torch.equal(batch[REWARD], episode * STEPS + now)
    assert torch.equal(batch[TERMINATED], (episode == 0) & (now == STEPS - 1)) and batch[TERMINATED].any()
    assert torch.equal(batch[NEXT_OBSERVATION][:, 1], now + 1)


def test_rewards_by_name_are_of_raw_states_and_alike_in_held_out_ones(walks):
    options = ["data.reward=north_east", "data.normalise=all", "data.validation=0.3", "data.batch_size=500"]
    data = goal_data(walks, *options)
    mean, std = (torch.tensor(data.statistics()[f"state_{name}"]) for name in ("mean", "std"))
    reward = reward_of("north_east", (np.full(2, -1.0), np.ones(2)))  # the room's own extent, which walks reach
    for part in (data.dataset, data.validation):
        batch = part[0]
        now, after = ((batch[name] * std + mean).numpy() for name in (OBSERVATION, NEXT_OBSERVATION))
        np.testing.assert_allclose(batch[REWARD], reward(now, after), atol=1e-4)
    assert data.statistics()["reward"] == "north_east" and data.statistics()["returns"]["1"] > 1
    assert data.contract()["condition"] == "none"


# training and playing


def test_gc_iql_is_saved_and_goes_on(pushes, tmp_path):
    summary = train(pushes, tmp_path, f"data.validation={pushes}", "data.normalise=all")
    assert {f"validation/{name}_loss" for name in ("value", "critic", "actor")} <= summary.keys()
    bundle = hub.load(tmp_path)
    assert bundle.net.goal_dim == 3 and bundle.config["condition"] == "goal"
    assert bundle.statistics["goals"]["p_random"] == 0.3 and bundle.statistics["actor_goals"]["within"] == "ahead"
    saved = weights(tmp_path)
    assert all(torch.equal(value, saved[f"net.{name}"]) for name, value in bundle.net.state_dict().items())
    assert any(name.startswith("target_critic.") for name in saved)
    train(pushes, tmp_path / "more", f"init={tmp_path}", "data.normalise=all")


@pytest.mark.parametrize("ema", ["before", "after"])
def test_the_target_follows_the_parameters_from_before_or_after_the_step(ema, pushes, tmp_path):
    options = ["steps=3", "checkpoint_every=1", "keep_checkpoints=3", "method.tau=0.25", "method.optimizer.lr=0.01"]
    train(pushes, tmp_path, f"method.ema={ema}", *options)
    before, now = (weights(tmp_path, name) for name in ("last-1", "last"))
    source = before if ema == "before" else now
    for name in (name for name in now if name.startswith("target_")):
        online = source[name.replace("target_", "net.", 1)]
        torch.testing.assert_close(now[name], torch.lerp(before[name], online, 0.25), rtol=0, atol=0)


def test_imitation_trains_an_actor_and_nothing_else(pushes, tmp_path):
    summary = train(pushes, tmp_path, method="goal_bc")
    assert not [name for name in summary if "critic" in name or "value" in name]
    saved = weights(tmp_path)
    assert {name.split(".")[1] for name in saved} == {"actor"}
    assert hub.load(tmp_path).net.critic is None


def frame(states):
    b = len(states)
    return Frame(np.asarray(states, np.float32), np.ones(b, bool), np.ones(b, bool), np.zeros(b, np.float32))


class Slot:
    """A place of an environment whose goal is this."""

    def __init__(self, goal, index=0):
        self.index, self.environment = index, self
        self.goal, self.tags = goal, {}


def test_a_policy_of_goals_is_told_the_tasks_goal_as_it_saw_them(pushes, tmp_path):
    train(pushes, tmp_path, "data.normalise=all")
    bundle = hub.load(tmp_path)
    data = Trajectories.load(pushes)
    states, goals = data.observation[:3], data.observation[[40, 50, 60]]
    actor = PromptedActor(bundle)
    actor.start([Slot(goal, i) for i, goal in enumerate(goals)])
    taken = np.stack(actor.act(frame(states)))
    mean, std = (np.float32(bundle.statistics[f"state_{name}"]) for name in ("mean", "std"))
    now = {OBSERVATION: (states - mean) / std, CONDITION: (goals - mean) / std}
    mode = bundle.net.act({name: torch.from_numpy(value) for name, value in now.items()}).mode().detach()
    np.testing.assert_allclose(taken, actor.spaces.from_unit(mode.numpy()), atol=1e-5)
    actor.keep([0, 2])
    still = frame(states[[0, 2]])
    still.first[:] = False
    np.testing.assert_allclose(np.stack(actor.act(still)), taken[[0, 2]], atol=1e-6)
    one = GoalPrompts(bundle).goal(goals[0])(states)
    np.testing.assert_allclose(one, np.tile(now[CONDITION][0], (3, 1)), atol=1e-5)
    for call, message in (
        (lambda: GoalPrompts(bundle).goal([1.0, 2.0]), "expected 3 numbers each"),
        (lambda: GoalPrompts(bundle).goal([0.0, 1e6, 0.0]), "far outside"),
        (lambda: GoalPrompts(bundle).goal()(states), "no goal yet"),
        (lambda: actor.start([Slot(None)]), "no goals"),
        (lambda: Prompts(bundle), "this is a GoalPolicy"),
    ):
        with pytest.raises(DataError, match=message):
            call()


def test_a_policy_of_one_reward_needs_to_be_told_nothing(pushes, tmp_path):
    train(pushes, tmp_path, "data.reward=stored", "data.normalise=all")
    bundle = hub.load(tmp_path)
    assert bundle.net.goal_dim == 0 and bundle.config["condition"] == "none"
    actor = SequenceActor(bundle)
    actor.start([Slot(None), Slot(None)])
    assert np.stack(actor.act(frame(Trajectories.load(pushes).observation[:2]))).shape == (2, 2)
    with pytest.raises(DataError, match="told nothing"):
        PromptedActor(bundle)


def test_the_command_plays_them_in_point_mazes(tmp_path):
    pytest.importorskip("ogbench")
    write_drift(tmp_path / "data")
    play = ["task=point_maze", "task.env.episode_steps=5", "episodes=5", "baselines=[]", f"run.dir={tmp_path / 'play'}"]
    for method, reward, told in (
        ("iql", None, ["prompt=goal"]), ("goal_bc", None, []), ("iql", "north", ["task.env.reward=north"])
    ):  # fmt: skip
        folder, more = tmp_path / f"{method}-{reward}", [] if reward is None else [f"data.reward={reward}"]
        train(tmp_path / "data", folder, *more, method=method)
        numbers = run(evaluate, "evaluate", f"policy={folder}", *play, *told)
        assert numbers["evaluate/episode_frames"] == 5 and ("evaluate/success" in numbers) == (reward is None)
    with pytest.raises(DataError, match="neither skills nor goals"):
        run(evaluate, "evaluate", f"policy={folder}", *play, "prompt=goal")


def write_drift(root):
    """A ball that wanders over the whole of a point maze."""
    generator, t = np.random.default_rng(0), 50
    with ShardWriter(root, "episodes", samples_per_shard=50) as writer:
        for i in range(4):
            states = generator.uniform(-5, 25, (t + 1, 2))
            arrays = {
                "observation": states[:-1], "action": generator.uniform(-1, 1, (t, 2)), "reward": np.zeros(t),
                "terminated": np.zeros(t, bool), "truncated": np.arange(t) == t - 1, "final_observation": states[-1],
            }  # fmt: skip
            write_episode(writer, f"e{i}", arrays, Spaces(2, 2, low=(-1.0,) * 2, high=(1.0,) * 2), 10.0, "drift")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.reward=nort_east"], "north_east"),
        (["data.reward=north_east"], r"expected \[n 2\]"),  # states of 3 numbers
        (["data.skills=3"], "skills have None numbers, data.skills=3"),
        (["data.skills=3", "data.reward=stored"], "rewards of their own"),
        (["method.net.goal_dim=2"], "goals of 2 numbers, those of the data have 3"),
        (["method.net.goal_dim=3", "data.reward=stored"], "those of the data have 0"),
        (["data.actor_goals.p_random=0.5"], "add up to 1"),
        (["method.extraction=sarsa"], "extraction='sarsa'"),
        (["method.net.critics=0"], "imitation alone"),
        (["method.gamma=1"], "gamma=1"),
    ],
)
def test_wrong_inputs(overrides, message, pushes, tmp_path):
    with pytest.raises(DataError, match=message):
        train(pushes, tmp_path, *overrides)


def test_discrete_actions_and_rewards_that_say_nothing(walks, tmp_path):
    with pytest.raises(DataError, match=r"method\.extraction=awr"):
        train(walks, tmp_path)
    with pytest.raises(DataError, match="every policy is as good"):
        train(walks, tmp_path, *AWR, "data.reward=stored")
    train(walks, tmp_path, *AWR)
    assert hub.load(tmp_path).net.n_actions == 4


TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["iql", "goal_bc"])
def test_two_processes_equal_one(method, pushes, tmp_path):
    options = [f"method={method}", *TINY, f"data.train={pushes}", "steps=4"]
    for folder, more in (("one", ["data.batch_size=8"]), ("two", [*TWO, "data.batch_size=4"])):
        line = [sys.executable, "-m", "foundation.pretrain", *options, f"run.dir={tmp_path / folder}", *more]
        done = subprocess.run(line, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 5e-4  # sums in another order; lr 3e-4


# learning

QUICK = ["method.net.width=48", "data.batch_size=192", "method.optimizer.lr=2e-3"]
VALUES = [*AWR, "method.tau=0.03", "method.gamma=0.9"]


def quick(walks, folder, steps, *overrides):
    run(pretrain, "pretrain", *overrides, *QUICK, f"steps={steps}", f"data.train={walks}", f"run.dir={folder}")
    return hub.load(folder).net


def reached(net):
    """Share of the pairs of places at least 3 steps apart that it gets from one to the other, in three times as many
    steps as needed."""
    pairs, generator = np.argwhere(distances() >= 3), torch.Generator().manual_seed(0)
    cells, goals = ([CELLS[i] for i in column] for column in pairs.T)
    left, done = 3 * distances()[tuple(pairs.T)], np.zeros(len(pairs), bool)
    for t in range(left.max()):
        now = {name: torch.from_numpy(np.stack([state(cell) for cell in places]))
               for name, places in ((OBSERVATION, cells), (CONDITION, goals))}  # fmt: skip
        with torch.no_grad():
            action = net.act(now).sample(generator).tolist()
        goes_on = ~done & (t < left)
        cells = [moved(cell, a) if on else cell for cell, a, on in zip(cells, action, goes_on, strict=True)]
        done |= [cell == goal for cell, goal in zip(cells, goals, strict=True)]
    return done.mean()


def test_values_of_goals_find_ways_that_imitation_of_walks_does_not(walks, tmp_path):
    """Of random walks: those reach 7 % of the places."""
    imitated = reached(quick(walks, tmp_path / "bc", 100, "method=goal_bc"))
    learned = reached(quick(walks, tmp_path / "iql", 300, "method=iql", *VALUES))
    assert learned > 0.3 > 0.2 > imitated


def test_a_reward_is_climbed(walks, tmp_path):
    """The policy of a reward in one corner prefers the moves that lead there, and values what is near."""
    sharp = ["method.temperature=10", "method.tau=0.1", "data.reward=south_west"]
    net = quick(walks, tmp_path, 200, "method=iql", *VALUES, *sharp)
    now = {OBSERVATION: torch.from_numpy(np.stack([state(cell) for cell in CELLS]))}
    with torch.no_grad():
        best, v = net.act(now).log_probs, net.v(now)
    rows = [CELLS.index(cell) for cell in CELLS if cell[0] in (1, 2) and cell[1]]
    assert best[rows][:, [1, 3]].exp().sum(-1).mean() > 0.8  # west or south
    assert np.corrcoef(v, -distances()[CELLS.index((0, 0))])[0, 1] > 0.85
