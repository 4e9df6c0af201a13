"""Streams of samples: video to clip shards to trajectories to batches.

WDS_SECURE is set before webdataset can be imported: without it that library
unpickles tar members and runs `pipe:` addresses in a shell.
"""

import os

os.environ.setdefault("WDS_SECURE", "1")
