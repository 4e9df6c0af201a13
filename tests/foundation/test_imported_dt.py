"""Decision Transformers of transformers in the commands: they act as its own recipe has it, and are trained on."""

import numpy as np
import pytest
import torch
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from foundation import collect, evaluate, finetune, hub, pretrain
from foundation.envs import registry
from foundation.evaluate import play
from foundation.rollout import evaluation_seed
from pipelines import convert
from pipelines.dt_release import HOPPER
from pipelines.schema import DataError
from tests.foundation.running import run
from tests.models.nets import shaken

HOP = ["task=gym_mujoco", "task.name=Hopper-v5", "task.env.episode_steps=30"]
PENDULUM = ["task=gym_mujoco", "task.name=Pendulum-v1", "task.env.episode_steps=20"]
K, TARGET, SCALE = 6, 3600.0, 1000.0


def saved(folder, state_dim, act_dim):
    torch.manual_seed(0)
    config = DecisionTransformerConfig(
        state_dim=state_dim, act_dim=act_dim, hidden_size=32, max_ep_len=50, bos_token_id=None, eos_token_id=None
    )
    net = DecisionTransformerModel(config).eval()
    shaken(net)
    net.save_pretrained(folder)
    return net


class Recipe:
    """How such models are played: the last K steps, padded on the left, the action of the newest one."""

    def __init__(self, net, mean, std):
        self.net, self.mean, self.std = net, torch.tensor(mean), torch.tensor(std)

    def start(self, slots):
        assert len(slots) == 1

    def keep(self, rows):
        pass

    @torch.no_grad()
    def act(self, frame):
        if frame.first[0]:
            self.states, self.actions, self.asked = torch.zeros(0, len(self.mean)), torch.zeros(0, 3), [TARGET]
        else:
            self.asked.append(self.asked[-1] - float(frame.reward[0]))
        self.states = torch.cat([self.states, torch.from_numpy(np.asarray(frame.observation, np.float32))])
        states, actions = (self.states - self.mean) / self.std, torch.cat([self.actions, torch.zeros(1, 3)])
        asked, times = torch.tensor(self.asked)[:, None] / SCALE, torch.arange(len(states))
        states, actions, asked, times = (value[-K:] for value in (states, actions, asked, times))
        empty = K - len(times)
        mask = torch.cat([torch.zeros(empty, dtype=torch.long), torch.ones(len(times), dtype=torch.long)])
        pad = torch.nn.functional.pad
        states, actions, asked = (pad(value, (0, 0, empty, 0))[None] for value in (states, actions, asked))
        out = self.net(states=states, actions=actions, returns_to_go=asked, timesteps=pad(times, (empty, 0))[None],
                       attention_mask=mask[None])  # fmt: skip
        self.actions = torch.cat([self.actions, out.action_preds[0, -1:]])
        return list(self.actions[-1:].numpy())


def test_an_imported_policy_plays_as_its_recipe_has_it(tmp_path):
    pytest.importorskip("mujoco")
    theirs = saved(tmp_path / "decision-transformer-gym-hopper-expert", 11, 3)
    source = f"dt={tmp_path}/decision-transformer-gym-hopper-expert"
    run(convert, "convert", source, f"context={K}", f"out={tmp_path}/ours", f"run.dir={tmp_path}/convert")
    asked = [f"policy={tmp_path}/ours", "episodes=3", "baselines=[]", f"run.dir={tmp_path}/played"]
    numbers = run(evaluate, "evaluate", *HOP, *asked, f"target={TARGET:g}")
    task = {"name": "Hopper-v5", "env": {"_target_": "foundation.envs.states.Gymnasium", "task": "Hopper-v5"}}
    world, seeds = registry.make(task, episode_steps=30), [evaluation_seed(0, i) for i in range(3)]
    expected = play(Recipe(theirs, *HOPPER["expert"]), [world], seeds)
    assert numbers["evaluate/return"] == pytest.approx(np.mean([e.returns for e in expected]), rel=1e-3)
    assert numbers["evaluate/episode_frames"] == np.mean([e.frames for e in expected]) > K
    with pytest.raises(DataError, match="does not say what returns its data had; give a number"):
        run(evaluate, "evaluate", *HOP, *asked)


