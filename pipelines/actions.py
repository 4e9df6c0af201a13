"""Keyboard-and-mouse actions as classes: the spec of a world's keys, and the codec between logs and network outputs.

Three forms of one action:
    log       keys uint8 [... k] held during the frame, mouse float32 [... 2] degrees turned (pitch down, yaw right)
    factored  keys as above, bins int64 [... 2]: mu-law bins of the two mouse axes  (what an IDM predicts)
    joint     int64 [... 2]: (buttons class, camera class)                          (what a policy predicts)

The joint space is that of VPT (arXiv:2206.11795): a product over groups of exclusive keys, then one bit that says
whether the mouse moves at all, then a class of its own for every key that excludes all others.

Every method of the codec takes NumPy arrays or torch tensors and returns what it was given.
"""

import functools
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import numpy as np
import torch
from einops import rearrange

from pipelines.schema import DataError

MAX_CLASSES = 1 << 20  # joint buttons, or mouse bins of both axes (the largest of ours: 8,641)
MAX_TABLE = 1 << 26  # buttons classes x keys
MINECRAFT_DEGREES_PER_PIXEL = 360 / 2400  # of contractor recordings


@dataclass(frozen=True)
class ActionSpec:
    """The keys of a world, how they combine to one class, and the bins of its mouse.

    A group is one digit of the buttons class: 0 none, 1 + i for its i-th key. In a `cancelling` group (two opposite
    keys) both together mean neither; in other groups the later-listed key wins.
    """

    name: str
    keys: tuple[str, ...]  # order of the key vector
    groups: tuple[tuple[str, ...], ...]  # mixed radix, last group fastest; the mouse bit is a further, last digit
    cancelling: tuple[int, ...]  # indices into `groups`
    exclusive: tuple[str, ...]  # keys that are a class of their own and hold the mouse still
    camera_max: float  # degrees per frame and axis; more is clipped
    camera_mu: float  # of the mu-law: larger means finer bins near zero
    camera_bins: int  # per axis, odd: the middle one is "no motion"

    def __post_init__(self):
        _check_spec(self)

    def to_dict(self):
        """Plain JSON types; the inverse of `from_dict`."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values):
        """From `to_dict()`, YAML or JSON; unknown or missing fields raise DataError."""
        names = {f.name for f in fields(cls)}
        if set(values) != names:
            raise DataError(
                f"an action spec has the fields {sorted(names)}; unknown: {sorted(set(values) - names)},"
                f" missing: {sorted(names - set(values))}"
            )
        try:
            return cls(
                name=str(values["name"]),
                keys=names_of(values["keys"]),
                groups=tuple(names_of(group) for group in values["groups"]),
                cancelling=tuple(int(i) for i in values["cancelling"]),
                exclusive=names_of(values["exclusive"]),
                camera_max=float(values["camera_max"]),
                camera_mu=float(values["camera_mu"]),
                camera_bins=int(values["camera_bins"]),
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"an action spec has a field of the wrong kind ({error})") from error

    def fingerprint(self):
        """16 hex digits that change with any field."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def names_of(values):
    """Key names as a tuple; TypeError for anything else."""
    if isinstance(values, str) or not all(isinstance(name, str) for name in values):
        raise TypeError(f"expected a list of key names, got {values!r:.40}")
    return tuple(values)


