"""Fine-tuning policies that learn in context, over several episodes of a task as one: what acted is what is trained."""

import pytest
import torch

from foundation import collect, finetune, hub, pretrain
from foundation.actors import SequenceActor
from foundation.envs.dark_room import DarkRoom
from foundation.envs.world_env import WorldEnv
from foundation.evaluate import play
from foundation.finetuning.episodes import Collector, Recorded, Targets
from foundation.finetuning.ppo_states import SequencePPO, WindowsOnPolicy
from pipelines.schema import ACTION, MASK, NEXT_OBSERVATION, OBSERVATION, DataError
from pipelines.trajectories import Spaces, Trajectories
from tests.foundation.running import run
from tests.foundation.test_resume import Killed, kill, same  # noqa: F401

SIZE, HORIZON, EPISODES = 3, 6, 3
ROOM = ["task=dark_room", f"task.env.world.size={SIZE}", f"task.env.world.horizon={HORIZON}"]
ROOM += [f"task.env.episodes={EPISODES}"]
TINY = ["episodes=2", "algo.stream.environments=2", "data.batch_size=4", "evaluate_every=0"]


def pretrained(folder, *options):
    given = ["method=dpt", "data=dark_room", f"data.world.size={SIZE}", f"data.length={EPISODES * HORIZON}", "steps=3"]
    given += ["method.net.width=16", "method.net.layers=1", "data.batch_size=4", "data.validation=4", *options]
    run(pretrain, "pretrain", *given, f"run.dir={folder}")
    return folder


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return pretrained(tmp_path_factory.mktemp("dpt"), "method.net.query=last", "method.net.heads=2")


def room():
    env = WorldEnv(DarkRoom(size=SIZE, horizon=HORIZON), episodes=EPISODES)
    env.tags = {"task": "dark_room"}
    return env


def test_the_ratio_is_exactly_one_in_the_first_pass(policy):
    bundle = hub.load(policy)
    agent = SequencePPO(bundle.net, bundle.net, condition="none").train()
    targets, spaces = Targets(None, {"dark_room": 0.0}, 1.0, 0, {}), Spaces.from_dict(bundle.config["spaces"])
    collector = Collector({"dark_room": [room() for _ in range(4)]}, bundle, targets, None, 0, clip=False)
    steps = EPISODES * HORIZON
    stream = WindowsOnPolicy(agent, collector, {"length": steps}, {"returns_scale": 1.0}, spaces, 1.0, 0, 1, 4 * steps,
                             1, 2, bundle.net.max_timestep)  # fmt: skip
    seen = 0
    for batch in stream:
        log_prob = agent.distribution(batch)[1].log_prob(batch[ACTION])
        assert torch.equal(log_prob[batch[MASK]], batch["old_log_prob"][batch[MASK]])
        assert agent.losses(batch)[1]["policy/kl"].abs() < 1e-6
        seen += int(batch[MASK].sum())
        ends = batch[NEXT_OBSERVATION][:, HORIZON - 1], batch[OBSERVATION][:, HORIZON]
        begins = batch["timestep"][:, 0] == 0
        assert (ends[1][begins] == 0).all() and (ends[0] != 0).any()  # the start is shown, a cell was reached
    assert seen == 4 * steps


def test_windows_say_what_acting_said(policy):
    bundle, said = hub.load(policy), []

    class Watched(SequenceActor):
        def choose(self, distribution):
            said.append(distribution.log_probs)
            return super().choose(distribution)

    env = Recorded(room())
    play(Watched(bundle, greedy=False), [env], [5])
    (arrays,) = env.take()
    window = {name: torch.from_numpy(arrays[name])[None] for name in (OBSERVATION, ACTION, NEXT_OBSERVATION)}
    window["scaled_reward"] = torch.from_numpy(arrays["reward"])[None]
    expected = bundle.net(window)[0].log_probs[0]
    torch.testing.assert_close(torch.cat(said)[:-1], expected, rtol=0, atol=1e-5)


SLOW = [pytest.param(algo, marks=pytest.mark.slow) for algo in ("bc", "odt")]


@pytest.mark.parametrize("algo", ["ppo", *SLOW])
def test_every_algorithm_that_fits_goes_on_from_it_bit_for_bit(algo, policy, tmp_path, kill):  # noqa: F811
    options = {
        "ppo": ["frames=72", "algo.stream.chunk=8", "algo.stream.minibatches=2", "algo.stream.epochs=2"],
        "bc": ["algo.stream.offline_updates=8"],
        "odt": ["frames=72", "algo.stream.updates_per_frame=0.1", "algo.stream.offline_share=0"],
    }[algo]
    kill(None)
    if algo == "bc":
        played = [*ROOM, "states.episodes=4", "workers=0", f"out={tmp_path / 'plays'}", f"run.dir={tmp_path / 'c'}"]
        run(collect, "collect", *played)
        options.append(f"data.train={tmp_path / 'plays'}")
        data = Trajectories.load(tmp_path / "plays")
        assert data.optimal_action is not None and data.next_observation is not None
    given = [*ROOM, f"algo={algo}", f"init={policy}", *TINY, *options, "checkpoint_every=1", "evaluate_before=false"]
    given += ["algo.stream.report_every=1"] if algo != "ppo" else []
    summary = run(finetune, "finetune", *given, f"run.dir={tmp_path / 'straight'}")
    assert summary["finetune/updates"] >= 7
    kill(5)
    with pytest.raises(Killed):
        run(finetune, "finetune", *given, f"run.dir={tmp_path / 'stopped'}")
    kill(None)
    run(finetune, "finetune", *given, f"run.dir={tmp_path / 'stopped'}")
    same(tmp_path / "straight", tmp_path / "stopped")


def test_what_does_not_fit_says_what_to_do(policy, tmp_path):
    base = [*ROOM, *TINY, f"run.dir={tmp_path}", "evaluate_before=false", "frames=20"]
    first = pretrained(tmp_path / "first")
    for options, message in (
        ([f"init={first}", "algo=ppo"], "query=last"),
        ([f"init={policy}", "algo=td3_aux", "algo.stream.offline_share=0"], "contexts"),
        ([f"init={policy}", "algo=ppo", f"data.length={EPISODES * HORIZON + 1}"], "sees 18 steps"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            run(finetune, "finetune", *base, *options)