def test_an_imported_policy_is_trained_on(tmp_path):
    saved(tmp_path / "theirs", 3, 1)
    given = ["state_mean=0", "state_std=1", "returns_scale=100", "low=-2", "high=2", "context=4"]
    run(convert, "convert", f"dt={tmp_path}/theirs", f"out={tmp_path}/ours", f"run.dir={tmp_path}/convert", *given)
    tiny = ["algo=bc", "algo.stream.environments=1", "episodes=1", "evaluate_before=false", "evaluate_every=0"]
    few = ["algo.stream.offline_updates=2", "data.batch_size=4", f"run.dir={tmp_path}/tuned"]
    shards = [f"out={tmp_path}/shards", f"run.dir={tmp_path}/collect"]
    run(collect, "collect", *PENDULUM, "states.behaviour=random", "states.episodes=3", "workers=1", *shards)
    init, data = f"init={tmp_path}/ours", f"data.train={tmp_path}/shards"
    assert run(finetune, "finetune", *PENDULUM, *tiny, *few, init, data)["finetune/updates"] == 2
    before, after = hub.load(tmp_path / "ours"), hub.load(tmp_path / "tuned")
    assert after.config["spaces"] == before.config["spaces"] and after.statistics["returns_scale"] == 100
    sizes = [f"method.net.{value}" for value in ("width=32", "context=4", "max_timestep=50")]
    run(pretrain, "pretrain", "method=dt", init, data, *sizes, "steps=2", f"run.dir={tmp_path}/trained")
    assert hub.load(tmp_path / "trained").statistics["state_std"] == [1.0] * 3
    # without data, the return to ask for has to be given, and is enough
    online = ["algo=td3_aux", "algo.stream.environments=1", "episodes=1", "evaluate_before=false", "frames=40"]
    online += [f"algo.stream.{name}" for name in ("offline_updates=0", "offline_share=0", "updates_per_frame=0.05")]
    online += ["evaluate_every=0", f"run.dir={tmp_path}/online", init, "data.batch_size=4"]
    with pytest.raises(DataError, match="give a number"):
        run(finetune, "finetune", *PENDULUM, *online)
    run(finetune, "finetune", *PENDULUM, *online, "target=-100")
    assert hub.load(tmp_path / "online").statistics["targets"] == {"Pendulum-v1": -100.0}


def test_a_trained_run_is_exported(tmp_path):
    shards = [f"out={tmp_path}/shards", f"run.dir={tmp_path}/collect"]
    run(collect, "collect", *PENDULUM, "states.behaviour=random", "states.episodes=3", "workers=1", *shards)
    tiny = ["method.net.width=16", "method.net.context=4", "steps=2", f"data.train={tmp_path}/shards"]
    run(pretrain, "pretrain", "method=dt", *tiny, f"run.dir={tmp_path}/dt")
    run(convert, "convert", f"policy={tmp_path}/dt", f"out={tmp_path}/theirs", f"run.dir={tmp_path}/convert")
    theirs, ours = DecisionTransformerModel.from_pretrained(tmp_path / "theirs").eval(), hub.load(tmp_path / "dt")
    known = {name: getattr(theirs.config, name) for name in ("state_mean", "state_std", "returns_scale", "returns")}
    assert known.items() <= ours.statistics.items()
    assert (theirs.config.action_low, theirs.config.action_high, theirs.config.context_size) == ([-2.0], [2.0], 4)
    states, asked, times = torch.randn(2, 4, 3), torch.randn(2, 4, 1), torch.arange(4).expand(2, 4)
    actions = torch.rand(2, 4, 1) * 2 - 1
    with torch.no_grad():
        said = theirs(states=states, actions=actions, returns_to_go=asked, timesteps=times,
                      attention_mask=torch.ones(2, 4)).action_preds  # fmt: skip
        window = {"observation": states, "action": actions, "condition": asked, "timestep": times}
        torch.testing.assert_close(ours.net(window)[0].mean, said, rtol=0, atol=1e-5)