def _check_spec(spec):
    listed = [key for group in spec.groups for key in group] + list(spec.exclusive)
    if sorted(listed) != sorted(spec.keys) or len(set(spec.keys)) != len(spec.keys):
        raise DataError(
            f"action spec {spec.name!r}: every key belongs to exactly one group or to `exclusive`;"
            f" keys {sorted(spec.keys)}, listed {sorted(listed)}"
        )
    if not all(0 <= i < len(spec.groups) and len(spec.groups[i]) == 2 for i in spec.cancelling):
        raise DataError(f"action spec {spec.name!r}: `cancelling` {spec.cancelling} must name groups of two keys")
    if spec.camera_bins < 3 or spec.camera_bins % 2 == 0:
        raise DataError(f"action spec {spec.name!r}: camera_bins is {spec.camera_bins}, expected an odd number >= 3")
    if not (0 < spec.camera_max < math.inf and 0 < spec.camera_mu < math.inf):
        raise DataError(f"action spec {spec.name!r}: camera_max and camera_mu must be positive")
    buttons = 2 * math.prod(len(group) + 1 for group in spec.groups) + len(spec.exclusive)
    if max(buttons, spec.camera_bins**2) > MAX_CLASSES or buttons * len(spec.keys) > MAX_TABLE:
        raise DataError(f"action spec {spec.name!r:.40} makes more than {MAX_CLASSES} classes; too many")


_HOTBAR = tuple(f"hotbar.{i}" for i in range(1, 10))

MINECRAFT = ActionSpec(  # 8,641 x 121 classes, in the order of the VPT release
    name="minecraft",
    keys=(
        *("attack", "back", "forward", "jump", "left", "right", "sneak", "sprint", "use", "drop", "inventory"),
        *_HOTBAR,
    ),
    groups=(
        _HOTBAR,
        ("forward", "back"),
        ("left", "right"),
        ("sprint", "sneak"),
        ("use",),
        ("drop",),
        ("attack",),
        ("jump",),
    ),
    cancelling=(1, 2),
    exclusive=("inventory",),
    camera_max=10.0,
    camera_mu=10.0,
    camera_bins=11,
)

DOOM = ActionSpec(  # 72 x 225 classes
    name="doom",
    keys=("forward", "backward", "left", "right", "attack", "use"),
    groups=(("forward", "backward"), ("left", "right"), ("attack",), ("use",)),
    cancelling=(0, 1),
    exclusive=(),
    camera_max=15.0,
    camera_mu=5.0,
    camera_bins=15,
)

SPECS = {spec.name: spec for spec in (MINECRAFT, DOOM)}


def spec_from(value):
    """ActionSpec from a known name, a mapping of its fields (dict or YAML node), or a spec."""
    if isinstance(value, ActionSpec):
        return value
    if isinstance(value, str):
        if value not in SPECS:
            raise DataError(f"unknown action spec {value!r}; known: {sorted(SPECS)}, or give its fields as a mapping")
        return SPECS[value]
    if isinstance(value, Mapping):
        return ActionSpec.from_dict(value)
    raise DataError(f"expected an action spec (name or mapping), got {type(value).__name__}")


def _either(method):
    """Lets a method written for tensors take and return NumPy arrays as well."""

    @functools.wraps(method)
    def call(self, *arrays):
        if any(isinstance(array, torch.Tensor) for array in arrays):
            return method(self, *map(torch.as_tensor, arrays))
        result = method(self, *(torch.from_numpy(np.require(array, requirements=["C", "W"])) for array in arrays))
        return tuple(r.numpy() for r in result) if isinstance(result, tuple) else result.numpy()

    return call


