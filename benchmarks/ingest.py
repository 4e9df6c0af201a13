"""Ingest against ffmpeg doing the same work: python benchmarks/ingest.py [frames]

Ratios of CPU time, ffmpeg / ours, on one thread (1.0 = as fast as ffmpeg, larger = faster), best of three
interleaved runs each, same generated file, same machine, same minute:

    decode   640x360 H.264 -> 128x128 RGB in memory            against `ffmpeg -threads 1`, same scaler, to nowhere
    ingest   640x360 H.264 -> 128x128 clips in verified shards  against ffmpeg decoding, scaling and encoding alike
    read     share of a random 16-frame window's time that goes to the shard (index, pread, crc32), not to decoding
"""

import argparse
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from pipelines.clips import ClipSettings
from pipelines.contractor import ContractorOptions
from pipelines.ingest_unit import process
from pipelines.pixels import Resizer
from pipelines.schema import VIDEO
from pipelines.shards import Shards
from pipelines.units import Job, find_units
from pipelines.video import decode, open_reader

SIZE = (128, 128)
RUNS = 3


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("frames", nargs="?", type=int, default=900)
    frames = parser.parse_args().frames
    if shutil.which("ffmpeg") is None:
        sys.exit("needs the ffmpeg program to compare with; install it and run again")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        video = make_video(folder / "in" / "play.mp4", frames)
        ours, theirs, whole, transcode = [], [], [], []
        for run in range(RUNS):
            theirs.append(ffmpeg(video, "-pix_fmt", "rgb24", "-f", "rawvideo", "/dev/null"))
            ours.append(cpu(lambda: decode_all(video)))
            transcode.append(ffmpeg(video, *encoding(), folder / f"ffmpeg{run}.mp4"))
            whole.append(cpu(lambda run=run: ingest(video.parent, folder / f"out{run}")))
        share, window = read_share(Shards(folder / "out0", verify=True))
    machine = platform.processor() or platform.machine()
    print(f"{machine}, Python {platform.python_version()}, {frames} frames, best of {RUNS}")
    show("decode", min(theirs), min(ours), frames, target=0.9)
    show("ingest", min(transcode), min(whole), frames, target=0.7)
    print(f"read    {share:.1%} of {1000 * window:.2f} CPU-ms per window of 16 frames (target < 5 %)")


def show(name, theirs, ours, frames, target):
    print(
        f"{name:7} ratio {theirs / ours:.2f} (target >= {target}): ours {frames / ours:.0f} frames per CPU-s,"
        f" ffmpeg {frames / theirs:.0f}"
    )


def make_video(path, frames):
    """Moving texture with noise, as a screen recorder would write it: long GOPs, B-frames."""
    path.parent.mkdir(parents=True)
    source = f"testsrc2=size=640x360:rate=20:duration={frames / 20},noise=alls=12:allf=t"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, "-c:v", "libx264", "-preset", "veryfast"]
    subprocess.run([*command, "-crf", "23", "-pix_fmt", "yuv420p", path], check=True)
    return path


def ffmpeg(video, *output):
    """CPU seconds of ffmpeg on one thread, scaling as we do."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    scale = f"scale={SIZE[1]}:{SIZE[0]}:flags=bilinear"
    command = ["ffmpeg", "-v", "error", "-y", "-threads", "1", "-i", video, "-vf", scale, "-filter_threads", "1"]
    subprocess.run([*command, "-threads", "1", *output], check=True)
    return spent(before, resource.getrusage(resource.RUSAGE_CHILDREN))


def encoding():
    """The options of our Encoder."""
    settings = ClipSettings()
    x264 = f"threads=1:rc-lookahead=0:mbtree=0:keyint={settings.gop}:min-keyint={settings.gop}:scenecut=0:bframes=0"
    return ["-c:v", "libx264", "-preset", settings.preset, "-crf", str(settings.crf), "-x264-params", x264]


def cpu(work):
    before = resource.getrusage(resource.RUSAGE_SELF)
    work()
    return spent(before, resource.getrusage(resource.RUSAGE_SELF))


def spent(before, after):
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def decode_all(video):
    resizer = Resizer(SIZE)
    for _, frame in decode(video):
        resizer.rgb(frame)


def ingest(folder, out):
    """What one worker of `python -m pipelines.ingest` does."""
    job = Job(folder, out, ClipSettings(size=SIZE), ContractorOptions())
    for unit in find_units(job, sorted(folder.iterdir())):
        process((job, unit))


def read_share(shards, windows=60, length=16):
    """(share of a window's CPU time spent in the shard, CPU seconds of a window), each from bytes to pixels."""
    generator = np.random.default_rng(0)
    picks = [shards.entries[i] for i in generator.integers(0, len(shards), windows)]
    shards.read(picks[0].key, VIDEO)  # the index is loaded once

    def decode_windows():
        for entry in picks:
            count = entry.meta["frames"][1] - entry.meta["frames"][0]
            start = int(generator.integers(0, count - length))
            open_reader(shards.read(entry.key, VIDEO)).frames(np.arange(start, start + length))

    both = cpu(decode_windows)
    alone = cpu(lambda: [shards.read(entry.key, VIDEO) for entry in picks for _ in range(10)]) / 10
    return alone / both, both / windows


if __name__ == "__main__":
    main()
