"""What both fault campaigns share: a small world of real files, and a process that has imported what commands need."""

import ctypes
import gc
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import sklearn.metrics  # noqa: F401 what commands import when they need it is here imported once, for all forks
import torch
from hydra.core.plugins import Plugins

from foundation import finetune, pretrain, report  # noqa: F401
from foundation.envs import doom  # noqa: F401
from foundation.finetuning import ppo  # noqa: F401
from foundation.pretraining import idm, vpt  # noqa: F401
from models.inverse_dynamics import InverseDynamics
from models.video_policy import VideoPolicy
from pipelines import checkpoint, decoders, ingest, label, verify  # noqa: F401
from pipelines.actions import DOOM, ActionCodec
from pipelines.pixels import encode
from pipelines.recordings import FORMAT, VERSION

SIZE, FPS = (32, 40), 17.5  # h, w of stored frames
FRAMES = 48  # of a video
SUBREAPER = 36  # option of prctl(2): orphans become children of this process
INGEST = ("size=[32,40]", "clip_frames=12", "min_frames=4", "samples_per_shard=2")
TRAINING = ("data.batch_size=2", "data.length=8", "data.stride=8", "checkpoint_every=1")
NET_IDM = ("method.net.dim=16", "method.net.layers=1", "method.net.heads=2", "method.net.window=8",
           "method.net.channels=[4,4,4]")  # fmt: skip
NET_VPT = ("method.net.dim=16", "method.net.layers=1", "method.net.heads=2", "method.net.context=8",
           "method.net.channels=[4,4]")  # fmt: skip
IDM = {
    "_target_": "models.inverse_dynamics.InverseDynamics", "height": SIZE[0], "width": SIZE[1], "n_keys": 6,
    "n_bins": 15, "window": 8, "channels": [4, 4, 4], "dim": 16, "layers": 1, "heads": 2,
}  # fmt: skip
POLICY = {
    "_target_": "models.video_policy.VideoPolicy", "height": SIZE[0], "width": SIZE[1], "context": 8,
    "channels": [4, 4], "dim": 16, "layers": 1, "heads": 2,
}  # fmt: skip


def prepare():
    """Makes this process a cheap and clean parent of many forks."""
    torch.set_num_threads(1)
    Plugins.instance()  # Hydra looks for them once
    warnings.filterwarnings("ignore", message=".*found in sys.modules", category=RuntimeWarning)  # of runpy
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)  # so that nothing that outlives a kill goes unseen
    gc.collect()
    gc.freeze()  # or collections in the children copy every page


# files


def scene(frames, seed):
    """uint8 [t h w c]: a texture that slides, so that no two frames are alike."""
    texture = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    texture = np.kron(texture, np.ones((8, 8, 1), np.uint8))
    return np.stack([np.roll(texture, (2 * i, 5 * i), (0, 1)) for i in range(frames)])


def write_log(path, frames, seed):
    """A recording's action log with every field."""
    rng = np.random.default_rng(seed)
    lines = [{"format": FORMAT, "version": VERSION, "actions": DOOM.to_dict(), "fps": FPS, "task": "sliding"}]
    for i in range(frames):
        keys = [key for key in DOOM.keys if rng.random() < 0.3]
        mouse = np.round(rng.normal(0, 3, 2), 3).tolist()
        ends = {"first": i == 0, "terminated": False, "truncated": i == frames - 1}
        lines.append({"keys": keys, "mouse": mouse, "reward": float(i % 5 == 0), **ends})
    Path(path).write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_videos(folder, count):
    """`count` recordings, `v0.mp4` with `v0.jsonl` and so on."""
    folder.mkdir(parents=True)
    for i in range(count):
        encode(scene(FRAMES, i), FPS, folder / f"v{i}.mp4")
        write_log(folder / f"v{i}.jsonl", FRAMES, i)
    return folder


def write_models(folder):
    """Hub folders `idm` and `policy` with random weights."""
    codec, rng = ActionCodec(DOOM), np.random.default_rng(0)
    shape = {"n_buttons": codec.n_buttons, "n_camera": codec.n_camera, "camera_on": codec.camera_on}
    policy = {**POLICY, **shape, "camera_null": codec.camera_null}
    extras = {"actions": DOOM, "size": SIZE, "fps": FPS}
    for name, config, kind in (("idm", IDM, InverseDynamics), ("policy", policy, VideoPolicy)):
        torch.manual_seed(0)
        net = kind(**{key: value for key, value in config.items() if key != "_target_"})
        statistics = {"mean": rng.normal(size=20), "deviation": rng.random(20)}
        checkpoint.save(folder / name, config, net, {**extras, "statistics": statistics}, f"# {name}")


def files(folder):
    """{relative path: bytes} of everything in a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}
