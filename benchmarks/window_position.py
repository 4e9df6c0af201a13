"""Does centre-crop labelling pay? A labeller's error near the ends of its window over that in the central half.

    python -m benchmarks.window_position --idm outputs/idm --shards <held-out trajectory shards>

Any labeller of the contract, on play that it was not trained on. Prints a table and one line of JSON: mean error at the
first and last 8 positions and in the central half, their ratios (above 1: the ends are worse) with 95 % intervals over
blocks of windows, for whole actions, mouse bins, nats and every group of keys.
"""

import argparse

import torch
from tqdm import tqdm

from benchmarks.results import keep
from pipelines.labeller import Labeller, Settings
from pipelines.positions import EDGE, edge_ratios, intervals, window_errors
from pipelines.shards import Shards
from pipelines.stream import FrameStore, load_tracks


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--idm", required=True, help="hub folder of a labeller, or the run directory that trained it")
    parser.add_argument("--shards", required=True, help="trajectory shards held out from its training")
    parser.add_argument("--edge", type=int, default=EDGE, help="frames at either end")
    parser.add_argument("--stride", type=int, help="frames between windows; a quarter of the window if left out")
    parser.add_argument("--frames", type=int, help="use only so many frames, whole clips; all if left out")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="write the numbers here as well")
    return parser.parse_args()


def measure(idm, shards, edge=EDGE, stride=None, limit=None, device="auto"):
    """{error: {first, last, centre, first_ratio, last_ratio, intervals}} of a labeller folder on a shard folder."""
    labeller, shards = Labeller(idm, Settings(), device), Shards(shards)
    labeller.check_fits(shards)
    tracks, store = load_tracks(shards, limit_frames=limit), FrameStore(shards, cache_gb=0)
    with tqdm(total=sum(map(len, tracks)), desc="labelling", unit="frame", unit_scale=True, disable=None) as bar:
        errors = window_errors(
            labeller.net, tracks, lambda t: store.get(t.clip, t.row), labeller.bundle.spec, stride, progress=bar.update
        )
    rows = {name: edge_ratios(e, edge) | {"intervals": intervals(e, edge)} for name, e in errors.items()}
    return {"window": labeller.net.window, "windows": len(errors["nll"]), "edge": edge, "errors": rows}


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    result = measure(args.idm, args.shards, args.edge, args.stride, args.frames, args.device)
    print(f"{result['windows']} windows of {result['window']} frames, ends of {args.edge}; ratio to centre [95 %]")
    print(f"{'error':16} {'centre':>8} {'first':>8} {'last':>8}   {'first / centre':22} last / centre")
    for name, row in result["errors"].items():
        spans = [f"{row[r]:.2f} [{row['intervals'][r][0]:.2f}, {row['intervals'][r][1]:.2f}]"
                 for r in ("first_ratio", "last_ratio")]  # fmt: skip
        print(f"{name:16} {row['centre']:8.4f} {row['first']:8.4f} {row['last']:8.4f}   {spans[0]:22} {spans[1]}")
    keep(result, args.json)


if __name__ == "__main__":
    main()
