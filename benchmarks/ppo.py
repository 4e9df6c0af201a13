"""Frames per second of PPO rollouts and training against the engine alone, on the same machine in the same run.

    python -m benchmarks.ppo                          a small video policy with random weights
    python -m benchmarks.ppo --policy <hub folder>    a trained one

The engine arm steps the same environments with fixed actions, at the policy's frame size. Arms take turns, so that a
busy machine slows all of them; medians over the repeats are printed with their ratio to the engine arm.
"""

import argparse
import copy
import statistics
import time

import torch

from benchmarks.results import keep
from foundation.envs import registry
from foundation.finetuning.ppo import PPO
from foundation.rollout import Environments, OnPolicy, Rollout, training_seed
from models.video_policy import VideoPolicy
from pipelines import checkpoint
from pipelines.actions import ActionCodec


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="doom_my_way_home")
    parser.add_argument("--policy", help="hub folder; without it a random VideoPolicy on 64x80 frames")
    parser.add_argument("--environments", type=int, default=16)
    parser.add_argument("--chunk", type=int, default=64, help="frames per environment and rollout")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 = torch's choice")
    parser.add_argument("--json", help="write the numbers here as well")
    return parser.parse_args()


def policy_of(args, codec):
    """(policy, frame size)"""
    if args.policy:
        bundle = checkpoint.load(args.policy)
        return bundle.net, bundle.size
    classes = (codec.n_buttons, codec.n_camera, codec.camera_on, codec.camera_null)
    return VideoPolicy(64, 80, *classes).eval(), (64, 80)


def vector(args, size, threads=None):
    worlds = [registry.make(args.task, seed=i, size=size) for i in range(args.environments)]
    return Environments(worlds, lambda slot, episode: training_seed(0, slot, episode), threads)


def engine(environments, args, codec):
    """Steps with fixed actions: turn right, walk on."""
    keys, bins = codec.from_joint(codec.to_joint([[1, 0, 0, 0, 0, 0]], codec.to_bins([[0.0, 3.0]])))
    action = {"keys": keys[0], "mouse": codec.from_bins(bins)[0]}
    environments.reset()

    def run():
        for _ in range(args.chunk):
            environments.step([action] * len(environments))

    return run


def training(policy, environments, args, codec, train_encoder):
    """One rollout and its updates, with the anchor, by the optimizer of the algorithm but without a Trainer."""
    agent = PPO(copy.deepcopy(policy), pretrained=policy, train_encoder=train_encoder)
    optimizer = agent.configure_optimizers()
    rollout = Rollout(environments, codec, 0, features=not train_encoder)
    stream = iter(OnPolicy(agent, rollout, 10_000, args.chunk, args.epochs, args.minibatches, 0))

    def run():
        for _ in range(args.epochs * args.minibatches):
            loss, _ = agent.losses(next(stream))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def measure(arms, frames, repeats):
    """{name: median frames/s}; arms take turns, after one round that does not count."""
    rates = {name: [] for name in arms}
    for repeat in range(repeats + 1):
        for name, run in arms.items():
            start = time.perf_counter()
            run()
            if repeat:
                rates[name].append(frames / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def main():
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    codec = ActionCodec(registry.make(args.task).spec_of_actions)
    policy, size = policy_of(args, codec)
    threaded, acting = vector(args, size), Rollout(vector(args, size), codec, 0)
    arms = {
        "engine, one after another": engine(vector(args, size, threads=1), args, codec),
        "engine, threads": engine(threaded, args, codec),
        "policy acts": lambda: acting.collect(policy, args.chunk),
        "policy acts and trains": training(policy, vector(args, size), args, codec, train_encoder=True),
        "same, encoder frozen": training(policy, vector(args, size), args, codec, train_encoder=False),
    }
    rates = measure(arms, args.environments * args.chunk, args.repeats)
    base = rates["engine, threads"]
    print(f"{'arm':28s} {'frames/s':>9s} {'of engine':>10s}   torch threads {torch.get_num_threads()}")
    for name, rate in rates.items():
        print(f"{name:28s} {rate:9.0f} {rate / base:10.3f}")
    keep({"frames_per_second": rates, "ratio": {n: r / base for n, r in rates.items()}}, args.json)


if __name__ == "__main__":
    main()
