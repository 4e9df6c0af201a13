"""Ingest, label and train at growing sizes: does a frame cost the same, does memory stay?

    python -m benchmarks.scale                                        10^4, 10^5 and 10^6 frames, files of 100
    python -m benchmarks.scale --frames 1000 10000 --folder /fast/disk  smaller, elsewhere

The video is real: `foundation.collect` records Doom, the recordings are scaled and cut into clips, and the clips are
copied until there are enough files. Each file is decoded, hashed, stored and labelled on its own; copies carry a number
in a box that players skip, because ingest sets aside files with equal bytes. Pictures are small, since files and frames
are counted here, not pixels: `benchmarks/ingest.py` and `benchmarks/label.py` measure those. Every stage is the command
that you would type, in processes of its own, into an empty folder; seconds and memory include Python's start. Training
takes the same number of steps at every size and keeps no decoded frames, so what can grow with the data is its start
and its index.

Growth compares with the size before: of the CPU time per frame (1 = linear, below 1 = a start that is shared by more
frames) and of the peak memory of all processes together (1 = constant). Then two workers against one on the same files.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from benchmarks.processes import run
from pipelines.command import machine
from pipelines.pixels import encode
from pipelines.video import open_reader

FPS = 17.5  # of foundation.collect
SMALL_IDM = {"channels": "[8,16,16]", "dim": 32, "heads": 2, "layers": 1, "window": 32}
SMALL_POLICY = {"channels": "[8,16,16,16]", "dim": 32, "heads": 2, "layers": 1}
RECORDINGS = 3  # that a labeller is trained on
STAGES = ("ingest", "label", "train", "workers")


def arguments(given=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", nargs="+", type=int, default=[10**4, 10**5, 10**6], help="sizes, ascending")
    parser.add_argument("--frames-per-file", type=int, default=100)
    parser.add_argument("--distinct", type=int, default=200, help="clips that differ in their pictures")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--pair", type=int, help="frames for one worker against two; default: the second largest size")
    parser.add_argument("--steps", type=int, default=30, help="of training")
    parser.add_argument("--size", nargs=2, type=int, default=[16, 20], help="height and width of stored frames")
    parser.add_argument("--video-size", nargs=2, type=int, default=[60, 80], help="height and width of the videos")
    parser.add_argument("--plays", help="recordings with action logs to cut up, instead of new ones")
    parser.add_argument("--idm", help="run folder of a trained labeller, instead of one trained for some steps")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--folder", default="outputs/scale", help="videos, shards and logs; the videos are kept")
    parser.add_argument("--out", help="write the numbers here as well, as JSON")
    args = parser.parse_args(given)
    args.folder = Path(args.folder).absolute()
    args.frames.sort()
    args.pair = args.pair or args.frames[-2:][0]
    return args


# videos


def make_videos(args):
    """`<folder>/videos/<number>.mp4`, as many as the largest size needs; those that are there stay."""
    videos, count = args.folder / "videos", files_of(args, max(args.frames))
    videos.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(count) if not (videos / f"{number:06d}.mp4").exists()]
    if not missing:
        return
    clips = cut(recordings(args), args.frames_per_file, min(args.distinct, count), tuple(args.video_size))
    for number in tqdm(missing, desc="videos", disable=None):
        part = videos / ".part"
        part.write_bytes(clips[number % len(clips)] + free_box(number))
        part.rename(videos / f"{number:06d}.mp4")


def recordings(args):
    """Folder of recordings with action logs, long enough for the distinct clips and to train a labeller."""
    if args.plays:
        return Path(args.plays).absolute()
    count = min(args.distinct, files_of(args, max(args.frames)))
    hours = (count + 2) * args.frames_per_file / FPS / 3600
    run("foundation.collect", f"run.dir={args.folder}/run", f"out={args.folder}/plays",
        f"hours={hours:.5f}", "workers=1", log=args.folder / "log.txt", threads=args.threads)  # fmt: skip
    return args.folder / "plays"


def cut(plays, length, count, size):
    """`count` MP4 files of `length` frames each, as bytes; fewer where there is too little to cut up."""
    clips = []
    for play in sorted(plays.glob("*.mp4")):
        reader = open_reader(play, size=size)
        for start in range(0, len(reader.table) - length + 1, length):
            if len(clips) < count:
                clips.append(encode(reader.frames(range(start, start + length)), FPS))
    if not clips:
        sys.exit(f"no recording in {plays} has {length} frames; ask for smaller files or more distinct clips")
    return clips


def free_box(number):
    """An MP4 box without meaning, 16 bytes."""
    return (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big")


def files_of(args, frames):
    return -(-frames // args.frames_per_file)


# stages


def ingest(args, frames, workers=1):
    lines = [f"videos/{number:06d}.mp4\n" for number in range(files_of(args, frames))]
    listing = args.folder / f"{frames}.txt"
    listing.write_text("".join(lines))
    out = emptied(args, f"clips-{frames}" if workers == 1 else "pair-clips")
    return command(args, "pipelines.ingest", f"videos={listing}", f"out={out}", f"workers={workers}", size(args))


def label(args, frames, workers=1):
    out = emptied(args, f"labels-{frames}" if workers == 1 else "pair-labels")
    return command(
        args, "pipelines.label", f"clips={args.folder}/clips-{frames}", f"idm={labeller(args)}", f"out={out}",
        f"workers={workers}", f"threads={args.threads}", "device=cpu", "allow_unlabelled_keys=true",
    )  # fmt: skip


def train(args, frames):
    net = [f"method.net.{name}={value}" for name, value in SMALL_POLICY.items()]
    return command(
        args, "foundation.pretrain", "method=vpt", f"data.train={args.folder}/clips-{frames}",
        f"data.labels={args.folder}/labels-{frames}", f"steps={args.steps}", "data.cache_gb=0",
        "resume=never", *net,
    )  # fmt: skip


def labeller(args):
    """Folder of the labeller: the one given, or a small one trained for some steps on the recordings."""
    if args.idm:
        return Path(args.idm).absolute()
    trained, shards = args.folder / "idm", args.folder / "labelled"
    if not (trained / "model").is_dir():
        net = [f"method.net.{name}={value}" for name, value in SMALL_IDM.items()]
        plays = ",".join(map(str, sorted(recordings(args).glob("*.mp4"))[:RECORDINGS]))
        command(args, "pipelines.ingest", f"videos=[{plays}]", f"out={shards}", "workers=0", size(args))
        command(args, "foundation.pretrain", "method=idm", f"data.train={shards}", f"run.dir={trained}",
                "steps=20", "data.hours=0.1", "resume=never", *net)  # fmt: skip
    return trained


def command(args, module, *overrides):
    """Usage of one of our commands; its run directory is `<folder>/run` unless another one is given."""
    return run(module, f"run.dir={args.folder}/run", *overrides, log=args.folder / "log.txt", threads=args.threads)


def size(args):
    return f"size=[{args.size[0]},{args.size[1]}]"


def emptied(args, name):
    path = args.folder / name
    shutil.rmtree(path, ignore_errors=True)
    return path


# tables


def measure(args):
    """{"machine": ..., "rows": [...], "workers": [...]}: every stage at every size."""
    result = {"machine": machine(), "rows": [], "workers": []}
    functions = {"ingest": ingest, "label": label, "train": train}
    if "label" in args.stages:
        labeller(args)
    for frames in args.frames:
        for stage in [name for name in functions if name in args.stages]:
            row = facts(args, stage, frames, functions[stage](args, frames))
            earlier = [r for r in result["rows"] if r["stage"] == stage]
            result["rows"].append(row | growth(row, earlier[-1] if earlier else None))
            show(result["rows"])
            save(args, result)
    if "workers" in args.stages:
        for stage in ("ingest", "label"):
            result["workers"].append(pair(args, stage, functions[stage]))
            save(args, result)
    return result


def save(args, result):
    """Writes what is known so far: the largest size can take hours."""
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def facts(args, stage, frames, usage):
    return {
        "stage": stage, "frames": frames, "files": files_of(args, frames), "seconds": round(usage.seconds, 2),
        "cpu_seconds": round(usage.cpu_seconds, 2), "frames_per_second": round(frames / usage.seconds, 1),
        "peak_mb": round(usage.tree_bytes / 2**20, 1), "peak_process_mb": round(usage.process_bytes / 2**20, 1),
        "load": round(os.getloadavg()[0], 2),
    }  # fmt: skip


def growth(row, before):
    """Of the cost per frame and of memory since the size before."""
    if before is None:
        return {"cost_growth": None, "memory_growth": None}
    per_frame = [r["cpu_seconds"] / r["frames"] for r in (before, row)]
    return {
        "cost_growth": round(per_frame[1] / per_frame[0], 3),
        "memory_growth": round(row["peak_mb"] / before["peak_mb"], 3),
        "bytes_per_file": round((row["peak_mb"] - before["peak_mb"]) * 2**20 / max(1, row["files"] - before["files"])),
    }


def show(rows):
    """Prints the last row, under the names of the columns if it is the first."""
    row = rows[-1]
    if len(rows) == 1:
        print(f"{'stage':7} {'frames':>9} {'files':>7} {'seconds':>9} {'CPU-s':>9} {'frames/s':>9} {'CPU-us/frame':>13}"
              f" {'peak MB':>8} {'largest':>8}  growth of cost, memory; bytes/file  load")  # fmt: skip
    grown = "-" if row["cost_growth"] is None else (
        f"{row['cost_growth']:.2f} {row['memory_growth']:.2f} {row['bytes_per_file']:,}")  # fmt: skip
    print(f"{row['stage']:7} {row['frames']:9} {row['files']:7} {row['seconds']:9.1f} {row['cpu_seconds']:9.1f}"
          f" {row['frames_per_second']:9.1f} {1e6 * row['cpu_seconds'] / row['frames']:13.1f} {row['peak_mb']:8.1f}"
          f" {row['peak_process_mb']:8.1f}  {grown:34}  {row['load']}", flush=True)  # fmt: skip


def pair(args, stage, function):
    """One worker, then two, on the same files; printed beside what else the machine was doing."""
    one, two = (facts(args, stage, args.pair, function(args, args.pair, workers)) for workers in (1, 2))
    row = {
        "stage": stage, "frames": args.pair, "cores": machine()["cores"], "load": [one["load"], two["load"]],
        "seconds": [one["seconds"], two["seconds"]], "speedup": round(one["seconds"] / two["seconds"], 2),
        "cpu_seconds": [one["cpu_seconds"], two["cpu_seconds"]],
    }  # fmt: skip
    print(f"{stage}, {args.pair} frames, two workers / one: {row['speedup']:.2f}x ({one['seconds']:.1f} s,"
          f" {two['seconds']:.1f} s); CPU-s {two['cpu_seconds'] / one['cpu_seconds']:.2f}x; {row['cores']} cores, load"
          f" {one['load']} and {two['load']}", flush=True)  # fmt: skip
    return row


def main():
    args = arguments()
    args.folder.mkdir(parents=True, exist_ok=True)
    make_videos(args)
    print(json.dumps(measure(args)))


if __name__ == "__main__":
    main()
