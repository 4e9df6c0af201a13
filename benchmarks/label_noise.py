"""What hurts labels more: bad compression of the video, or an action log one frame off?

    python -m benchmarks.label_noise --idm outputs/idm --shards <held-out trajectory shards>

Labels of a labeller on play that it was not trained on, scored against the recording: as they are, from frames that
went through JPEG at quality 40, and moved by a frame to either side. Macro F1 of presses and releases with a collar of
0 and of 2 frames, and R2 of the mouse, over effective actions where the recording has them. Prints a table, the drops
against the labels as they are, and one line of JSON.
"""

import argparse
import io

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from benchmarks.results import keep
from foundation.pretraining.idm import truth
from pipelines.labeller import Labeller, Settings
from pipelines.scoring import label_report
from pipelines.shards import Shards
from pipelines.stream import FrameStore, load_tracks
from pipelines.windows import label_run

COLLARS = (0, 2)  # frames


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--idm", required=True, help="hub folder of a labeller, or the run directory that trained it")
    parser.add_argument("--shards", required=True, help="trajectory shards held out from its training")
    parser.add_argument("--quality", type=int, default=40, help="of JPEG, 1 to 95")
    parser.add_argument("--frames", type=int, help="use only so many frames, whole clips; all if left out")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="write the numbers here as well")
    return parser.parse_args()


def jpeg(frames, quality):
    """uint8 [t h w c], each frame through JPEG by itself."""
    return np.stack([np.asarray(Image.open(compressed(frame, quality))) for frame in frames])


def compressed(frame, quality):
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=quality)
    file.seek(0)
    return file


def shifted(values, by):
    """[t ...] moved by so many frames, later if positive; the ends repeat."""
    return values[np.clip(np.arange(len(values)) - by, 0, len(values) - 1)]


def variants(net, frames, quality):
    """{name: (key probabilities [t k], camera probabilities [t 2 bins])} of one recording."""
    plain, poor = (label_run(net, f) for f in (frames, jpeg(frames, quality)))
    plain, poor = ((labels.key_probabilities, labels.camera_probabilities) for labels in (plain, poor))
    moved = {f"shifted {by:+d}": tuple(shifted(part, by) for part in plain) for by in (-1, 1)}
    return {"as they are": plain, f"jpeg {quality}": poor, **moved}


def scores(recorded, keys, camera, spec):
    """The three numbers of one variant, over effective actions if there are any."""
    found = {}
    for collar in COLLARS:
        report = label_report(recorded, keys, camera, spec, collar=collar, shifts=0)
        view = "idm/effective/" if report.effective_keys else "idm/"
        found[f"event_f1_collar{collar}"] = report.scores[view + "button_event_f1"]
    return found | {"camera_r2": report.scores[view + "camera_r2"]}


def measure(idm, shards, quality=40, limit=None, device="auto"):
    """{variant: {event_f1_collar0, event_f1_collar2, camera_r2}} of a labeller folder on a shard folder."""
    labeller, shards = Labeller(idm, Settings(), device), Shards(shards)
    labeller.check_fits(shards)
    tracks, store = load_tracks(shards, limit_frames=limit), FrameStore(shards, cache_gb=0)
    parts = {}
    for track in tqdm(tracks, desc="labelling", unit="video", disable=None):
        for name, labels in variants(labeller.net, store.get(track.clip, track.row), quality).items():
            parts.setdefault(name, []).append(labels)
    recorded = truth(tracks)
    joined = {name: [np.concatenate(part) for part in zip(*labels, strict=True)] for name, labels in parts.items()}
    return {name: scores(recorded, *labels, labeller.bundle.spec) for name, labels in joined.items()}


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    result = measure(args.idm, args.shards, args.quality, args.frames, args.device)
    plain = result["as they are"]
    print(f"{'labels':14}" + "".join(f"{name:>18} {'drop':>7}" for name in plain))
    for variant, row in result.items():
        print(f"{variant:14}" + "".join(f"{value:18.3f} {plain[name] - value:7.3f}" for name, value in row.items()))
    keep(result, args.json)


if __name__ == "__main__":
    main()
