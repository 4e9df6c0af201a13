"""Builds networks that a file describes, without running or allocating what the file's author likes.

Only classes defined under our own packages are built, from plain values; and only after a copy without memory (torch's
meta device) has shown that the network is as large as the weights that came with it, and no larger.
"""

import importlib
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from pipelines.schema import DataError

PACKAGE = "models"  # the only package whose classes a hub folder may name
MAX_NUMBER = 1 << 20  # of an integer argument: no width, length or class count of ours comes near
MAX_FLOAT = 1e12  # the base of rotary positions goes to 5e10 in published models
MAX_EXTRA_BYTES = 1 << 28  # of buffers that are not saved with the weights
BUILD_ERRORS = (TypeError, ValueError, RuntimeError, ArithmeticError, AttributeError, LookupError, AssertionError)


def build(net_config):
    """{_target_: models.<module>.<Class>, ...} -> module. Nested dicts with a `_target_` are built first."""
    check_targets(net_config)
    with torch.random.fork_rng(devices=[]):  # loading must not move the caller's random stream
        return construct(net_config)


def build_to_fit(net_config, weights, place):
    """Like `build`, for a config from elsewhere: memory is spent only once every tensor of `weights` has its place."""
    check_fit(outlined(net_config, 4 * len(weights) + 64, place), weights, place)
    return build(net_config)


def outlined(net_config, parameters, place):
    """The network of a config from elsewhere without memory, of at most so many parameters."""
    check_targets(net_config)
    check_numbers(net_config)
    with torch.device("meta"), at_most(parameters, place):
        return construct(net_config)


def construct(value):
    if isinstance(value, dict):
        built = {name: construct(item) for name, item in value.items() if name != "_target_"}
        if "_target_" not in value:
            return built
        target = find_class(value["_target_"])
        try:
            return target(**built)
        except BUILD_ERRORS as error:
            raise DataError(f"{value['_target_']} cannot be built from config.yaml: {error}") from error
    return [construct(item) for item in value] if isinstance(value, list) else value


def check_targets(value, path="net", package=PACKAGE, base=nn.Module):
    """DataError unless every `_target_` in a nested config is a class that our own `package` defines."""
    if path == "net" and (not isinstance(value, dict) or "_target_" not in value):
        raise DataError("config.yaml has no net._target_; expected e.g. models.inverse_dynamics.InverseDynamics")
    if isinstance(value, dict):
        hidden = [name for name in value if str(name).startswith("_") and name != "_target_"]
        if hidden:
            raise DataError(f"{path} uses {hidden}: only _target_ and plain arguments are allowed in a hub folder")
        if "_target_" in value:
            find_class(value["_target_"], package, base)
        for name, item in value.items():
            check_targets(item, f"{path}.{name}", package, base)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            check_targets(item, f"{path}[{i}]", package, base)


def find_class(target, package=PACKAGE, base=nn.Module):
    """`<package>.<module>.<Class>` -> that class, refusing what a module merely imported (`models.vpt.torch...`)."""
    module_name, _, name = str(target).rpartition(".")
    refused = DataError(f"config.yaml asks for {target!r}; only classes defined under {package}. may be built")
    if not module_name.startswith(package + ".") or not all(part.isidentifier() for part in module_name.split(".")):
        raise refused
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except ImportError as error:
        raise DataError(f"config.yaml asks for {target!r}, which this version does not have ({error})") from error
    if not isinstance(found, type) or found.__module__ != module_name or not issubclass(found, base):
        raise refused
    return found


def check_numbers(value, path="net"):
    """DataError for an argument so large that it can only be meant to fill the memory of whoever loads it."""
    limit = MAX_FLOAT if isinstance(value, float) else MAX_NUMBER
    if isinstance(value, int | float) and not abs(value) <= limit:  # also NaN
        raise DataError(f"{path}={value!r:.40} is beyond {limit}; no network of this program is that large")
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        check_numbers(item, f"{path}.{name}")


@contextmanager
def at_most(parameters, place):
    """DataError once modules register more than so many parameters: a config may ask for a billion layers."""
    count = 0

    def register(module, name, parameter):
        nonlocal count
        count += parameter is not None
        if count > parameters:
            raise DataError(f"the config.yaml of {place} builds far more than the weights beside it hold; refused")

    handle = register_module_parameter_registration_hook(register)
    try:
        yield
    finally:
        handle.remove()


def check_fit(net, weights, place):
    """DataError that names every missing, unexpected or wrong-size tensor, or buffers of absurd size."""
    expected = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    faults = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in given]
    faults += [f"unexpected {name} {list(shape)}" for name, shape in given.items() if name not in expected]
    faults += [
        f"{name}: file has {list(given[name])}, config.yaml builds {list(shape)}"
        for name, shape in expected.items()
        if given.get(name, shape) != shape
    ]
    if faults:
        listed = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
        raise DataError(f"the weights in {place} do not fit their config.yaml: {listed}")
    extra = sum(buffer.nbytes for buffer in net.buffers())
    if extra > MAX_EXTRA_BYTES + sum(value.nbytes for value in weights.values()):
        raise DataError(f"the config.yaml of {place} asks for {extra} bytes of buffers; refused")
