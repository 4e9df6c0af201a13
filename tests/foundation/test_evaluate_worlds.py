"""`foundation.evaluate` on worlds: numbers and curves of learners in context, and what it refuses."""

import csv
import json

import pytest
import torch

from foundation import evaluate, pretrain
from foundation.envs.bandits import GaussianBandit, LinearBandit
from foundation.envs.dark_room import DarkRoom
from foundation.envs.recovering_bandit import RecoveringBandit
from foundation.evaluate_worlds import Evaluation, fit, picture, rivals, spread
from foundation.in_context import NetLearner
from models.in_context import InContext
from pipelines.schema import DataError
from tests.foundation.in_context import generator
from tests.foundation.running import config, run
from tests.models.nets import shaken

BANDIT = ["task=bandit", "task.protocol.rounds=12", "task.protocol.report=[5,12]", "task.protocol.lengths=[1,4,500]"]
ROOM = ["task=dark_room", "task.env.world.size=4", "task.env.world.horizon=6", "task.protocol.episodes=3",
        "task.protocol.report=[1,3]", "task.protocol.context=8"]  # fmt: skip
MODES = [("last", "episode"), ("all", "step")]
ROOM += [f"task.protocol.online=[{','.join(f'{{context: {c}, update: {u}}}' for c, u in MODES)}]"]


def play(folder, *overrides):
    return run(evaluate, "evaluate", f"run.dir={folder}", *overrides)


def trained(folder, *overrides):
    tiny = ["method=dpt", "steps=1", "data.batch_size=2", "data.validation=2", "method.net.layers=1"]
    run(pretrain, "pretrain", *tiny, "method.net.width=8", f"run.dir={folder}", *overrides)
    return f"policy={folder}"


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("bandit"), "data.length=12")


def curves(folder):
    """{(figure, who): [(x, mean, sem)]}"""
    found = {}
    with open(folder / "curves.csv", newline="") as file:
        for row in csv.DictReader(file):
            point = tuple(float(row[name]) for name in ("x", "mean", "sem"))
            found.setdefault((row["figure"], row["who"]), []).append(point)
    return found


def test_bandits_rivals_and_curves(policy, tmp_path):
    numbers = play(tmp_path, *BANDIT, policy, "episodes=400")
    drawn = curves(tmp_path)
    online, offline = "cumulative regret, online", "suboptimality, offline"
    assert {who for figure, who in drawn if figure == online} == {
        "policy", "empirical", "thompson", "ucb", "posterior", "uniform", "optimal"}  # fmt: skip
    assert {who for figure, who in drawn if figure == offline} == {
        "policy", "empirical", "thompson", "lcb", "posterior", "posterior_mean", "uniform", "optimal"}  # fmt: skip
    assert [x for x, *_ in drawn[online, "policy"]] == list(range(1, 13))
    assert [x for x, *_ in drawn[offline, "policy"]] == [1, 4]  # lengths beyond the rounds are left out
    assert all(mean == sem == 0 for _, mean, sem in drawn[online, "optimal"] + drawn[offline, "optimal"])
    for n in (5, 12):  # the best of five U(0, 1) is 5/6, any of them 1/2
        mean, sem = (numbers[f"evaluate/online/uniform/regret@{n}{word}"] for word in ("", "_sem"))
        assert abs(mean - n / 3) < 4 * sem and drawn[online, "uniform"][n - 1][1] == mean
    best, worst = (numbers[f"evaluate/offline/{who}/suboptimality@4"] for who in ("posterior_mean", "uniform"))
    assert best < worst


def test_equal_seeds_give_equal_numbers_and_a_policy_changes_no_rival(policy, tmp_path):
    alone = play(tmp_path / "a", *BANDIT, "policy=random", "episodes=20")
    again = play(tmp_path / "b", *BANDIT, policy, "episodes=20")
    assert not any("policy" in name for name in alone)
    assert all(again[name] == value for name, value in alone.items() if name.startswith("evaluate/"))
    other = play(tmp_path / "c", *BANDIT, "policy=random", "episodes=20", "task.protocol.seed=1")
    assert other["evaluate/online/uniform/regret@12"] != alone["evaluate/online/uniform/regret@12"]


