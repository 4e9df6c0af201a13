"""Where a model is: a folder here, a run directory, or `owner/name[@revision]` on the hub -> a folder to read.

Downloads go through huggingface_hub, which caches them by commit (HF_HOME), asks the server that HF_ENDPOINT names with
the token HF_TOKEN, and stays off the network with HF_HUB_OFFLINE=1. Only the four files of a hub folder are fetched.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from pipelines.schema import DataError

CONFIG, WEIGHTS, STATISTICS, CARD = "config.yaml", "model.safetensors", "statistics.json", "README.md"
FILES = (CONFIG, WEIGHTS, STATISTICS, CARD)
SCHEME = "hf://"
NAME = re.compile(r"(?P<repo>(?P<owner>[A-Za-z0-9][\w.-]*)/[\w.-]+)(@(?P<revision>[^\s@]+))?", re.ASCII)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A folder to read a model from."""

    folder: Path
    origin: str | None = None  # owner/name@commit if it came from the hub


def find(where):
    """Found for a path, a run directory that holds a model, or a name on the hub. What is here is not looked up there.

    A missing path whose first folder exists is a slip of the pen, not somebody's repository: `hf://` says otherwise.
    """
    path, name = Path(where), named(where)
    if name is None:
        return Found(path / "model" if (path / "model" / CONFIG).is_file() else path)
    return download(*name)


def named(where):
    """(repository, revision) of what is a name on the hub; None for what is, or was meant to be, a path here."""
    name = NAME.fullmatch(str(where).removeprefix(SCHEME))
    if Path(where).exists() or name is None:
        return None
    meant = str(where).startswith(SCHEME) or name["revision"] or not Path(name["owner"]).is_dir()
    return (name["repo"], name["revision"] or "main") if meant else None


def snapshot(repo, revision, files):
    """Folder with those of `files` (names or patterns) that a hub repository has at a branch, tag or commit."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(files)))
    except failures() as error:
        raise DataError(f"{repo}@{revision} (no folder of that name here, so on the hub): {advice(error)}") from error


def download(repo, revision):
    """Found for the commit that `revision` (branch, tag or commit) of a hub repository points to."""
    folder = snapshot(repo, revision, FILES)
    found = Found(folder, f"{repo}@{folder.name}")
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{repo}@{revision} has no {' and no '.join(missing)}, so it is no model of this program (commit"
            f" {folder.name[:12]}); check the name, or give a revision that has them: {repo}@<revision>"
        )
    log.info("%s@%s is commit %s, in %s", repo, revision, folder.name, folder)
    return found


def failures():
    """What huggingface_hub raises: errors of its HTTP client (httpx or httpx2), of files, of odd answers."""
    from huggingface_hub.errors import HTTPError

    return HTTPError, OSError, ValueError, KeyError, AssertionError


def advice(error):
    """What went wrong and what to do, for an error of huggingface_hub."""
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return f"it is gated ({status}): accept its terms on its page, then set HF_TOKEN to a token of that account"
    if isinstance(error, errors.RevisionNotFoundError):
        return "there is no such revision; give a branch, a tag or a full commit of it"
    if status == 401:
        return "it is private or does not exist (401): set HF_TOKEN to a token that may read it, or check the name"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no such repository, or your token may not see it ({status}); check the name and HF_TOKEN"
    if status == 403:
        return "the token may not do this (403); set HF_TOKEN to one with the right permissions"
    if status is not None:
        return f"the hub answered {status} ({first_line(error)}); run the command again, later if it is overloaded"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        if constants.HF_HUB_OFFLINE:
            return "it is not in the cache, and HF_HUB_OFFLINE=1 forbids asking the hub; run once without it"
        reason = first_line(error.__cause__ or error)
        return f"it is not in the cache and the hub cannot be reached ({reason}); check the network and HF_ENDPOINT"
    if isinstance(error, errors.HFValidationError):
        return f"that is no name of a repository ({first_line(error)})"
    if isinstance(error, OSError) and error.errno is not None:
        return f"the cache cannot be written ({first_line(error)}); set HF_HOME to a folder you can write, with space"
    if isinstance(error, ValueError | KeyError | AssertionError):
        return f"the server does not answer as a hub does ({first_line(error)}); check HF_ENDPOINT"
    return f"the hub was not reached or cut the transfer off ({first_line(error)}); run it again, whole files are kept"


def first_line(error):
    return str(error).strip().partition("\n")[0][:200]
