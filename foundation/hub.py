"""Models as hub folders: save one with its card, load one from a path or from the hub, push one there."""

import logging

import torch

from pipelines import card, checkpoint, remote
from pipelines.command import command_line, machine
from pipelines.schema import DataError
from pipelines.shards import Shards

log = logging.getLogger("foundation-policy")
KINDS = {True: "policy", False: "inverse-dynamics"}  # by whether the network acts
SOURCES_SHOWN = 8


def load(where):
    """A hub folder, a run directory that holds one, or `owner/name[@revision]` -> `pipelines.checkpoint.Bundle`."""
    return checkpoint.load(where)


def save(folder, net, net_config, extras, lead, tables, title):
    """Writes `net` as a hub folder. extras: see `pipelines.checkpoint.save`; lead, tables: see `pipelines.card`."""
    text = card.render(title, KINDS[hasattr(net, "step")], lead, tables, command_line(), license="mit")
    return checkpoint.save(folder, net_config, net, extras, text)


def save_trained(folder, net, net_config, data, summary, cfg, statistics=None, started="random weights"):
    """Writes what pretraining made: `net` with its action spec, frame size and rate, numbers and their provenance."""
    extras = {"actions": data.spec, "size": data.size, "fps": data.fps, "statistics": statistics or {}}
    lead = (
        f"`{net_config['_target_']}` for {data.spec.name} actions, frames {data.size[0]}x{data.size[1]} RGB at"
        f" {data.fps:g} Hz; started from {started}, seed {cfg.run.seed}, on {machine_words()}."
    )
    tables = {"Data": provenance(data, cfg), "Measured": card.numbers(summary)}
    return save(folder, net, net_config, extras, lead, tables, cfg.run.name)


def provenance(data, cfg):
    """Where training data came from: {fact: value}."""
    metas = [entry.meta for entry in data.shards.entries]
    sources = sorted({meta["source_sha256"] for meta in metas})
    labellers = {entry.meta.get("labeller") for entry in (Shards(cfg.data.labels).entries if cfg.data.labels else ())}
    return {
        "training shards": f"{cfg.data.train}, fingerprint {data.shards.fingerprint()}",
        "frames": data.frames,
        "hours": data.frames / data.fps / 3600,
        "source videos": len(sources),
        "sha256 of source videos": [digest[:12] for digest in sources[:SOURCES_SHOWN]]
        + (["..."] if len(sources) > SOURCES_SHOWN else []),
        "actions": "pseudo-labels" if cfg.data.labels else sorted({meta["provenance"] for meta in metas}),
        "labels": f"{cfg.data.labels}, by {sorted(map(str, labellers))}" if cfg.data.labels else None,
        "validation shards": cfg.data.validation,
    }


def origin(init, bundle):
    """The initial weights in words: what was typed, what that was, and its hash."""
    if bundle is None:
        return "random weights"
    return f"`{init}` ({f'{bundle.origin}, ' if bundle.origin else ''}content sha256 {bundle.sha256[:12]})"


def push(where, repo, revision=None, private=False, message=None):
    """Uploads a local hub folder (or run directory) to `repo` (owner/name) in one commit -> `owner/name@commit`.

    The folder is loaded first: what cannot be loaded is not published. Only the four files of a hub folder go up.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    found = remote.find(where)
    name = remote.NAME.fullmatch(str(repo))
    if found.origin or not found.folder.is_dir():
        raise DataError(f"model={where} is no folder here; give a hub folder or the run directory that holds one")
    if name is None or name["revision"]:
        raise DataError(f"repo={repo}: expected owner/name; a branch goes into revision=")
    bundle = checkpoint.load(found.folder)
    files = [CommitOperationAdd(file, found.folder / file) for file in remote.FILES if (found.folder / file).is_file()]
    message = message or f"{type(bundle.net).__name__}, content sha256 {bundle.sha256[:12]}"
    try:
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        if revision:
            api.create_branch(repo, branch=revision, exist_ok=True)
        commit = api.create_commit(repo, files, commit_message=message, revision=revision).oid
    except remote.failures() as error:
        raise DataError(f"{repo}@{revision or 'main'} was not changed: {remote.advice(error)}") from error
    return f"{repo}@{commit}"


def machine_words():
    """Processor, threads and GPU, if there is one, in words."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{machine()['processor']}, {torch.get_num_threads()} threads{gpu}, torch {torch.__version__}"
