"""Decision-pretraining through the command: the loss by hand, what is saved, wrong inputs, and that it learns."""

import pytest
import torch

from foundation import evaluate, hub, pretrain
from foundation.envs.bandits import GaussianBandit
from foundation.in_context import NetLearner
from foundation.learners import EmpiricalMean
from foundation.pretraining.dpt import DecisionPretraining
from foundation.protocols import bandit_offline
from models.in_context import InContext
from pipelines import checkpoint
from pipelines.schema import ACTION, FLOOR, NEXT_OBSERVATION, OBSERVATION, PLACE, QUERY, REWARD, TARGET, DataError
from tests.foundation.in_context import generator
from tests.foundation.running import run

TINY = ["method=dpt", "steps=3", "data.batch_size=4", "data.validation=8", "data.length=6", "method.net.layers=1"]
TINY += ["method.net.width=8"]


def train(folder, *overrides):
    return run(pretrain, "pretrain", *TINY, f"run.dir={folder}", *overrides)


def batch():
    torch.manual_seed(0)
    context = {OBSERVATION: torch.ones(3, 4, 1), NEXT_OBSERVATION: torch.ones(3, 4, 1), REWARD: torch.randn(3, 4)}
    context[ACTION] = torch.randint(5, (3, 4))
    target, floor = torch.randint(5, (3, 1)).expand(3, 5), torch.rand(3, 5)
    return {**context, QUERY: torch.ones(3, 1, 1), PLACE: torch.arange(5), TARGET: target, FLOOR: floor}


@pytest.mark.parametrize("empty_context", [True, False])
def test_the_loss_is_the_mean_over_the_answers_that_count(empty_context):
    net, given = InContext(1, n_actions=5, context=4), batch()
    loss, metrics = DecisionPretraining(net, None, empty_context).losses(given)
    log_probs = net(given)[0].log_probs.detach()
    counted = range(0 if empty_context else 1, 5)
    each = [(-log_probs[b, p, given[TARGET][b, p]], given[FLOOR][b, p], log_probs[b, p].argmax() == given[TARGET][b, p])
            for b in range(3) for p in counted]  # fmt: skip
    nll, floor, right = (torch.tensor(column).float().mean() for column in zip(*each, strict=True))
    torch.testing.assert_close(loss, nll)
    torch.testing.assert_close(metrics["floor"], floor)
    torch.testing.assert_close(metrics["excess"], nll - floor)
    torch.testing.assert_close(metrics["accuracy"], right)
    loss.backward()
    assert (net.positions.weight.grad[0].abs().sum() > 0) and net.positions.weight.grad[4].abs().sum() > 0


@pytest.mark.parametrize("options", [[], ["method.net.query=last", "data.queries=3"]], ids=["first", "last"])
@pytest.mark.parametrize("data", ["bandit", "dark_room", "linear_bandit"])
def test_the_command_trains_and_saves_what_acts(data, options, tmp_path):
    summary = train(tmp_path, f"data={data}", "data.length=[4,6]", *options)
    assert summary["steps"] == 3 and summary["validation/loss"] > 0
    if data == "linear_bandit":
        assert "validation/floor" not in summary
    else:
        excess = summary["validation/loss"] - summary["validation/floor"]
        assert summary["validation/excess"] == pytest.approx(excess, abs=1e-5)
    bundle = hub.load(tmp_path)
    assert bundle.net.context == 6 and bundle.config["condition"] == "none"
    assert bundle.config["world"]["_target_"].startswith("foundation.envs.")
    assert "tasks drawn apart from the seed" in (tmp_path / "model" / "README.md").read_text()


