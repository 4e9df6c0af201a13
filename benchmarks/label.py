"""Labelled frames per CPU-second: features shared across windows against the reference procedure, same weights.

    python -m benchmarks.label                                      the VPT architecture, small, random weights
    python -m benchmarks.label --idm <hub folder> --clips <shards>  a trained model on real frames

Prints a table and a JSON of ratios. Exit status 1 if outputs differ where they must not: fp32 sharing is held to 1e-4,
and bf16 to the labels of fp32 if the model was trained (the probabilities of a random net mean nothing).
What bf16 is worth depends on the processor: `bf16_matmul_speed` is its rate over fp32 in one plain matrix product.
"""

import argparse
import sys
import time

import numpy as np
import torch

from benchmarks.results import keep
from models.vpt import VptInverseDynamics
from pipelines import checkpoint, schema
from pipelines.shards import Shards
from pipelines.video import open_reader
from pipelines.windows import label_run, label_run_plain, plan, prepare

MAX_DIFFERENCE = 1e-4  # fp32, probability
MIN_AGREEMENT = 0.98  # share of keys and mouse bins labelled alike by bf16 and fp32


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=2048, help="length of the run; short runs overlap less")
    parser.add_argument("--size", type=int, default=64, help="height and width of random frames")
    parser.add_argument("--impala-width", type=int, default=2, help="16 in the paper")
    parser.add_argument("--hidsize", type=int, default=256, help="4096 in the paper")
    parser.add_argument("--frames-per-call", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--idm", help="hub folder of a trained model, instead of a random one")
    parser.add_argument("--clips", help="clip shards with frames for it, instead of noise")
    parser.add_argument("--json", help="write the numbers here as well")
    return parser.parse_args()


def small_vpt(args):
    torch.manual_seed(0)
    heads = max(1, args.hidsize // 128)
    return VptInverseDynamics(hidsize=args.hidsize, attention_heads=heads, impala_width=args.impala_width,
                              height=args.size, width=args.size)  # fmt: skip


def frames_of(args, size):
    """uint8 [n h w c]: consecutive clips of the shards, or noise."""
    if args.clips is None:
        return np.random.default_rng(0).integers(0, 256, (args.frames, *size, 3), dtype=np.uint8)
    shards, parts = Shards(args.clips), []
    for entry in shards.entries:
        start, stop = entry.meta["frames"]
        parts.append(open_reader(shards.read(entry.key, schema.VIDEO)).frames(np.arange(stop - start)))
        if sum(map(len, parts)) >= args.frames:
            break
    return np.concatenate(parts)[: args.frames]


def timed(label, net, frames, args, precision):
    label(net, frames[: net.window], precision=precision)  # warm-up: allocations and kernel selection
    start = time.process_time()
    labels = label(net, frames, precision=precision, frames_per_call=args.frames_per_call)
    return time.process_time() - start, labels


def bf16_matmul_speed(size=1024, times=10):
    """fp32 over bf16 CPU time of a square product: 2 or more with matrix units, below 1 where bf16 is emulated."""
    a, seconds = torch.randn(size, size), {}
    for kind in (torch.float32, torch.bfloat16):
        x = a.to(kind)
        x @ x
        start = time.process_time()
        for _ in range(times):
            x @ x
        seconds[kind] = time.process_time() - start
    return seconds[torch.float32] / seconds[torch.bfloat16]


def agreement(a, b):
    """Share of keys and mouse bins with the same most probable value."""
    keys = (a.key_probabilities > 0.5) == (b.key_probabilities > 0.5)
    bins = a.camera_probabilities.argmax(-1) == b.camera_probabilities.argmax(-1)
    return float(np.concatenate([keys, bins], 1).mean())


def difference(a, b):
    return float(max(np.abs(a.key_probabilities - b.key_probabilities).max(),
                     np.abs(a.camera_probabilities - b.camera_probabilities).max()))  # fmt: skip


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    bundle = checkpoint.load(args.idm) if args.idm else None
    net = bundle.net if bundle else small_vpt(args)
    frames = frames_of(args, bundle.size if bundle else (args.size, args.size))
    trained = bool(bundle and bundle.statistics.get("label_report"))
    rows = {}
    prepare(net, channels_last=False)
    rows["every window, fp32"] = timed(label_run_plain, net, frames, args, "fp32")
    rows["shared, fp32"] = timed(label_run, net, frames, args, "fp32")
    prepare(net, channels_last=True)
    rows["shared, fp32, channels last"] = timed(label_run, net, frames, args, "fp32")
    rows["shared, bf16, channels last"] = timed(label_run, net, frames, args, "bf16")
    reference_seconds, reference = rows["every window, fp32"]
    windows = plan(len(frames), net.window)
    result = {"frames": len(frames), "windows": len(windows), "threads": args.threads, "torch": torch.__version__,
              "trained": trained, "bf16_matmul_speed": bf16_matmul_speed()}  # fmt: skip
    print(f"{'procedure':30} {'frames per CPU-s':>17} {'ratio':>6} {'max difference':>15} {'agreement':>10}")
    for name, (seconds, labels) in rows.items():
        row = {"frames_per_cpu_second": len(frames) / seconds, "ratio": reference_seconds / seconds,
               "difference": difference(labels, reference), "agreement": agreement(labels, reference)}  # fmt: skip
        result[name] = row
        print(f"{name:30} {row['frames_per_cpu_second']:17.1f} {row['ratio']:6.2f} {row['difference']:15.1e}"
              f" {row['agreement']:10.4f}")  # fmt: skip
    keep(result, args.json)
    exact = result["shared, fp32"]["difference"] < MAX_DIFFERENCE
    alike = not trained or result["shared, bf16, channels last"]["agreement"] >= MIN_AGREEMENT
    return 0 if exact and alike else 1


if __name__ == "__main__":
    sys.exit(main())
