"""How good are labels? Predictions of an inverse-dynamics model against recorded actions, next to trivial baselines.

Accuracy alone says little: all keys released is right for more than nine key-frames in ten. So the report has average
precision, F1, events within a collar, the coefficient of determination of the mouse and exact matches, with the same
numbers for predictors that look at nothing.

Two views. *All frames* takes the recording at its word. *Effective* leaves out what no labeller can see:
    keys      frames in which a key is held without effect are neither positive nor negative for that key
    mouse     frames in which an axis moved without effect do not count for that axis
    events    presses and releases of a hold without one effective frame are dropped from the truth, and predicted
              events inside such a hold (widened by the collar) are neither right nor wrong
    exact     an entry that does not count matches anything

Events are presses and releases, see `pipelines.events`.
"""

from dataclasses import asdict, dataclass

import numpy as np
from sklearn.metrics import average_precision_score

from pipelines.actions import ActionCodec
from pipelines.events import match_key
from pipelines.schema import DataError

AXES = ("pitch", "yaw")
SMALLEST = 1e-6  # probabilities are stored in half precision: below this they are rounding


@dataclass
class Truth:
    """Recorded actions of n frames. `segment` numbers the runs within which successive frames are neighbours."""

    keys: np.ndarray  # [n k] nonzero = held
    mouse: np.ndarray  # float [n 2] degrees (pitch, yaw)
    segment: np.ndarray  # int [n]
    effective: np.ndarray | None = None  # bool [n k+2]
    mask: np.ndarray | None = None  # bool [n] True = score this frame (labelled, real)


@dataclass
class LabelReport:
    scores: dict  # flat, e.g. "idm/camera_r2"
    keys: dict  # key -> {support, recall, f1, ap, ...} over all frames
    effective_keys: dict | None  # the same over effective actions
    calibration: list  # of {low, high, count, confidence, frequency}, keys pooled
    confusion: dict  # axis -> counts [bins][bins], rows = recorded
    offsets: dict  # shift in frames -> mean log-likelihood

    def to_dict(self):
        """Plain JSON types; what is undefined (NaN) becomes None."""
        return without_nan(asdict(self))


@dataclass
class Frames:
    """Scored frames, prepared: predictions and truth in every form the metrics need."""

    held: np.ndarray  # bool [n k]
    p: np.ndarray  # float64 [n k]
    bins: np.ndarray  # int [n 2]
    camera: np.ndarray  # float64 [n 2 bins], sums to 1
    degrees: np.ndarray  # float64 [n 2], clipped to what the spec can express
    expected: np.ndarray  # float64 [n 2] mean of the predicted distribution
    start: np.ndarray  # bool [n] first frame of a segment
    effective: np.ndarray | None
    codec: ActionCodec


def label_report(truth, key_probabilities, camera_probabilities, spec, collar=2, shifts=3, prefix="idm"):
    """Scores label probabilities [n k] and [n 2 bins] against `truth`; LabelReport with `prefix`/... and baselines."""
    frames = prepare(truth, key_probabilities, camera_probabilities, ActionCodec(spec))
    everything = np.ones((len(frames.p), frames.p.shape[1] + 2), bool)
    scores, keys = score(frames, everything, collar)
    scores["frames"] = len(frames.p)
    effective_keys = None
    if frames.effective is not None:
        moved = np.concatenate([frames.held, frames.degrees != 0], 1)
        effective, effective_keys = score(frames, ~moved | frames.effective, collar)
        scores |= {f"effective/{name}": value for name, value in effective.items()}
    offsets = agreement(frames, shifts)
    scores["label_offset"] = max(offsets, key=offsets.get) if offsets else float("nan")
    calibration = reliability(frames.p, frames.held)
    scores["calibration_error"] = calibration_error(calibration)
    confusion = {axis: confusion_matrix(frames, i).tolist() for i, axis in enumerate(AXES)}
    flat = {f"{prefix}/{name}": value for name, value in scores.items()}
    return LabelReport(flat, keys, effective_keys, calibration, confusion, {str(s): v for s, v in offsets.items()})


