"""Hub folders without the weights of the language model that their policy's trunk is: adapters, embeddings and heads.

`base` of config.yaml says where that model is (a folder here, or owner/name@commit) and the sha256 of what was left
out, so that a folder which now holds another model is not taken for it.
"""

import hashlib

from safetensors.torch import save

from models.adapters import ADDED, BASE
from pipelines.construct import outlined
from pipelines.schema import DataError

PREFIX = "trunk.trunk."  # of what models.adapters.Adapted is around
MOST = 1 << 16  # tensors of a network that is built for its names


def left_out(net):
    """Names of the weights that training leaves as the language model has them: of its trunk, without adapters."""
    parameters = {name: p for name, p in net.named_parameters() if name.startswith(PREFIX) and ADDED not in name}
    return sorted(name for name, parameter in parameters.items() if not parameter.requires_grad)


def split(net, weights):
    """(weights to keep, sha256 of those that are left out); DataError where that would be none."""
    names = left_out(net)
    if not names:
        raise DataError("save=adapters: all of the language model is trained, nothing can be left out; use save=whole")
    return {name: value for name, value in weights.items() if name not in set(names)}, digest(weights, names)


def joined(config, weights, place):
    """`weights` of a folder with those of its base, if it has one; DataError if that is gone, or another model now."""
    base = config.get("base")
    if base is None:
        return weights
    if not isinstance(base, dict) or not all(isinstance(base.get(name), str) for name in ("init", "sha256")):
        raise DataError(f"base of {place} is {base!r:.80}: expected {{init, sha256}}; copy the folder again")
    from pipelines import language_release  # which reads hub folders itself

    names = left_out(outlined(config["net"], MOST, place))
    try:
        found = language_release.load(base["init"]).weights
    except DataError as error:
        raise DataError(f"{place} holds what was trained on the language model {base['init']} only: {error}") from error
    sources = {name: "trunk." + name.removeprefix(PREFIX).replace(BASE, "") for name in names}
    whole = weights | {name: found[source] for name, source in sources.items() if source in found}
    if not whole.keys() >= set(names) or digest(whole, names) != base["sha256"]:
        raise DataError(f"{base['init']} is no longer the language model that {place} was trained on; bring that back")
    return whole


def digest(weights, names):
    """sha256 of named tensors."""
    found = hashlib.sha256()
    for name in names:
        found.update(save({name: weights[name].detach().cpu().contiguous()}))
    return found.hexdigest()
