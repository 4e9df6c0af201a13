"""Shards of small mazes, with keys and rewards or as video alone, recorded by the real command."""

from tests.foundation.running import run

SMALL = ("task=maze_video", "task.env.rooms=2", "task.env.size=[16,16]", "task.env.episode_frames=60", "workers=0")


def write_mazes(root, *overrides, episodes=6, actions=True):
    from foundation import collect  # late: it brings every environment, and conftest.py imports this file

    clips = (f"clips.episodes={episodes}", f"clips.actions={actions}", "clips.roam=false")
    run(collect, "collect", *SMALL, *clips, f"out={root / 'shards'}", f"run.dir={root}", *overrides)
    return root / "shards"
