"""Opens a video with the demuxers that are safe on files from anywhere, and looks at the tables of MP4 before that.

Some demuxers (playlists, concatenation scripts, image sequences) open other files and addresses that the file names;
only formats that hold their own video are allowed. In MP4 a few bytes can promise billions of equal samples, for each
of which the demuxer allocates an index entry (measured: 35 bytes each, 350 MB from a file of 4 KB).
"""

import errno
import io
import mmap
from pathlib import Path

import av

MP4 = "mov"  # as libavformat calls the family
OTHERS = "matroska,webm,avi,mpegts,flv,mpeg,mpegvideo,asf,ogg"
MARKS = {b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"wide"}  # first boxes of MP4 files
COUNTS = {b"stsz": 12, b"stz2": 12, b"trun": 8}  # box type -> where, from it on, the number of samples is
COMPRESSED = b"cmov"  # tables that cannot be looked at; nobody has written these for decades


def open_video(source):
    """av container of a path or bytes. FFmpegError, OSError, or ValueError for tables that promise the impossible."""
    if not looks_like_mp4(source):
        try:
            return open_as(source, OTHERS)
        except av.error.FFmpegError as error:
            if error.errno != errno.EINVAL:  # that is: the format is not on the list
                raise
    if fault := table_fault(source):
        raise ValueError(fault)
    return open_as(source, MP4)


def open_as(source, formats):
    options = {"format_whitelist": formats, "protocol_whitelist": "file"}
    target = address(source)
    try:
        return av.open(target, metadata_errors="ignore", options=options)
    except BaseException:
        if not isinstance(target, str):
            target.close()
        raise


def in_memory(source):
    return isinstance(source, (bytes, bytearray, memoryview))


def address(source):
    """What av.open takes for bytes or a path. The explicit protocol keeps a file called `http:x.mp4` a file."""
    if in_memory(source):
        return io.BytesIO(source)
    try:
        str(source).encode()
    except UnicodeEncodeError:  # a name that is no UTF-8
        return open(source, "rb")  # closed with the container
    return f"file:{Path(source)}"


def looks_like_mp4(source):
    if in_memory(source):
        return bytes(source[4:8]) in MARKS
    with open(source, "rb") as file:
        return file.read(8)[4:] in MARKS


def table_fault(source):
    """What is wrong with the sample tables of an MP4 file (path or bytes), or None."""
    if in_memory(source):
        return search(bytes(source))
    with open(source, "rb") as file:
        if not file.seek(0, io.SEEK_END):
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return search(data)


def search(data):
    """Looks through all boxes but the pictures: demuxers find tables in odd places too. A sample has a byte."""
    for start, stop in boxes(data):
        if data.find(COMPRESSED, start, stop) >= 0:
            return "its tables are compressed (cmov); remux it with ffmpeg first"
        for kind, offset in COUNTS.items():
            at = data.find(kind, start, stop)
            while at >= 0:
                count = int.from_bytes(data[at + offset : at + offset + 4], "big")
                if count > len(data):
                    return f"its tables promise {count} frames in {len(data)} bytes"
                at = data.find(kind, at + 1, stop)
    return None


def boxes(data):
    """Yields [start, stop) of the top-level boxes other than `mdat`, as far as a demuxer would walk."""
    start = 0
    while start + 8 <= len(data):
        size, header = int.from_bytes(data[start : start + 4], "big"), 8
        if size == 1:
            size, header = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        if size == 0:
            size = len(data) - start
        if size < header:
            return
        if data[start + 4 : start + 8] != b"mdat":
            yield start, min(start + size, len(data))
        start += size
