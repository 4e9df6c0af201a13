"""Damage to a file: what bad disks, broken copies and careless hands do to bytes."""

import re

VALUE = re.compile(rb'"[^"\n]*"|-?\b\d+(?:\.\d+)?(?:[eE][+-]?\d+)?\b|\b(?:true|false|null)\b')
OTHER_VALUES = (b"null", b"-1", b"0", b"1e400", b"NaN", b'"x"', b"[]", b"{}", b"true", b"99999999999999999999")
LONGEST = 512  # bytes of a zeroed or inserted stretch
EDGE = 600  # bytes at either end, where headers and tables are: half of all damage goes there


def mutate(data, others, text, generator):
    """(name of the damage, damaged bytes): never the same as before.

    others: contents of other files of the same kind, which lend their headers; text: whether values can be exchanged.
    """
    kinds = [flip, cut, zero, insert, *([header] if others else []), *([value] if text else [])]
    while True:
        kind = kinds[generator.integers(len(kinds))]
        damaged = kind(data, others, generator)
        if damaged != data:
            return kind.__name__, damaged


def position(data, generator):
    """A place in the file, as often near an end as anywhere."""
    if generator.random() < 0.5:
        return int(generator.integers(len(data)))
    near = int(generator.integers(min(EDGE, len(data))))
    return near if generator.random() < 0.5 else len(data) - 1 - near


def flip(data, others, generator):
    """One to eight bits."""
    data = bytearray(data)
    for _ in range(int(generator.integers(1, 9))):
        data[position(data, generator)] ^= 1 << int(generator.integers(8))
    return bytes(data)


def cut(data, others, generator):
    """The rest of the file is missing."""
    return data[: position(data, generator)]


def zero(data, others, generator):
    """A stretch of zeros, as a disk that lost a block leaves it."""
    at, length = position(data, generator), int(generator.integers(1, LONGEST))
    return data[:at] + bytes(len(data[at : at + length])) + data[at + length :]


def insert(data, others, generator):
    """Random bytes between the others."""
    at = position(data, generator)
    return data[:at] + generator.bytes(int(generator.integers(1, LONGEST))) + data[at:]


def header(data, others, generator):
    """The beginning of another file of the same kind."""
    other = others[generator.integers(len(others))]
    length = int(generator.integers(8, 4096))
    return other[:length] + data[length:]


def value(data, others, generator):
    """One number, string or word of a text is another."""
    found = list(VALUE.finditer(data))
    if not found:
        return data
    place = found[generator.integers(len(found))]
    return data[: place.start()] + OTHER_VALUES[generator.integers(len(OTHER_VALUES))] + data[place.end() :]