class ActionCodec:
    """Translates between the log, factored and joint forms of the actions of one `ActionSpec`."""

    def __init__(self, spec):
        self.spec = spec = spec_from(spec)
        self.n_keys, self.n_bins = len(spec.keys), spec.camera_bins
        self.null_bin = spec.camera_bins // 2
        self.n_camera = spec.camera_bins**2
        self.camera_null = self.null_bin * spec.camera_bins + self.null_bin
        self._groups = [[spec.keys.index(key) for key in group] for group in spec.groups]
        self._exclusive = [spec.keys.index(key) for key in spec.exclusive]
        self.n_product = 2 * math.prod(len(group) + 1 for group in spec.groups)
        self.n_buttons = self.n_product + len(spec.exclusive)
        self.camera_on = [bool(i % 2) for i in range(self.n_product)] + [False] * len(spec.exclusive)
        self._keys_of = self._key_table()  # buttons-class k

    def _key_table(self):
        """uint8 [n_buttons k]: the keys each buttons class holds down."""
        table = torch.zeros(self.n_buttons, self.n_keys, dtype=torch.uint8)
        rest = torch.arange(self.n_product) // 2
        for group in reversed(self._groups):
            digit = rest % (len(group) + 1)
            for i, key in enumerate(group):
                table[: self.n_product, key] = (digit == i + 1).to(torch.uint8)
            rest = rest // (len(group) + 1)
        for i, key in enumerate(self._exclusive):
            table[self.n_product + i, key] = 1
        return table

    # mouse: degrees <-> mu-law bins

    @_either
    def to_bins(self, degrees):
        """float [...] degrees -> int64 [...] bins; clipped at the spec's maximum, rounded half to even."""
        if bool(torch.isnan(degrees).any()):
            raise DataError("mouse motion holds NaN, expected degrees per frame; the action log is damaged")
        unit = degrees.double().clamp(-self.spec.camera_max, self.spec.camera_max) / self.spec.camera_max
        mu = self.spec.camera_mu
        squashed = unit.sign() * torch.log1p(mu * unit.abs()) / math.log1p(mu)  # [-1, 1]
        return torch.round((squashed + 1) * self.null_bin).long()

    @_either
    def from_bins(self, bins):
        """int64 [...] bins -> float32 [...] degrees at the bins' centres."""
        squashed = bins.double() / self.null_bin - 1
        mu = self.spec.camera_mu
        unit = squashed.sign() * torch.expm1(squashed.abs() * math.log1p(mu)) / mu
        return (unit * self.spec.camera_max).float()

    # factored <-> joint

    @_either
    def to_joint(self, keys, bins):
        """keys [... k] (nonzero = held), bins [... 2] -> int64 [... 2]. Exclusive keys hold the mouse still."""
        self._check_width("keys", keys, self.n_keys)
        self._check_range("mouse bins", bins, self.n_bins)
        held = keys != 0
        camera = self.n_bins * bins[..., 0].long() + bins[..., 1].long()
        buttons = torch.zeros_like(camera)
        for i, group in enumerate(self._groups):
            buttons = buttons * (len(group) + 1) + self._digit(held[..., group], i in self.spec.cancelling)
        buttons = 2 * buttons + (camera != self.camera_null)
        for i, key in enumerate(self._exclusive):
            buttons = torch.where(held[..., key], self.n_product + i, buttons)
            camera = torch.where(held[..., key], self.camera_null, camera)
        return torch.stack([buttons, camera], -1)

    @staticmethod
    def _digit(held, cancelling):
        """bool [... k] keys of a group -> int64 [...] its digit."""
        weighted = held.long() * torch.arange(1, held.shape[-1] + 1, device=held.device)
        return weighted.sum(-1) % 3 if cancelling else weighted.amax(-1)  # 1 + 2 = 3 = both = neither

    @_either
    def from_joint(self, joint):
        """int64 [... 2] -> (keys uint8 [... k], bins int64 [... 2]); the mouse rests where the class says so."""
        self._check_width("joint actions", joint, 2)
        self._check_range("buttons classes", joint[..., 0], self.n_buttons)
        self._check_range("camera classes", joint[..., 1], self.n_camera)
        buttons, camera = joint[..., 0].long(), joint[..., 1].long()
        on = torch.as_tensor(self.camera_on, device=joint.device)[buttons]
        camera = torch.where(on, camera, self.camera_null)
        bins = torch.stack([camera // self.n_bins, camera % self.n_bins], -1)
        return self._keys_of.to(joint.device)[buttons], bins

    @_either
    def is_null(self, keys, bins):
        """keys [... k], bins [... 2] -> bool [...]: nothing is left of the action in the joint space.

        So motion below the first bin edge and two cancelling keys are null as well.
        """
        joint = ActionCodec.to_joint(self, keys, bins)
        return (joint[..., 0] == 0) & (joint[..., 1] == self.camera_null)

    @_either
    def joint_targets(self, key_probabilities, camera_probabilities):
        """Soft joint labels: the exact distribution of `to_joint` when keys and axes are independent.

        key_probabilities [... k], camera_probabilities [... 2 bins] -> float32 buttons [... n_buttons] and, given
        that the mouse moves, camera [... n_camera] (its null class has probability 0 unless motion is impossible).
        """
        self._check_width("key probabilities", key_probabilities, self.n_keys)
        self._check_width("camera probabilities", camera_probabilities, self.n_bins)
        camera, moving = self._camera_target(camera_probabilities.float())
        p = key_probabilities.float()
        product = torch.ones_like(p[..., :1])
        for i, group in enumerate(self._groups):
            product = _outer(product, self._digit_target(p[..., group], i in self.spec.cancelling))
        product = _outer(product, torch.stack([1 - moving, moving], -1))
        if not self._exclusive:
            return product, camera
        exclusive = self._digit_target(p[..., self._exclusive], cancelling=False)  # none, then one per key
        return torch.cat([product * exclusive[..., :1], exclusive[..., 1:]], -1), camera

    @staticmethod
    def _digit_target(p, cancelling):
        """[... k] probabilities of a group's keys -> [... k+1] distribution of its digit."""
        if cancelling:
            first, second = p[..., 0] * (1 - p[..., 1]), p[..., 1] * (1 - p[..., 0])
            return torch.stack([1 - first - second, first, second], -1)
        none_later = torch.flip(torch.cumprod(torch.flip(1 - p, [-1]), -1), [-1])  # this key and later ones released
        wins = p * torch.cat([none_later[..., 1:], torch.ones_like(p[..., :1])], -1)
        return torch.cat([none_later[..., :1], wins], -1)

    def _camera_target(self, p):
        """[... 2 bins] -> (distribution over camera classes given motion [... n_camera], P(motion) [...])."""
        p = p / p.sum(-1, keepdim=True)  # stored in half precision
        classes = _outer(p[..., 0, :], p[..., 1, :])
        null = torch.arange(self.n_camera, device=p.device) == self.camera_null
        classes = classes.masked_fill(null, 0)
        moving = classes.sum(-1)
        possible = (moving > 0)[..., None]
        conditional = classes / moving.clamp_min(torch.finfo(p.dtype).tiny)[..., None]
        return torch.where(possible, conditional, null.to(p.dtype)), moving.clamp(max=1)

    def _check_width(self, what, array, width):
        if array.shape[-1] != width:
            raise DataError(f"{what} of shape {tuple(array.shape)}: the {self.spec.name!r} spec needs {width} last")

    def _check_range(self, what, array, size):
        """Only on the CPU: on a device the look would wait for the device."""
        if array.device.type == "cpu" and array.numel() and not 0 <= int(array.min()) <= int(array.max()) < size:
            raise DataError(
                f"{what} span {int(array.min())}..{int(array.max())}, expected 0..{size - 1} for the"
                f" {self.spec.name!r} spec; was the data made with another spec?"
            )


class ReleasedCodec(ActionCodec):
    """What the VPT release computes where it departs from the paper; for comparisons only, never a default."""

    def __init__(self, spec=MINECRAFT):
        super().__init__(spec)
        self.camera_on = self.camera_on[: self.n_product] + [True] * len(self._exclusive)  # keeps the sampled mouse

    @_either
    def to_bins(self, degrees):
        """The release's action template holds integers: degrees are cut toward 0 before binning (its issue 54)."""
        return super().to_bins(torch.trunc(degrees.double()))

    @_either
    def is_null(self, keys, bins):
        """The release compares bins with a method it forgets to call: never null."""
        return torch.zeros(keys.shape[:-1], dtype=torch.bool, device=keys.device)


def _outer(a, b):
    """[... m], [... n] -> [... m n] flattened, n fastest."""
    return rearrange(a[..., :, None] * b[..., None, :], "... m n -> ... (m n)")