def prepare(truth, key_probabilities, camera_probabilities, codec):
    """Checks shapes and values, drops masked frames (segments are cut there), derives bins and degrees -> Frames."""
    n, k = np.shape(truth.keys)
    expected = {"mouse": (n, 2), "segment": (n,), "effective": (n, k + 2), "mask": (n,)}
    given = {name: getattr(truth, name) for name in expected}
    given |= {"key_probabilities": key_probabilities, "camera_probabilities": camera_probabilities}
    expected |= {"key_probabilities": (n, codec.n_keys), "camera_probabilities": (n, 2, codec.n_bins)}
    for name, shape in expected.items():
        if given[name] is not None and np.shape(given[name]) != shape:
            raise DataError(f"label scoring: {name} has shape {np.shape(given[name])}, expected {shape}")
    keep = np.ones(n, bool) if truth.mask is None else np.asarray(truth.mask, bool)
    if not keep.any():
        raise DataError("label scoring: no frame is both labelled and recorded; nothing to score")
    start = np.ones(n, bool)
    start[1:] = (np.diff(truth.segment) != 0) | ~keep[:-1]
    p = np.asarray(key_probabilities, np.float64)[keep]
    camera = np.asarray(camera_probabilities, np.float64)[keep]
    if not (np.isfinite(p).all() and np.isfinite(camera).all()):
        raise DataError("label scoring: predicted probabilities hold NaN or infinity; label again, with precision=fp32")
    camera = camera / np.maximum(camera.sum(-1, keepdims=True), SMALLEST)
    centres = codec.from_bins(np.arange(codec.n_bins)).astype(np.float64)
    limit = codec.spec.camera_max
    degrees = np.clip(np.asarray(truth.mouse, np.float64)[keep], -limit, limit)
    effective = None if truth.effective is None else np.asarray(truth.effective, bool)[keep]
    held = np.asarray(truth.keys)[keep] != 0
    return Frames(held, p, codec.to_bins(degrees), camera, degrees, camera @ centres, start[keep], effective, codec)


def score(frames, scored, collar):
    """All scores of one view. scored bool [n k+2]: which entries count -> (flat scores, table per key)."""
    on_keys, on_axes = scored[:, :-2], scored[:, -2:]
    table = key_table(frames, on_keys, collar)
    supported = [row for row in table.values() if row["support"]]
    scores = {
        "button_f1": mean(row["f1"] for row in supported),
        "button_ap": mean(row["ap"] for row in supported),
        "chance_ap": mean(row["prevalence"] for row in supported),
        "button_event_f1": mean(row["event_f1"] for row in table.values() if row["events"]),
        "keys_without_recall": sum(row["recall"] == 0 for row in supported),
        "nll": nll(frames, scored),
        "majority_nll": marginal_nll(frames, scored),
    }
    guess = (frames.p > 0.5, frames.camera.argmax(-1), frames.expected)
    scores |= hard_scores(frames, guess, scored)
    for name, baseline in baselines(frames, scored).items():
        hard = hard_scores(frames, baseline, scored)
        scores |= {f"{name}_{metric.removeprefix('joint_')}": value for metric, value in hard.items()}
        scores[f"{name}_f1"] = mean(f1_per_key(frames.held, baseline[0], on_keys))
    for i, axis in enumerate(AXES):
        counted = on_axes[:, i]
        scores[f"camera_r2_{axis}"] = r2(frames.degrees[counted, i], frames.expected[counted, i])
    quantised = frames.codec.from_bins(frames.bins).astype(np.float64)
    scores["camera_r2_ceiling"] = r2(frames.degrees, quantised, on_axes)  # of bins that are all right
    return scores, table


def hard_scores(frames, guess, scored):
    """Scores of a definite guess (keys bool [n k], bins [n 2], degrees [n 2]), the labeller's or a baseline's."""
    keys, bins, degrees = guess
    on_keys, on_axes = scored[:, :-2], scored[:, -2:]
    distance = np.abs(bins - frames.bins)
    right = np.concatenate([keys == frames.held, distance == 0], 1)
    return {
        "key_accuracy": fraction((keys == frames.held)[on_keys]),
        "joint_exact": fraction((right | ~scored).all(1)),
        "camera_bin_accuracy": fraction((distance == 0)[on_axes]),
        "camera_bin_within_one": fraction((distance <= 1)[on_axes]),
        "camera_r2": r2(frames.degrees, degrees, on_axes),
    }


def baselines(frames, scored):
    """Guesses that look at nothing: the commonest class, the previous true action, nothing at all."""
    n, codec = len(frames.held), frames.codec
    common = (frames.held & scored[:, :-2]).sum(0) > 0.5 * scored[:, :-2].sum(0)
    bins = np.array([np.bincount(b, minlength=codec.n_bins).argmax() for b in frames.bins.T])
    mean_degrees = np.broadcast_to(frames.degrees.mean(0), (n, 2))
    before_keys, before_bins, before_degrees = (np.roll(a, 1, 0) for a in (frames.held, frames.bins, frames.degrees))
    before_keys[frames.start], before_bins[frames.start], before_degrees[frames.start] = False, codec.null_bin, 0
    return {
        "majority": (np.broadcast_to(common, frames.held.shape), np.broadcast_to(bins, (n, 2)), mean_degrees),
        "persistence": (before_keys, before_bins, before_degrees),
        "all_released": (np.zeros_like(frames.held), np.full((n, 2), codec.null_bin), np.zeros((n, 2))),
    }


