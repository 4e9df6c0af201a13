"""What is in a folder of shards: `python -m pipelines.peek shards=data/clips`.

Prints totals, sizes and rates, where the actions came from, how often each key is held, and a few samples; can also
check every byte, take in tars written by stock webdataset, clear what killed writers left, and draw a contact sheet.
Of episodes of vectors it reports returns, success, quality and coverage, see `pipelines/trajectory_report.py`.
"""

import logging
import signal
from collections import Counter

import av
import numpy as np

from pipelines import gc, schema, tars, trajectory_report
from pipelines.command import command
from pipelines.schema import DataError
from pipelines.shards import Shards
from pipelines.video import open_clip

log = logging.getLogger("foundation-policy")


@command("peek")
def main(cfg):
    if cfg.shards is None:
        raise DataError("set shards=<folder of shards>")
    if cfg.adopt:
        print(f"adopted {tars.adopt(cfg.shards)} tars")
    if cfg.gc:
        print(f"deleted {gc.collect(cfg.shards)} files that no manifest names")
    shards = Shards(cfg.shards, verify=cfg.verify or None, on_damage=cfg.on_damage)  # None: as on_damage needs it
    if not shards.entries:
        raise DataError(f"{cfg.shards} holds no samples")
    summary = totals(shards) | {f"set_aside_{name}": n for name, n in shards.set_aside.items() if n}
    print_facts(shards, summary)
    if cfg.actions:
        summary |= action_statistics(shards)
    vectors = any(entry.meta.get("spaces") for entry in shards.entries)
    if vectors:
        summary |= trajectory_report.report(shards, cfg)
    for entry in shards.entries[: cfg.samples]:
        print(describe(shards, entry))
    if cfg.sheet and vectors:
        raise DataError("sheet= draws frames, and episodes of vectors have none; their returns are in returns.png")
    if cfg.sheet:
        write_png(cfg.sheet, contact_sheet(shards, shards.entries[: max(1, cfg.samples)], cfg.sheet_frames))
        print(f"contact sheet: {cfg.sheet}")
    return summary


def totals(shards):
    """Flat counts over the manifests; nothing else is read."""
    metas = [entry.meta for entry in shards.entries]
    frames = sum(length(meta) for meta in metas)
    size = sum(m["bytes"] for m in shards.manifests)
    seconds = sum(length(meta) / meta["fps"] for meta in metas if meta.get("fps"))
    return {
        "shards": len(shards.manifests), "samples": len(shards), "frames": frames, "bytes": size,
        "hours": round(seconds / 3600, 4), "bytes_per_frame": round(size / max(frames, 1), 1),
        "sources": len({meta.get("source_sha256") for meta in metas}), "fingerprint": shards.fingerprint(),
    }  # fmt: skip


def length(meta):
    start, stop = meta.get("frames", (0, 0))
    return stop - start


def print_facts(shards, summary):
    print(
        f"{shards.root}: {summary['samples']} samples of {summary['sources']} sources in {summary['shards']} shards,"
        f" {summary['frames']} frames ({summary['hours']:.2f} h), {summary['bytes'] / 2**20:.1f} MiB"
        f" ({summary['bytes_per_frame']:.0f} bytes a frame), fingerprint {summary['fingerprint']}"
    )
    metas = [entry.meta for entry in shards.entries]
    count("size x rate", (f"{size_of(m)} at {m.get('fps')} fps" for m in metas))
    count("actions", (f"{m.get('provenance')} ({(m.get('actions') or {}).get('name', 'no spec')})" for m in metas))
    count("labeller", (m["labeller"][:12] for m in metas if m.get("labeller")))
    count("notes", (note for m in metas for note in m.get("notes", ())))
    for tag in ("task", "map", "split", "player"):
        count(tag, (str(m["tags"][tag]) for m in metas if tag in m.get("tags", {})))


def size_of(meta):
    if meta.get("spaces"):
        return f"{meta['spaces'].get('state_dim')} -> {meta['spaces'].get('action_dim')} vectors"
    return f"{meta.get('height')}x{meta.get('width')}"


def count(title, values):
    """One line with the most frequent values."""
    found = Counter(values).most_common(8)
    if found:
        print(f"  {title}: " + ", ".join(f"{printable(value)} {n}x" for value, n in found))


def printable(text):
    """Text of somebody else's metadata without the control characters that a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text)


def action_statistics(shards):
    """Shares of frames in which each key is held and the mouse moves; printed and returned as "keys/<name>"."""
    held, moved, frames, names = None, 0, 0, None
    for entry in shards.entries:
        spec = entry.meta.get("actions")
        if spec is None:
            continue
        arrays = shards.arrays(entry.key)
        if schema.KEYS not in arrays:
            continue
        if names is not None and spec["keys"] != names:
            raise DataError(f"{shards.root} mixes action specs; set actions=false, or ingest them apart")
        names = spec["keys"]
        keys = arrays[schema.KEYS].astype(np.int64)  # t k
        held = keys.sum(0) if held is None else held + keys.sum(0)
        frames += len(keys)
        moved += int((arrays[schema.MOUSE] != 0).any(1).sum())
    if not frames:
        return {}
    shares = {f"keys/{name}": round(float(n) / frames, 4) for name, n in zip(names, held, strict=True)}
    shares["mouse_moves"] = round(moved / frames, 4)
    print("  held: " + ", ".join(f"{name.removeprefix('keys/')} {share:.1%}" for name, share in shares.items()))
    return shares


def describe(shards, entry):
    """One sample in two lines."""
    meta, arrays = entry.meta, shards.arrays(entry.key)
    shapes = ", ".join(f"{name} {a.dtype}{list(a.shape)}" for name, a in sorted(arrays.items()))
    notes = f" [{', '.join(meta['notes'])}]" if meta.get("notes") else ""
    span = "..".join(map(str, meta.get("frames", ())))
    return f"  {entry.key}: {meta.get('source')!r} frames {span}{notes}\n    {shapes}"


def contact_sheet(shards, entries, columns):
    """uint8 [h w c]: `columns` evenly spaced frames of each sample, one sample a row."""
    rows = []
    for entry in entries:
        indices = np.linspace(0, length(entry.meta) - 1, columns).round().astype(int)
        reader = open_clip(shards.read(entry.key, schema.VIDEO), entry.meta)
        rows.append(np.concatenate(list(reader.frames(indices)), axis=1))
    width = min(row.shape[1] for row in rows)
    return np.concatenate([row[:, :width] for row in rows])


def write_png(path, image):
    """uint8 [h w c] -> PNG file."""
    try:
        with av.open(f"file:{path}", "w", format="image2", options={"update": "1"}) as output:
            stream = output.add_stream("png", rate=1)
            stream.height, stream.width, stream.pix_fmt = image.shape[0], image.shape[1], "rgb24"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            output.mux([*stream.encode(frame), *stream.encode(None)])
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(f"cannot write {path} ({error}); choose another sheet=") from error


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it quietly
    main()
