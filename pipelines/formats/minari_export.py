"""Episodes in our shards -> a Minari data set that `minari.load_dataset` opens. Discrete and continuous actions."""

import json
import os
import re
import shutil
import uuid

import numpy as np

from pipelines import schema
from pipelines.formats.minari import RATE, TAGS, folder
from pipelines.schema import DataError
from pipelines.shards import Shards
from pipelines.trajectories import OPTIONAL, common, has_tags

NAME = re.compile(r"(?:[-\w]+/)*[-\w]+-v\d+")
CHUNK = 64  # episodes in memory


def library():
    try:
        import minari
        from minari.data_collector import EpisodeBuffer
        from minari.dataset.minari_storage import MinariStorage
        from minari.serialization import deserialize_space
    except ImportError as error:
        raise DataError('export to Minari needs it: pip install "foundation-policy[minari]"') from error
    return minari, deserialize_space, EpisodeBuffer, MinariStorage


def export(root, name, where=None, on_damage="stop"):
    """Writes the episodes of a folder of shards, in order of key; returns their number, steps and the data set's path.

    The data set appears under its name when it is whole.
    """
    minari, make_space, EpisodeBuffer, MinariStorage = library()
    if not NAME.fullmatch(name):
        raise DataError(f"out={name}: expected the name of a Minari data set, such as reach/scripted-v0")
    target = folder() / name
    if target.exists():
        raise DataError(f"{target} exists; choose another version in out=, or `minari delete {name}`")
    shards = Shards(root, on_damage=on_damage)
    entries = sorted((e for e in shards.entries if has_tags(e.meta, where)), key=lambda e: e.key)
    if not entries:
        raise DataError(f"{root} holds no episodes{f' with {dict(where)}' if where else ''}")
    ours, fps = common(root, entries)
    part = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}.part")
    try:
        (part / "data").mkdir(parents=True)
        storage = MinariStorage.new(part / "data", *map(make_space, serialised(ours)), data_format="hdf5")
        for first in range(0, len(entries), CHUNK):
            chunk = entries[first : first + CHUNK]
            storage.update_episodes([buffer(EpisodeBuffer, shards.arrays(entry.key)) for entry in chunk])
            tags = [{TAGS: json.dumps(entry.meta.get("tags") or {}, sort_keys=True)} for entry in chunk]
            storage.update_episode_metadata(tags, range(first, first + len(chunk)))
        facts = {"dataset_id": name, "minari_version": minari.__version__, RATE: fps}
        storage.update_metadata({**facts, "description": f"exported by foundation-policy from {shards.fingerprint()}"})
        os.replace(part, target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    steps = sum(entry.meta["frames"][1] - entry.meta["frames"][0] for entry in entries)
    return {"episodes": len(entries), "steps": steps, "path": str(target)}


def serialised(ours):
    """(observation space, action space) as Minari writes them down."""
    states = [ours.state_dim]
    observation = {"low": np.full(states, -np.inf), "high": np.full(states, np.inf), "shape": states}
    if ours.n_actions is not None:
        action = {"type": "Discrete", "n": ours.n_actions, "start": 0}
    else:
        action = {"type": "Box", "dtype": "float32", "low": ours.low, "high": ours.high, "shape": [ours.action_dim]}
    return {"type": "Box", "dtype": "float32", **observation}, action


def buffer(EpisodeBuffer, arrays):
    final = arrays[schema.FINAL_OBSERVATION][None]
    infos = {name: arrays[name] for name in OPTIONAL if name in arrays}
    return EpisodeBuffer(
        observations=np.concatenate([arrays[schema.OBSERVATION], final]), actions=arrays[schema.ACTION],
        rewards=arrays[schema.REWARD], terminations=arrays[schema.TERMINATED], truncations=arrays[schema.TRUNCATED],
        infos=infos or None,
    )  # fmt: skip
