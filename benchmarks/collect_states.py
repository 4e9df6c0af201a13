"""Collection of Meta-World against a plain loop, on the same machine in the same run.

    python -m benchmarks.collect_states                       10 tasks x 40 episodes, 2 workers
    python -m benchmarks.collect_states --episodes 200 --workers 16

The plain loop is one process with the package as it comes: its MT1 benchmark, its scripted policy, arrays in lists and
one npz per episode. Ours is the command as you would type it, in processes of their own, Python's start included, with
shards, indexes and hashes. Arms take turns; the ratio is that of the medians. Target: at least 1.7 with 2 workers on 2
free cores.
"""

import argparse
import shutil
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from benchmarks.processes import run
from benchmarks.results import keep
from pipelines.command import machine

TASKS = (
    "reach", "push", "pick-place", "door-open", "drawer-open", "drawer-close", "button-press-topdown",
    "peg-insert-side", "window-open", "window-close",
)  # fmt: skip
STEPS = 200


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--episodes", type=int, default=40, help="per task")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", help="write the numbers here as well")
    return parser.parse_args()


def plain(args, folder):
    """Seconds of the loop that one would write first, without its imports and without the drawing of placements."""
    import metaworld
    from metaworld.policies import ENV_POLICY_MAP

    warnings.simplefilter("ignore")
    benchmarks = {name: metaworld.MT1(name, seed=0) for name in (f"{task}-v3" for task in args.tasks)}
    start = time.monotonic()
    for name, benchmark in benchmarks.items():
        policy = ENV_POLICY_MAP[name]()
        env = benchmark.train_classes[name]()
        for episode in range(args.episodes):
            env.set_task(benchmark.train_tasks[episode % len(benchmark.train_tasks)])
            observation, _ = env.reset()
            rows = []
            for _ in range(STEPS):
                action = np.clip(policy.get_action(observation), -1, 1)
                following, reward, _, _, info = env.step(action)
                rows.append((observation, action, reward, info["success"]))
                observation = following
            columns = [np.array(column) for column in zip(*rows, strict=True)]
            np.savez_compressed(folder / f"{name}-{episode}.npz", *columns)
        env.close()
    return time.monotonic() - start


def ours(args, folder):
    """Seconds of the command."""
    settings = (f"task.name=[{','.join(args.tasks)}]", f"task.env.episode_steps={STEPS}", "states.noise=0.0")
    settings += (f"states.episodes={args.episodes}", f"workers={args.workers}", f"run.dir={folder}")
    return run("foundation.collect", "task=metaworld", *settings, log=folder / "log.txt").seconds


def main():
    args = arguments()
    seconds = {"plain": [], "ours": []}
    for _ in range(args.repeats):
        for name, arm in (("plain", plain), ("ours", ours)):
            folder = Path(tempfile.mkdtemp())
            seconds[name].append(arm(args, folder))
            shutil.rmtree(folder)
            print(f"{name:6} {seconds[name][-1]:.1f} s", flush=True)
    steps = len(args.tasks) * args.episodes * STEPS
    median = {name: statistics.median(found) for name, found in seconds.items()}
    ratio = median["plain"] / median["ours"]
    print(f"{machine()['processor']}, {machine()['cores']} cores; {steps} steps, median of {args.repeats}")
    rates = {name: round(steps / found) for name, found in median.items()}
    print(f"plain loop {rates['plain']} steps/s, {args.workers} workers {rates['ours']} steps/s")
    print(f"ratio {ratio:.2f} (target >= 1.7 with 2 workers on 2 free cores)")
    keep({"ratio": ratio, "steps": steps, **median, **machine()}, args.json)


if __name__ == "__main__":
    main()
