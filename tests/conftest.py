"""Tiny, deterministic, learnable play: a camera turns over a fixed panorama, and a lamp shows that `attack` is held."""

import resource
import time

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from foundation import pretrain
from pipelines import schema
from pipelines.actions import DOOM, ActionCodec
from pipelines.command import CONFIGS, execute
from pipelines.pixels import encode
from pipelines.schema import SampleMeta
from pipelines.shards import ShardWriter
from tests.foundation.maze_shards import write_mazes
from tests.foundation.vector_world import write_pushes

HEIGHT, WIDTH, FPS = 32, 40, 17.5
DEGREES_PER_PIXEL = 0.5


def play(length, seed):
    """(frames [t h w c], keys [t k], mouse [t 2]): the mouse turns the panorama, holding attack lights a corner."""
    rng = np.random.default_rng(seed)
    panorama = np.kron(np.random.default_rng(0).integers(40, 216, (HEIGHT // 4, 64, 3)), np.ones((4, 4, 1)))
    codec = ActionCodec(DOOM)
    yaw = codec.from_bins(rng.integers(3, 8, length)).astype(np.float64)
    yaw[rng.random(length) < 0.3] = 0
    keys = np.zeros((length, 6), np.uint8)
    keys[:, 4] = np.repeat(rng.random(length // 4 + 1) < 0.5, 4)[:length]
    heading = np.concatenate([[0], np.cumsum(yaw)[:-1]])
    columns = (np.round(heading / DEGREES_PER_PIXEL)[:, None] + np.arange(WIDTH)).astype(int) % panorama.shape[1]
    frames = panorama[:, columns].transpose(1, 0, 2, 3).astype(np.uint8)
    lit = np.concatenate([[0], keys[:-1, 4]]).astype(bool)
    frames[lit, 24:, :10] = 255
    mouse = np.stack([np.zeros(length), yaw], -1).astype(np.float32)
    return frames, keys, mouse


def write_play(root, videos=2, clips=2, length=48, actions=True, seed=0):
    """Trajectory shards (or clip shards without actions) of `videos` recordings of `clips` clips each."""
    with ShardWriter(root, "clips", samples_per_shard=3) as writer:
        for video in range(videos):
            frames, keys, mouse = play(clips * length, seed * 1000 + video)
            for clip in range(clips):
                span = slice(clip * length, (clip + 1) * length)
                key = f"v{seed}x{video}-{span.start:08d}"
                arrays = {schema.PTS: np.arange(length)}
                if actions:
                    arrays |= {schema.KEYS: keys[span], schema.MOUSE: mouse[span]}
                    arrays |= {schema.EFFECTIVE: np.ones((length, 8), bool)}
                meta = SampleMeta(
                    key=key, source=f"video {video}.mp4", source_sha256=f"{seed:032d}{video:032d}",
                    frames=(span.start, span.stop), fps=FPS, height=HEIGHT, width=WIDTH,
                    provenance=schema.RECORDED if actions else schema.NONE,
                    actions=DOOM.to_dict() if actions else None,
                )  # fmt: skip
                members = {schema.VIDEO: encode(frames[span], FPS), schema.ARRAYS: arrays, schema.META: meta.to_dict()}
                writer.write(key, members)
    return root


@pytest.fixture(scope="session")
def play_shards(tmp_path_factory):
    return write_play(tmp_path_factory.mktemp("play"))


@pytest.fixture(scope="session")
def held_out_shards(tmp_path_factory):
    return write_play(tmp_path_factory.mktemp("held_out"), videos=1, seed=1)


@pytest.fixture
def make_play():
    return write_play


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors on shared cores: a second thread only waits for the first."""
    torch.set_num_threads(1)


@pytest.fixture
def bounded():
    """Each attack here aims at gigabytes or hours; a defended one costs next to nothing."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # kB
    assert time.process_time() - start < 20  # of this process: the machine may be busy


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A folder of four small text files."""
    folder = tmp_path_factory.mktemp("texts")
    for i, word in enumerate(("left", "right", "up", "down")):
        (folder / f"{word}.txt").write_text(f"{i} turn {word} and stop\n" * 40)
    return folder


@pytest.fixture(scope="session")
def data_for(play_shards, held_out_shards, texts, tmp_path_factory):
    """Function: composed config -> (training shards, held-out shards) of the kind its method trains on."""
    pushes, mazes = {}, []

    def shards(cfg):
        if cfg.data._target_.endswith(("ShardData", "IntentData")):
            return play_shards, held_out_shards
        if cfg.data._target_.endswith("TextData"):
            return texts, texts
        if cfg.data._target_.endswith("FrameStepData"):
            if not mazes:
                mazes.extend(write_mazes(tmp_path_factory.mktemp("mazes"), f"run.seed={seed}") for seed in (0, 1))
            return mazes
        for seed in (0, 1):
            if seed not in pushes:
                pushes[seed] = write_pushes(tmp_path_factory.mktemp(f"pushes{seed}"), 20, seed)
        return pushes[0], pushes[1]

    return shards


@pytest.fixture(scope="session")
def init_for(tmp_path_factory):
    """Function: composed config -> overrides with the trained policy that its method changes, if it does."""
    made = []

    def overrides(cfg):
        if "base" not in cfg.method.net:
            return []
        if not made:
            made.append(tmp_path_factory.mktemp("mddt"))
            with initialize_config_dir(CONFIGS, version_base="1.3"):
                net = ["method.net.width=16", "method.net.layers=1", "method.net.heads=2"]
                train = write_pushes(tmp_path_factory.mktemp("pushes"), 20)
                options = ["method=mddt", "steps=1", "data.batch_size=2", f"data.train={train}", f"run.dir={made[0]}"]
                execute(pretrain.main.function, compose("pretrain", [*options, *net]))
        return [f"init={made[0]}"]

    return overrides
