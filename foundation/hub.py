"""Models as hub folders: save one with its card, load one from a path or from the hub, push one there."""

import logging
from pathlib import Path

import torch

from models.language import LanguageModel
from pipelines import card, checkpoint, remote
from pipelines.command import command_line, machine
from pipelines.schema import DataError

log = logging.getLogger("foundation-policy")


def load(where):
    """A hub folder, a run directory that holds one, or `owner/name[@revision]` -> `pipelines.checkpoint.Bundle`."""
    return checkpoint.load(where)


def save(folder, net, net_config, extras, lead, tables, title):
    """Writes `net` as a hub folder. extras: see `pipelines.checkpoint.save`; lead, tables: see `pipelines.card`."""
    text = card.render(title, kind(net), lead, tables, command_line(), license="mit")
    return checkpoint.save(folder, net_config, net, extras, text)


def kind(net):
    """A key of `pipelines.card.TASKS`."""
    if isinstance(net, LanguageModel):
        return "language"
    if hasattr(net, "step"):
        return "policy"
    return "representation" if hasattr(net, "phi") else "inverse-dynamics"


def save_trained(folder, net, net_config, data, summary, cfg, statistics=None, started="random weights", base=None):
    """Writes what pretraining made: `net` with the contract of its data, numbers and their provenance.

    base: address of the language model whose weights are left out, None = nothing is.
    """
    extras = {**data.contract(), "statistics": {**data.statistics(), **(statistics or {})}}
    extras |= {} if base is None else {"base": {"init": base}}
    lead = (
        f"`{net_config['_target_']}` for {data.words()}; started from {started}, seed {cfg.run.seed}, on"
        f" {machine_words()}."
    )
    tables = {"Data": data.provenance(), "Measured": card.numbers(summary)}
    return save(folder, net, net_config, extras, lead, tables, cfg.run.name)


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
    base = bundle.config.get("base", {}).get("init")
    if base and Path(base).exists():
        raise DataError(f"{where} needs the language model in {base}, which is only here; train it with save=whole")
    skills = bundle.config.get("skills", {}).get("init")
    if skills and Path(skills).exists():
        raise DataError(f"{where} plays the skills in {skills}, which are only here; push those, and train with"
                        " skills.init=<owner/name>")  # fmt: skip
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