def test_what_is_saved_acts_as_what_was_trained(tmp_path):
    train(tmp_path)
    bundle, world = hub.load(tmp_path), GaussianBandit()
    trained = checkpoint.build(bundle.config["net"])
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    trained.load_state_dict({name.removeprefix("net."): value for name, value in state.items()})
    context = world.context(world.draw(50, generator()), 6, generator(1))
    for greedy in (True, False):
        acted = []
        for net in (trained, bundle.net):
            learner = NetLearner(net, world.states)
            known = learner.observe(learner.start(50), context)
            acted.append(learner.act(known, torch.ones(50, 1), generator(2), greedy))
        assert torch.equal(*acted)


def test_a_run_goes_on_from_another(tmp_path):
    train(tmp_path / "first")
    train(tmp_path / "more", f"init={tmp_path / 'first'}")
    assert "started from `" in (tmp_path / "more" / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.net.context=5"], r"data.length=6 exceeds the policy's context 5; .* method.net.positions=none"),
        (["method.net.n_actions=4"], "n_actions=4, GaussianBandit has 5"),
        (["method.net.state_dim=2"], "state_dim=2, GaussianBandit has 1"),
        (["method.net.query=both"], "query='both'"),
        (["method.net.mixing=none"], "query=last"),
        (["method.net.heads=3"], "heads 3"),
        (["data.length=[]"], "lengths of at least 1"),
        (["data.length=0"], "lengths of at least 1"),
        (["data.queries=0"], "data.queries=0"),
        (["data.batch_size=0"], "batch_size=0"),
        (["method.optimizer.schedule=steps"], "schedule='steps'"),
    ],
)
def test_wrong_inputs(overrides, message, tmp_path):
    with pytest.raises(DataError, match=message):
        train(tmp_path, *overrides)


def test_a_start_of_other_sizes_is_refused(tmp_path):
    train(tmp_path / "first")
    with pytest.raises(DataError, match="was built with state_dim=1, here 2"):
        train(tmp_path / "room", "data=dark_room", f"init={tmp_path / 'first'}")
    with pytest.raises(DataError, match=r"was built with .*context"):
        train(tmp_path / "long", "data.length=9", f"init={tmp_path / 'first'}")


def test_contexts_may_grow_where_there_are_no_positions(tmp_path):
    train(tmp_path / "short", "method.net.positions=none")
    train(tmp_path / "long", "method.net.positions=none", "method.net.context=6", "data.length=9",
          f"init={tmp_path / 'short'}")  # fmt: skip
    rounds = ["task=bandit", "task.protocol.rounds=20", "task.protocol.report=[20]", "episodes=4"]
    numbers = run(evaluate, "evaluate", *rounds, f"policy={tmp_path / 'short'}", f"run.dir={tmp_path / 'play'}")
    assert numbers["evaluate/online/policy/regret@20"] > 0


def test_it_learns_to_choose_from_ten_pulls(tmp_path):
    """Better than the best empirical mean, near the exact posterior, and undecided where nothing is known."""
    recipe = ["steps=210", "data.length=20", "data.batch_size=256", "data.validation=256", "method.net.width=32"]
    recipe += ["method.net.layers=4", "method.net.heads=4", "method.net.positions=none", "method.optimizer.lr=3e-3"]
    recipe += ["method.optimizer.warmup_steps=50", "method.optimizer.schedule=cosine"]
    summary = train(tmp_path, *recipe)
    assert summary["validation/excess"] < 0.1
    world = GaussianBandit()
    net = hub.load(tmp_path).net
    tasks = world.draw(4000, generator(7))
    context = world.context(tasks, 10, generator(8))
    lost = [bandit_offline(world, learner, tasks, context, [10], generator())[:, 0]
            for learner in (NetLearner(net, world.states), EmpiricalMean(5))]  # fmt: skip
    gap = lost[1] - lost[0]  # on the same tasks
    assert gap.mean() > 2 * gap.std() / len(gap) ** 0.5
    with torch.no_grad():
        first = net.distribution(net.begin(torch.ones(1, 1))[0]).log_probs[0].exp()
    assert (first - 0.2).abs().max() < 0.03
