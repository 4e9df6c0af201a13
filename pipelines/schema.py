"""What a sample is: keys of arrays, members of a shard, metadata. Spelled here and nowhere else.

A *clip* sample holds video only; a *trajectory* sample also holds actions. On disk both are three
members of a tar that share a key: `<key>.mp4` (frames), `<key>.npz` (arrays), `<key>.json` (metadata).
A *label* sample is `<key>.npz` + `<key>.json` whose key equals that of the clip it labels.
A trajectory whose observations are vectors instead of frames has no mp4: one sample is one episode, see
`pipelines.trajectories`.
"""

import re
from dataclasses import asdict, dataclass, field, fields

SCHEMA_VERSION = 1
KEY_GRAMMAR = re.compile(r"[A-Za-z0-9_-]{1,128}")  # no dot, no slash: webdataset splits keys at dots

VIDEO, ARRAYS, META = "mp4", "npz", "json"  # member extensions

# arrays of an npz member; t = frames of the clip
PTS = "pts"  # int64 [t] presentation time of the source frame behind each stored frame, in source time-base units
KEYS = "keys"  # uint8 [t k] 1 = key held during the frame, in the order of the action spec
MOUSE = "mouse"  # float32 [t 2] degrees turned during the frame: pitch (down positive), yaw (right positive)
REWARD = "reward"  # float32 [t]
TERMINATED = "terminated"  # bool [t] the episode ended in a terminal state after this frame's action
TRUNCATED = "truncated"  # bool [t] the episode was cut after this frame's action
FIRST = "first"  # bool [t] first frame of an episode
EFFECTIVE = "effective"  # bool [t k+2] the key or mouse axis visibly did something; scoring only, never an input
KEY_PROBABILITIES = "key_probabilities"  # float16 [t k] labeller's probability that the key is held
CAMERA_PROBABILITIES = "camera_probabilities"  # float16 [t 2 bins] labeller's distribution over mouse bins per axis
COVERAGE = "coverage"  # bool [t] False where no label could be made, and on a frame after an episode's last action
POSITION = "position"  # float32 [t n] where a frame was taken, in the world's own unit; scoring only, never an input
# of an episode of vectors also, for its t steps, what `pipelines.trajectories` lists, and
FINAL_OBSERVATION = "final_observation"  # float32 [s] what the last action led to
OPTIMAL_ACTION = "optimal_action"  # optional, as ACTION: that of the best policy at hand, on what ACTION was chosen on

# keys of a training batch
OBSERVATION = "observation"  # uint8 [b t h w c] RGB, or float32 [b t s]
FEATURES = "features"  # float32 [b t ...] computed from frames beforehand, in place of OBSERVATION
ACTION = "action"  # int64 [b t 2] joint (buttons class, camera class); of vectors float32 [b t a] or int64 [b t]
BUTTONS_TARGET = "buttons_target"  # float32 [b t k] soft label over joint buttons classes
CAMERA_TARGET = "camera_target"  # float32 [b t k] soft label over camera classes, given that the mouse moves
BINS = "bins"  # int64 [b t 2] camera bins (pitch, yaw)
MASK = "mask"  # bool [b t] True = real
WEIGHT = "weight"  # float32 [b t] weight of the frame in the loss
CONDITION = "condition"  # float32 [b t c] what the policy is asked for: return-to-go, goal, latent, ...
ACTOR_CONDITION = "actor_condition"  # as CONDITION, of the actor, where the values are told something else
TIMESTEP = "timestep"  # int64 [b t] steps since the episode's start
NEXT_OBSERVATION = "next_observation"  # float32 [b t s]; in a sample, optional: where steps do not follow one another
RETURN = "mc_return"  # float32 [b] discounted sum of the rewards from a step on, as they came in the data
SCALED_REWARD = "scaled_reward"  # float32 [b t] REWARD in the unit of CONDITION, which may differ from task to task
TOKENS = "tokens"  # int64 [b n] of a language
QUERY = "query"  # float32 [b k s] states for which an in-context policy is asked; the context is [b n ...]
PLACE = "place"  # int64 [k] after how many transitions of the context
FLOOR = "floor"  # float32 [b p] cross-entropy of the exact posterior at every answer
GOAL = "goal"  # float32 [b s] a state to be reached, of a batch of single steps: its other arrays are [b ...] too
REACHED = "reached"  # bool [b] the step's state is that goal, being the same row of the data
INTENT = "intent"  # as GOAL, of vectors or uint8 [b h w c]: where the one who took the step is taken to be going
INTENT_REACHED = "intent_reached"  # bool [b] as REACHED, of INTENT
TARGET = "target"  # the right action there, as ACTION: int64 [b k] or float32 [b k a]

RECORDED, PSEUDO, NONE = "recorded", "pseudo", "none"  # provenance of actions


class DataError(Exception):
    """Bad input, told to the user: what was expected, what came, what to do. Commands print it without a traceback."""


@dataclass(frozen=True)
class SampleMeta:
    """The `<key>.json` member of a sample."""

    key: str
    source: str  # original file name, any Unicode
    source_sha256: str
    frames: tuple[int, int]  # [start, stop) on the resampled timeline of the source
    fps: float
    height: int = 0  # 0, 0: observations are vectors
    width: int = 0
    provenance: str = NONE
    actions: dict | None = None  # action spec, see pipelines.actions.ActionSpec.to_dict
    labeller: str | None = None  # content hash of the model that wrote pseudo-actions
    notes: tuple[str, ...] = ()  # vfr, offset, leading_loss, truncated, ...
    tags: dict = field(default_factory=dict)  # free: task, map, player, seed, success
    spaces: dict | None = None  # of an episode of vectors, see pipelines.trajectories.Spaces.to_dict
    schema: int = SCHEMA_VERSION

    def to_dict(self):
        return asdict(self)

    @classmethod
    def from_dict(cls, values):
        """Ignores unknown fields of newer minor writers; refuses another schema version (DataError)."""
        if not isinstance(values, dict):
            raise DataError(f"expected the metadata of a sample, got {values!r:.40}")
        if values.get("schema") != SCHEMA_VERSION:
            raise DataError(
                f"sample {values.get('key')!r} has schema {values.get('schema')!r}, this version reads"
                f" {SCHEMA_VERSION}; ingest the source again or install the matching release"
            )
        known = {f.name for f in fields(cls)}
        values = {name: value for name, value in values.items() if name in known}
        try:
            values["frames"] = tuple(values["frames"])
            values["notes"] = tuple(values.get("notes", ()))
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise DataError(f"sample {values.get('key')!r:.40} has incomplete metadata ({error})") from error


def check_key(key):
    """Returns `key`, or raises DataError when it breaks the key grammar."""
    if not KEY_GRAMMAR.fullmatch(key):
        raise DataError(f"sample key {key!r} is not of the form [A-Za-z0-9_-]{{1,128}} (no dots, no slashes)")
    return key
