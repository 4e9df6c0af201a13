"""Where in its window is a labeller wrong? Errors by position, which is why only the centre of a window is kept.

Windows of the labeller's length slide over recorded play, so that each frame is labelled at many positions and all
positions see the same frames but for the ends of a recording. The ratio of the error near a window's ends to the error
in its central half is what centre-crop labelling (VPT, arXiv:2206.11795, appendix D) saves.

Errors, of a frame on average, over what had an effect where the recording says so (see `pipelines.scoring`):
    joint_exact  some key or mouse bin is wrong            keys:<first key>  some key of the group is wrong
    camera_bin   share of the two mouse axes that is wrong  nll               nats
"""

import numpy as np

from pipelines.actions import ActionCodec
from pipelines.schema import DataError
from pipelines.scoring import Truth, log_likelihood, prepare
from pipelines.windows import SharedFeatures, Window, batches, inference

EDGE = 8  # frames at either end that are compared with the central half


def window_errors(idm, tracks, frames, spec, stride=None, frames_per_call=256, progress=None):
    """Errors of every window of every track -> {name: float [windows t]}, windows in order of track and time.

    tracks: recorded actions (`pipelines.stream`); frames(track) -> uint8 [n h w c]; stride between windows, a quarter
    of their length if left out.
    """
    stride, parts = stride or max(1, idm.window // 4), []
    for track in tracks:
        windows = sliding(len(track), idm.window, stride)
        if windows:
            parts.append(errors(track, windows, *predictions(idm, frames(track), windows, frames_per_call), spec))
        if progress is not None:
            progress(len(track))
    if not parts:
        raise DataError(f"every recording is shorter than the labelling window of {idm.window} frames; give longer")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def sliding(n, window, stride):
    return [Window(start, start + window, start, start + window) for start in range(0, n - window + 1, stride)]


def predictions(idm, frames, windows, frames_per_call):
    """Key probabilities [w t k] and camera probabilities [w t 2 bins] of whole windows, nothing cropped."""
    features, keys, camera = SharedFeatures(idm, frames), [], []
    with inference(idm, "fp32"):
        for group in batches(windows, max(1, frames_per_call // idm.window)):
            said = idm.decode(features.of(group))
            keys.append(said.key_probabilities.float().cpu().numpy())
            camera.append(said.camera_probabilities.float().cpu().numpy())
    return np.concatenate(keys), np.concatenate(camera)


def errors(track, windows, keys, camera, spec):
    """{name: [w t]} of windows over one track."""
    place = np.concatenate([np.arange(w.start, w.stop) for w in windows])  # w*t frames of the track
    effective = None if track.effective is None else track.effective[place]
    truth = Truth(track.keys[place], track.mouse[place], np.repeat(np.arange(len(windows)), keys.shape[1]), effective)
    frames = prepare(truth, keys.reshape(len(place), -1), camera.reshape(len(place), 2, -1), ActionCodec(spec))
    entries = np.concatenate([frames.held, frames.degrees != 0], 1)
    scored = np.ones_like(entries) if effective is None else ~entries | frames.effective
    wrong = np.concatenate([frames.held != (frames.p > 0.5), frames.bins != frames.camera.argmax(-1)], 1) & scored
    found = {
        "joint_exact": wrong.any(1),
        "camera_bin": wrong[:, -2:].mean(1),
        "nll": -(log_likelihood(frames, frames.held, frames.bins) * scored).sum(1),
    }
    for group in spec.groups:
        found[f"keys:{group[0]}"] = wrong[:, [spec.keys.index(key) for key in group]].any(1)
    return {name: value.reshape(keys.shape[:2]).astype(np.float64) for name, value in found.items()}


def edge_ratios(errors_by_position, edge=EDGE):
    """[w t] -> {first, last, centre: mean error; first_ratio, last_ratio: over the centre's, NaN if that is 0}."""
    length = errors_by_position.shape[1]
    if length < 4 * edge:
        raise DataError(f"a window of {length} frames has no centre apart from {edge} edge frames; use a smaller edge")
    mean = errors_by_position.mean(0)
    centre = mean[length // 4 : length - length // 4].mean()
    means = {"first": mean[:edge].mean(), "last": mean[-edge:].mean(), "centre": centre}
    ratios = {f"{end}_ratio": means[end] / centre if centre else np.nan for end in ("first", "last")}
    return {name: float(value) for name, value in (means | ratios).items()}


def intervals(errors_by_position, edge=EDGE, block=8, times=500, seed=0):
    """95 % intervals of the ratios, {first_ratio: [low, high], ...}, by bootstrap over blocks of successive windows."""
    rng = np.random.default_rng(seed)
    starts = range(0, len(errors_by_position), block)
    means = np.stack([errors_by_position[s : s + block].sum(0) for s in starts])  # blocks t
    draws = rng.multinomial(len(means), np.full(len(means), 1 / len(means)), times)  # times blocks
    ratios = [edge_ratios(row[None], edge) for row in draws @ means]
    return {name: quantiles([row[name] for row in ratios]) for name in ("first_ratio", "last_ratio")}


def quantiles(values):
    """[2.5 %, 97.5 %] of those that are defined."""
    values = [v for v in values if np.isfinite(v)] or [np.nan]
    return [float(q) for q in np.quantile(values, [0.025, 0.975])]