def test_rooms_online_and_on_given_contexts(tmp_path):
    policy = trained(tmp_path / "run", "data=dark_room", "data.world.size=4", "data.length=18")
    numbers = play(tmp_path / "play", *ROOM, policy, "episodes=30")
    figures = {figure for figure, _ in curves(tmp_path / "play")}
    distance = "total variation to the exact posterior"
    assert figures == {distance, *(f"return, online, context {c}, update per {u}" for c, u in MODES)}
    assert all(0 < numbers[f"evaluate/posterior/policy/distance@{n}"] < 1 for n in (0, 1, 2, 5, 8))
    tasks = Evaluation(DarkRoom(size=4, horizon=6), {"tasks": 30, "seed": 0, "split": "heldout"}).tasks
    best = float((6.0 - (tasks["goal"].sum(1) - 1).clamp(min=0)).clamp(min=0).mean())
    for mode in ("last_episode", "all_step"):
        for episode in (1, 3):
            assert numbers[f"evaluate/online/{mode}/optimal/return@{episode}"] == pytest.approx(best)
    assert numbers["evaluate/offline/greedy/optimal/return@8"] == pytest.approx(best)
    drawn = json.loads((tmp_path / "play" / "policy.json").read_text())
    assert len(drawn["cells"]) == len(drawn["moves"]) == 16 and drawn["goal_seen"] and drawn["transitions"] == 8
    seen = numbers["evaluate/offline/goal_seen"]
    parts = [numbers[f"evaluate/offline/sampled/policy/return_goal_{word}"] for word in ("seen", "unseen")]
    assert 0 < seen < 1
    assert seen * parts[0] + (1 - seen) * parts[1] == pytest.approx(numbers["evaluate/offline/sampled/policy/return@8"])


@pytest.mark.parametrize("permuted", [False, True])
def test_the_pictured_moves_are_those_of_the_network(permuted):
    world = DarkRoom(size=3, permuted=permuted)
    torch.manual_seed(0)
    net, tasks = shaken(InContext(2, n_actions=5, context=6, width=8, layers=1)).eval(), world.draw(4, generator())
    context = world.context(tasks, 6, generator(1))
    drawn = picture(world, NetLearner(net), tasks, context, 2)
    seen = {name: value[2:3] for name, value in context.items()}
    for cell, move in zip(drawn["cells"], drawn["moves"], strict=True):
        query = torch.tensor([[cell]])
        action = net({**seen, "query": query, "place": torch.tensor([6])})[0].mode()[0, 0]
        assert move == world.moves[tasks["permutation"][2, action]].tolist()


def test_who_is_compared():
    names = {}
    for world in (GaussianBandit(), LinearBandit(), RecoveringBandit(), DarkRoom(size=3)):
        tasks = world.draw(2, generator())
        for kind in ("online", "offline"):
            names[type(world).__name__, kind] = set(rivals(world, tasks, kind)) - {"uniform", "optimal"}
    assert names["LinearBandit", "online"] == {"thompson", "linucb"}
    assert names["LinearBandit", "offline"] == {"thompson", "ridge"}
    assert names["RecoveringBandit", "online"] == {"thompson", "ucb", "periodic"}
    assert names["DarkRoom", "online"] == names["DarkRoom", "offline"] == {"posterior"}