def key_table(frames, on_keys, collar):
    """key -> its scores on the frames that count for it; `support` is the number of frames it is held."""
    table = {}
    for i, key in enumerate(frames.codec.spec.keys):
        on = on_keys[:, i]
        held, p = frames.held[on, i], frames.p[on, i]
        guess = p > 0.5
        hits, support = int((held & guess).sum()), int(held.sum())
        right, spurious, missed = match_key(frames.held[:, i], frames.p[:, i] > 0.5, on, frames.start, collar)
        table[key] = {
            "support": support,
            "prevalence": fraction(held),
            "recall": hits / support if support else float("nan"),
            "precision": hits / int(guess.sum()) if guess.any() else float("nan"),
            "f1": f1(hits, int(guess.sum()) - hits, support - hits) if support else float("nan"),
            "ap": float(average_precision_score(held, p)) if support else float("nan"),
            "positive_rate_ratio": int(guess.sum()) / support if support else float("nan"),
            "events": right + missed,
            "event_f1": f1(right, spurious, missed),
            "calibration_error": calibration_error(reliability(p, held)),
        }
    return table


def nll(frames, scored):
    """Mean negative log-likelihood of a frame's action in nats, over the entries that count."""
    return float(-(log_likelihood(frames, frames.held, frames.bins) * scored).sum(1).mean())


def log_likelihood(frames, held, bins):
    """[n k+2] log-probability of each entry of the given actions under the predictions."""
    keys = np.where(held, frames.p, 1 - frames.p)
    camera = np.take_along_axis(frames.camera, bins[..., None], -1)[..., 0]
    return np.log(np.clip(np.concatenate([keys, camera], 1), SMALLEST, 1))


def marginal_nll(frames, scored):
    """`nll` of the best constant prediction: each entry's own frequencies."""
    total = 0.0
    for i in range(scored.shape[1]):
        values = frames.held[:, i].astype(int) if i < frames.held.shape[1] else frames.bins[:, i - frames.held.shape[1]]
        counts = np.bincount(values[scored[:, i]])
        counts = counts[counts > 0]
        total -= float((counts * np.log(counts / counts.sum())).sum())
    return total / len(scored)


def agreement(frames, shifts):
    """shift s -> mean log-likelihood of the action recorded at t + s under the prediction for t, over common frames.

    The best s estimates how many frames the action log is late against the video; 0 if they are aligned.
    """
    n, segment = len(frames.held), frames.start.cumsum()
    middle = np.arange(shifts, n - shifts)
    middle = middle[segment[middle - shifts] == segment[middle + shifts]] if len(middle) else middle
    if not len(middle):
        return {}
    result = {}
    for s in sorted(range(-shifts, shifts + 1), key=abs):  # ties go to the smallest shift
        moved = log_likelihood(frames, np.roll(frames.held, -s, 0), np.roll(frames.bins, -s, 0))
        result[s] = float(moved[middle].sum(1).mean())
    return result


def reliability(p, held, bins=10):
    """Calibration table: equal-width bins of predicted probability with mean confidence and observed frequency."""
    p, held = np.ravel(p), np.ravel(held)
    place = np.minimum((p * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    confidence = np.bincount(place, weights=p, minlength=bins) / np.maximum(count, 1)
    frequency = np.bincount(place, weights=held, minlength=bins) / np.maximum(count, 1)
    return [
        {"low": i / bins, "high": (i + 1) / bins, "count": int(count[i]), "confidence": float(confidence[i]),
         "frequency": float(frequency[i])}
        for i in range(bins)
    ]  # fmt: skip


def calibration_error(table):
    """Expected calibration error: mean |confidence - frequency| over predictions."""
    total = sum(row["count"] for row in table)
    return sum(row["count"] * abs(row["confidence"] - row["frequency"]) for row in table) / max(total, 1)


def confusion_matrix(frames, axis):
    """int [bins bins]: recorded bin (rows) against most probable bin."""
    size = frames.codec.n_bins
    pairs = frames.bins[:, axis] * size + frames.camera[:, axis].argmax(-1)
    return np.bincount(pairs, minlength=size * size).reshape(size, size)


def r2(true, guess, on=None):
    """1 - residual / variance, summed over columns (so a still axis adds no variance); NaN without variance."""
    true, guess = np.atleast_2d(true.T).T, np.atleast_2d(guess.T).T  # n columns
    on = np.ones(true.shape, bool) if on is None else on
    residual = (((true - guess) ** 2) * on).sum()
    centre = (true * on).sum(0) / np.maximum(on.sum(0), 1)
    variance = (((true - centre) ** 2) * on).sum()
    return float(1 - residual / variance) if variance > 0 else float("nan")


def f1_per_key(true, guess, on):
    """bool [n k] each -> list [k]; NaN for keys that are never held where it counts."""
    columns = ((t[o], g[o]) for t, g, o in zip(true.T, guess.T, on.T, strict=True))
    return [f1((t & g).sum(), (~t & g).sum(), (t & ~g).sum()) if t.any() else float("nan") for t, g in columns]


def f1(hits, spurious, missed):
    total = 2 * hits + spurious + missed
    return float(2 * hits / total) if total else float("nan")


def without_nan(value):
    if isinstance(value, dict):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def fraction(flags):
    return float(np.mean(flags)) if np.size(flags) else float("nan")


def mean(values):
    """Mean of those that are defined."""
    values = [v for v in values if np.isfinite(v)]
    return float(np.mean(values)) if values else float("nan")
