"""What a benchmark leaves behind."""

import json
from pathlib import Path

from pipelines.scoring import without_nan


def keep(result, path):
    """Writes a mapping of numbers as JSON, NaN as null, to the file that --json named; nothing without one."""
    if path:
        Path(path).write_text(json.dumps(without_nan(result), indent=1) + "\n", encoding="utf-8")