def test_standard_errors_by_hand():
    mean, sem = spread(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert mean.tolist() == [2, 5] and sem.tolist() == [1, 0]


def test_contexts_beyond_the_positions_are_left_out(caplog):
    room, modes = DarkRoom(horizon=10), [*MODES, ("last", "step")]
    for most, left in ((39, [0, 2]), (40, [0, 1, 2]), (19, [0])):
        online = [{"context": context, "update": update} for context, update in modes]
        protocol = {"episodes": 4, "context": 15, "online": list(online)}
        fit(protocol, most, room, "it")
        assert protocol["online"] == [online[i] for i in left]
    assert "contexts grow to 40" in caplog.text
    with pytest.raises(DataError, match="grow to 15"):
        fit(protocol, 14, room, "it")


def test_shards_in_other_units_are_played_in_them(tmp_path):
    world, torch_net = GaussianBandit(), InContext(1, n_actions=5, query="last", positions="none", width=8, layers=1)
    net, scale = shaken(torch_net).eval(), 2.0
    statistics = {"state_mean": [0.5], "state_std": [0.25], "returns_scale": scale}
    context = world.context(world.draw(3, generator()), 4, generator(1))
    theirs = {name: (value - 0.5) / 0.25 if "observation" in name else value for name, value in context.items()}
    theirs["reward"] = context["reward"] / scale
    learner, plain = NetLearner(net, world.states, statistics), NetLearner(net)
    said = learner.distribution(learner.observe(learner.start(3), context), torch.ones(3, 1))
    wanted = plain.distribution(plain.observe(plain.start(3), theirs), torch.full((3, 1), 2.0))
    assert torch.allclose(said.log_probs, wanted.log_probs, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.protocol.rounds=13"], "positions for 12 transitions, contexts of this protocol grow to 13"),
        (["task.env.world.arms=4"], "chooses among 5 actions, GaussianBandit has 4"),
        (["task=dark_room"], "observations of 1 numbers, DarkRoom shows 2"),
        (["episodes=1"], "1 tasks have no standard error"),
        (["task.protocol.lengths=[500]"], "lengths"),
        (["task.protocol.lengths=[-1, 3]"], "lengths"),
        (["task.env.world.noise=0"], "noise=0"),
        (["device=tpu"], "device=tpu"),
        (["memory=task", "video=2"], "memory=task, video=2: a world is played as task.protocol says"),
        (["policy=player"], "policy=player: a world"),
        (["task.protocol.split=test"], "protocol.split='test'"),
        (["task.protocol=null", "memory=task"], "every episode of a world is another task"),
        (["task.protocol.rounds=0"], "rounds=0: expected a whole number"),
        (["task.protocol.report=5"], "report=5: expected a list"),
    ],
)
def test_what_is_refused(overrides, message, policy, tmp_path):
    with pytest.raises(DataError, match=message):
        play(tmp_path, *(BANDIT if "task=dark_room" not in overrides else []), policy, *overrides)


def test_a_protocol_shorter_than_its_report_tells_its_end(policy, tmp_path, caplog):
    numbers = play(tmp_path, *BANDIT, policy, "episodes=4", "task.protocol.rounds=4", "task.protocol.report=[0, 5]")
    told = {name.split("@")[1] for name in numbers if "regret@" in name and not name.endswith("_sem")}
    assert told == {"4"} and "evaluate/offline/policy/suboptimality@4" in numbers
    assert "protocol.report: left out [0, 5], outside of 1..4" in caplog.text


def test_a_policy_of_another_world_is_named(policy, tmp_path, caplog):
    play(tmp_path, *BANDIT, policy, "episodes=4", "task.env.world.noise=0.5")
    assert "differs in {'noise': (0.3, 0.5)}" in caplog.text


@pytest.mark.parametrize(
    "mode",
    ["all", "{context: all, update: step, more: 1}", "{context: some, update: step}", "{context: all, update: never}"],
)
def test_ways_to_play_online_have_names(mode, tmp_path):
    with pytest.raises(DataError, match="expected context all or last"):
        play(tmp_path, *ROOM, "policy=random", f"task.protocol.online=[{mode}]", "episodes=4")


def test_a_policy_of_another_kind_is_refused(init_for, tmp_path):
    other = init_for(config("pretrain", "method=l2m"))[0].removeprefix("init=")  # an MDDT
    with pytest.raises(DataError, match="trained with state_dim=3, the task bandit has 1"):
        play(tmp_path / "play", *BANDIT, f"policy={other}", "episodes=4")
