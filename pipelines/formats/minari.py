"""Minari data sets on disk: `<id>/data/main_data.hdf5` with a group per episode, and metadata.json with the spaces.

Reading needs h5py only. Minari itself would build the environment that the metadata name where these lack a space,
that is run what a file says; here such a data set is refused.
"""

import os
import re
from pathlib import Path

import numpy as np

from pipelines.folders import files_below
from pipelines.formats.episodes import FormatError, box, finish, scalars, vectors
from pipelines.formats.hdf5 import column, find, library, opened, whole
from pipelines.schema import (
    ACTION,
    NEXT_OBSERVATION,
    OBSERVATION,
    OPTIMAL_ACTION,
    REWARD,
    TERMINATED,
    TRUNCATED,
    DataError,
)
from pipelines.trajectories import OPTIONAL, Spaces
from pipelines.untrusted import parse_json, read_json

DATA, METADATA = "main_data.hdf5", "metadata.json"
EPISODE = re.compile(r"episode_(\d{1,9})")
TAGS = "foundation_policy_tags"  # attribute of an episode that we exported: its tags as JSON
RATE = "foundation_policy_fps"  # in metadata.json, steps per second
MAX_JSON_BYTES = 16 << 20


def folder():
    """Where Minari keeps data sets."""
    return Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")


def locate(source):
    """Path of a data set: itself, or the id of one that Minari has on this machine."""
    if Path(source).exists():
        return Path(source)
    if (folder() / source).is_dir():
        return folder() / source
    raise DataError(
        f"from={source} is neither a path nor a data set in {folder()}; `minari download {source}` fetches one"
    )


def units(root, options):
    """[(id, files)]: one file each."""
    library()
    files = [root] if root.is_file() else files_below(root, DATA.__eq__)
    if not files and files_below(root, METADATA.__eq__):
        raise DataError(f"{root} is stored as Arrow or Parquet; only Minari's HDF5 data sets are read")
    named = [(path.parent.parent if path.parent.name == "data" else path.parent, path) for path in files]
    return [(path.name if path == root else str(path.relative_to(root)), (file,)) for path, file in named]


def read(path, options, task):
    metadata = read_json(path.with_name(METADATA), MAX_JSON_BYTES)
    leaves = observation_parts(space(metadata, "observation_space"), options.observation)
    action = space(metadata, "action_space")
    task = task if options.task else str(metadata.get("dataset_id", task))
    with opened(path) as file:
        names = sorted((int(m[1]), m[0]) for m in map(EPISODE.fullmatch, file) if m)
        for _, name in names:
            try:
                yield episode(find(file, name), leaves, action, options, {"task": task}, metadata.get(RATE))
            except FormatError as error:
                yield FormatError(error.code, f"{name}: {error.detail}")


def space(metadata, name):
    """A serialised gymnasium space as a dict."""
    if not isinstance(metadata.get(name), str):
        raise FormatError("space", f"{METADATA} has no {name}: an old data set; load and save it with today's Minari")
    value = parse_json(metadata[name], name)
    if not isinstance(value, dict) or "type" not in value:
        raise FormatError("space", f"{name} is {value!r:.60}")
    return value


def observation_parts(tree, wanted):
    """Paths below `observations` of the vectors that make the state; Dict spaces are joined in their order."""
    found = dict(vectors_of(tree, ("observations",)))
    names = {"/".join(path[1:]): path for path in found}
    if missing := [name for name in wanted if name not in names]:
        raise FormatError("observation", f"no parts {missing}; there are {sorted(names)}")
    parts = [names[name] for name in wanted] or list(found)
    if odd := ["/".join(path[1:]) or found[path] for path in parts if found[path] != "vector"]:
        raise FormatError("observation", f"{odd} are no vectors; choose some of {sorted(names)} with observation=[...]")
    return parts


def vectors_of(tree, path):
    """(path, "vector" or what else it is) of every leaf of a space."""
    if tree.get("type") == "Dict":
        for name, below in tree["subspaces"].items():
            yield from vectors_of(below, (*path, name))
    else:
        vector = tree.get("type") == "Box" and len(tree.get("shape", ())) == 1
        yield path, "vector" if vector else f"{tree.get('type')} {tree.get('shape', '')}"


def episode(group, leaves, action, options, tags, fps):
    """Episode of one group."""
    if group is None:
        raise FormatError("missing", "no such episode")
    states = np.concatenate([vectors(whole(column(group, *path))) for path in leaves], axis=1)  # t+1 s
    rewards = scalars(whole(column(group, "rewards")), np.float32)
    if len(states) != len(rewards) + 1 or not len(rewards):
        raise FormatError("lengths", f"{len(states)} observations of {len(rewards)} steps; expected one more")
    columns = {
        OBSERVATION: states[:-1], NEXT_OBSERVATION: states[1:], REWARD: rewards,
        TERMINATED: scalars(whole(column(group, "terminations")), bool),
        TRUNCATED: scalars(whole(column(group, "truncations")), bool),
    }  # fmt: skip
    taken = whole(column(group, "actions"))
    if action["type"] == "Discrete":
        columns[ACTION] = scalars(taken, np.int64) - int(action.get("start", 0))
        spaces = Spaces(states.shape[1], 1, n_actions=int(action["n"]))
        if columns[ACTION].min() < 0 or columns[ACTION].max() >= spaces.n_actions:
            raise FormatError("bounds", f"actions {columns[ACTION].min()}..{columns[ACTION].max()} of {action['n']}")
    elif action["type"] == "Box" and taken.ndim == 2:
        columns[ACTION] = vectors(taken)
        spaces = box(columns, options, (action.get("low"), action.get("high")))
    else:
        raise FormatError("space", f"actions of type {action['type']}, shape {list(taken.shape)}; expected vectors")
    made = finish(columns, spaces, options, {**tags, **tags_of(group)}, fps, known=True)
    if not isinstance(made, FormatError):
        made.arrays |= ours(group, made.arrays)
    return made


def ours(group, arrays):
    """Arrays of an episode that we exported, for which Minari has no place but the infos.

    Others may call theirs so too, with a row for the reset: only what has the shape of its kind is taken.
    """
    like = {OPTIMAL_ACTION: arrays[ACTION].shape, NEXT_OBSERVATION: arrays[OBSERVATION].shape}
    nodes = {name: column(group, "infos", name, optional=True) for name in OPTIONAL}
    return {name: whole(node) for name, node in nodes.items() if node is not None and node.shape == like[name]}


def tags_of(group):
    """Our own tags; else the seed, and success where the infos have it."""
    ours = group.attrs.get(TAGS)
    if isinstance(ours, str):
        tags = parse_json(ours, TAGS)
        return tags if isinstance(tags, dict) else {}
    tags = {"seed": int(group.attrs["seed"])} if "seed" in group.attrs else {}
    for name in ("success", "is_success"):
        node = column(group, "infos", name, optional=True)
        if node is not None:
            tags["success"] = bool(whole(node).any())
    return tags
