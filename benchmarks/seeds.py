"""CPU time of an update of HILP of several seeds at once (foundation.seeds) / of one seed, and the least it could be.

    python -m benchmarks.seeds                                8 seeds of small nets, in half a minute
    python -m benchmarks.seeds --sizes 512x1024 --repeats 1   the paper's size (width x batch), in another

    products   the ratio if nothing but matrix products took time in the update of all seeds: its floating-point
               operations (counted), at the rate of batched products of this width and batch, measured here
    arithmetic the ratio if nothing took time that further seeds do not add to: `seeds` times what one more costs
    gain       updates in the time of runs one after another: `seeds` / ratio

Stacking saves the time between operations and no arithmetic: the ratio goes from 1, where an update is all overhead, to
the number of seeds, where it is all arithmetic. An update is the four losses, backward, targets and Adam, on batches in
memory, in float32. One thread; arms take turns; the median of the repeats after one that does not count. Exit status 1
if a seed's loss differs by more than 1e-4 of it from the same seed's by itself after all updates.
"""

import argparse
import sys
from argparse import Namespace

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import hilp
from benchmarks.decision_transformer import measure
from benchmarks.results import keep
from foundation.pretraining.hilp import HilpTask
from foundation.seeds import SeedTask
from foundation.training import keep_memory
from models.hilbert import HilbertPolicy
from pipelines.command import machine

TARGET = 3.0  # ratio, of 8 seeds
TOLERANCE = 1e-4
LR, STATE, ACTION = 3e-4, 2, 2


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8, help="at least 2")
    parser.add_argument("--sizes", nargs="+", default=["16x16", "32x32", "64x64", "128x256"], help="width x batch")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", help="write the numbers here as well")
    return parser.parse_args()


def task_of(seed, width):
    torch.manual_seed(seed)
    return HilpTask(HilbertPolicy(STATE, ACTION, width=width), None)


def updates(task, losses):
    """A function that makes an update; losses() -> [...], one a seed."""
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], LR, weight_decay=0.0, fused=True)

    def update():
        optimizer.zero_grad(set_to_none=True)
        losses().sum().backward()
        task.follow()
        optimizer.step()

    return update


def single(batch, width):
    """(A function that makes an update of seed 0, its loss)"""
    task = task_of(0, width)
    losses = lambda: task.losses(batch)[0]  # noqa: E731
    return updates(task, losses), losses


def several(batch, width, n):
    """(A function that makes an update of n seeds, their losses [n])"""
    task = SeedTask([task_of(seed, width) for seed in range(n)], range(n))
    batches = {name: torch.stack([value] * n) for name, value in batch.items()}
    losses = lambda: task.all_losses(task.tensors(), batches)[0]  # noqa: E731
    return updates(task, losses), losses


def operations(update):
    """Floating-point operations of the products of an update."""
    with FlopCounterMode(display=False) as counter:
        update()
    return counter.get_total_flops()


def rate(width, size, n, repeats):
    """Floating-point operations per CPU second of the product of a hidden layer of an ensemble of 2, for all seeds."""
    x, weight, out = torch.randn(2 * n, size, width), torch.randn(2 * n, width, width), torch.empty(2 * n, size, width)
    once = 2 * out.numel() * width
    calls = min(2000, max(1, int(2e9 / once)))

    def run():
        for _ in range(calls):
            torch.bmm(x, weight, out=out)

    return once * calls / measure({"product": run}, repeats)["product"]


def row(size, args):
    width, rows = map(int, size.split("x"))
    batch, half = hilp.batches(Namespace(batch=rows, state=STATE, action=ACTION)), args.seeds // 2
    parts = {"one": single(batch, width), "half": several(batch, width, half), "all": several(batch, width, args.seeds)}
    seconds = measure({name: update for name, (update, _) in parts.items()}, args.repeats)
    work, speed = operations(parts["all"][0]), rate(width, rows, args.seeds, min(args.repeats, 5))
    operations(parts["one"][0])  # as many updates as the other has had
    with torch.no_grad():
        difference = abs(float(parts["all"][1]()[0] / parts["one"][1]() - 1))
    one, every, more = seconds["one"], seconds["all"], (seconds["all"] - seconds["half"]) / (args.seeds - half)
    return {
        "one_ms": 1000 * one, "all_ms": 1000 * every, "ratio": every / one, "products": work / speed / one,
        "arithmetic": args.seeds * more / one, "gain": args.seeds * one / every, "gigaflop": work / 1e9,
        "gigaflop_per_second": speed / 1e9, "difference": difference,
    }  # fmt: skip


def main():
    args = arguments()
    torch.set_num_threads(1)
    keep_memory()
    print(f"{machine()['processor']}, 1 thread, median of {args.repeats}, {args.seeds} seeds at once")
    print("size          one ms    all ms  ratio  target  products  arithmetic  gain")
    result, failed = {"seeds": args.seeds, "repeats": args.repeats, **machine()}, False
    target = f"<= {TARGET:g}" if args.seeds == 8 else ""
    for size in args.sizes:
        result[size] = found = row(size, args)
        print(f"{size:10} {found['one_ms']:9.2f} {found['all_ms']:9.2f} {found['ratio']:6.2f} {target:>7}"
              f" {found['products']:9.2f} {found['arithmetic']:11.2f} {found['gain']:5.2f}   {found['gigaflop']:.3f}"
              f" GFLOP at {found['gigaflop_per_second']:.0f} GFLOP/s", flush=True)  # fmt: skip
        failed |= found["difference"] > TOLERANCE
    keep(result, args.json)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
