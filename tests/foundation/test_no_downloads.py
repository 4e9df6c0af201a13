"""Data that are made or found on this machine reach the methods that learn from states and video without rewards."""

import numpy as np
import pytest

from foundation import collect, pretrain
from pipelines import exchange, ingest
from pipelines.states import open_states
from tests.foundation.running import run

SKILLS = ["method=hilp", "method.net.width=16", "method.net.layers=1", "method.net.latent_dim=4", "data.batch_size=8"]


def test_play_of_a_game_becomes_video_for_icvf(tmp_path):
    plays, clips = tmp_path / "plays", tmp_path / "clips"
    settings = ["task.env.episode_tics=120", "hours=0.004", "minutes_per_video=0.12", "workers=0"]
    run(collect, "collect", "task=doom_freeplay", *settings, f"out={plays}", f"run.dir={tmp_path}")
    at = ["size=[32,32]", "workers=0", f"run.dir={tmp_path}"]
    run(ingest, "ingest", f"videos={plays}", f"out={clips}", *at)
    run(ingest, "ingest", f"videos={plays}", f"out={tmp_path / 'bare'}", "actions=none", *at)
    (states, _), (bare, _) = open_states(clips, "clips"), open_states(tmp_path / "bare", "bare")
    assert len(bare.offsets) == 3 and len(states.offsets) > 3  # logs tell where another episode begins
    np.testing.assert_array_equal(states.offsets[-1], bare.offsets[-1])
    tiny = ["method=icvf", "method.net.dim=8", "method.net.channels=[4,4]", "data.batch_size=8", "data.frame_skip=2"]
    for name in ("clips", "bare"):
        given = [*tiny, f"data.train={tmp_path / name}", "steps=2", f"run.dir={tmp_path / f'icvf-{name}'}"]
        assert np.isfinite(run(pretrain, "pretrain", *given)["train/loss"])


def test_meta_world_becomes_skills(tmp_path):
    pytest.importorskip("metaworld")
    play = ["task=metaworld", "task.name=[reach,push]", "states.episodes=2", "task.env.episode_steps=20", "workers=0"]
    run(collect, "collect", *play, f"out={tmp_path / 'demos'}", f"run.dir={tmp_path}")
    given = [*SKILLS, f"data.train={tmp_path / 'demos'}", "steps=2", f"run.dir={tmp_path / 'hilp'}"]
    assert np.isfinite(run(pretrain, "pretrain", *given)["train/loss"])


def test_files_of_others_become_skills(tmp_path):
    rng, ends = np.random.default_rng(0), np.arange(1, 61) % 20 == 0
    arrays = {"observations": rng.normal(size=(60, 5)), "actions": rng.uniform(-1, 1, (60, 2)), "terminals": ends}
    np.savez(tmp_path / "cube-single-play-v0.npz", **arrays)
    given = [f"from={tmp_path / 'cube-single-play-v0.npz'}", "format=ogbench", "workers=0", f"run.dir={tmp_path}"]
    summary = run(exchange, "exchange", *given, f"out={tmp_path / 'cube'}")
    assert (summary["episodes"], summary["steps"]) == (3, 57)
    given = [*SKILLS, f"data.train={tmp_path / 'cube'}", "steps=2", f"run.dir={tmp_path / 'hilp'}"]
    assert np.isfinite(run(pretrain, "pretrain", *given)["train/loss"])
