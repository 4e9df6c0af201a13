"""The exchange command in a test, and recordings to exchange."""

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pipelines import exchange
from pipelines.command import CONFIGS, execute


def run(source, out, **changes):
    with initialize_config_dir(version_base="1.3", config_dir=CONFIGS):
        cfg = compose("exchange")
    base = {"from": str(source), "out": str(out), "workers": 0, "run": {"dir": f"{out}-run"}}
    cfg.merge_with(OmegaConf.create({**base, **changes}))
    return execute(exchange.main.function, cfg)


def flat(lengths, s=3, a=2, seed=0):
    """One recording of episodes: {name: [n ...]} as D4RL and L2M keep them, and where episodes end."""
    n, generator = sum(lengths), np.random.default_rng(seed)
    states = [generator.normal(size=(length + 1, s)).astype(np.float32) for length in lengths]
    ends = np.zeros(n, bool)
    ends[np.cumsum(lengths) - 1] = True
    return {
        "observations": np.concatenate([x[:-1] for x in states]), "actions": generator.uniform(-1, 1, (n, a)),
        "next_observations": np.concatenate([x[1:] for x in states]), "rewards": generator.normal(size=n),
    }, ends  # fmt: skip


def hdf5(path, columns):
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file.create_dataset(name, data=values, chunks=True, compression="gzip")
    return path


def same(data, columns):
    np.testing.assert_array_equal(data.observation, columns["observations"])
    np.testing.assert_allclose(data.action, columns["actions"], atol=1e-6)
    np.testing.assert_array_equal(data.reward, columns["rewards"].astype(np.float32))
    np.testing.assert_array_equal(data.final_observation, columns["next_observations"][data.offsets[1:] - 1])
