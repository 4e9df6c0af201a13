"""Reading text that others wrote: JSON and YAML of bounded size and depth, as plain values only.

A file may be damaged, or made to fill the memory of whoever opens it; either way the answer is one DataError.
"""

import json
from pathlib import Path

import yaml

from pipelines.schema import DataError

MAX_LINE_BYTES = 1 << 20
PARSE_ERRORS = (ValueError, RecursionError, OverflowError)  # ValueError: also bad UTF-8 and numbers of 5,000 digits


class PlainLoader(yaml.SafeLoader):
    """YAML of plain values without aliases: nine lines of aliases to aliases stand for billions of entries."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read", self.peek_event().start_mark)
        return super().compose_node(parent, index)


def read_bytes(path, limit):
    """The bytes of a file of at most `limit` bytes."""
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise DataError(f"{path} has more than {limit} bytes, too many for what it should be; is it another file?")
    return data


def read_json(path, limit):
    return parse_json(read_bytes(path, limit), path)


def parse_json(data, name):
    """JSON bytes or text -> plain values."""
    try:
        return json.loads(data)
    except PARSE_ERRORS as error:
        raise DataError(f"{name} is not JSON ({error}); copy it again, or re-run what wrote it") from error


def read_yaml(path, limit):
    """YAML file -> plain values: no tags of Python, no aliases."""
    try:
        return yaml.load(read_bytes(path, limit).decode(), Loader=PlainLoader)
    except (yaml.YAMLError, *PARSE_ERRORS) as error:
        raise DataError(f"{path} is not plain YAML: {error}") from error


def read_lines(path, limit):
    """Yields (number, bytes) of a file of lines; DataError before a line or the file outgrows its limit."""
    if Path(path).stat().st_size > limit:
        raise DataError(f"{path} has more than {limit} bytes; split it")
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{path} line {number} has more than {MAX_LINE_BYTES} bytes; is it a file of lines?")
            yield number, line


def bounded(value, name, limit=1_000_000):
    """`value`, if its nested lists and dicts hold at most `limit` values: references to references multiply."""
    stack, count = [value], 0
    while stack:
        item, count = stack.pop(), count + 1
        if count > limit:
            raise DataError(f"{name} stands for more than {limit} values; refused")
        if isinstance(item, dict):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            stack += item
    return value
