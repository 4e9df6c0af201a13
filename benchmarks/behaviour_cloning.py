"""CPU time per frame of behaviour cloning: chunks with carried memory, and cached features, against frame by frame.

    python -m benchmarks.behaviour_cloning              VideoPolicy at its default size and a small VptPolicy
    python -m benchmarks.behaviour_cloning --chunk 64   shorter chunks

Three arms per net, on the same frames of one video, forward and backward, gradients accumulated into the same
parameters; the optimizer's step is left out, as it is the same work for all:

    frame by frame   as the VPT release clones: T = 1, memory carried and detached after every frame
    chunk            T = --chunk, memory carried and detached between chunks (foundation.pretraining.vpt)
    cached           the same with a frozen encoder whose features were computed before; `encode` is what that costs

Ratios are of CPU time, best of the repeats after one that does not count, arms taking turns, one thread, convolutions
and allocator set as in training. Losses of the first two arms are compared: they are the same function of the same
frames. Exit status 1 if they differ. `--default-allocator` shows what returning memory to the system costs.
"""

import argparse
import sys
import time

import torch

from benchmarks.results import keep
from foundation.losses.behaviour_cloning import behaviour_cloning_nll
from foundation.pretraining.vpt import detach
from foundation.training import keep_memory
from models.video_policy import VideoPolicy
from models.vpt import VptPolicy
from pipelines.actions import DOOM, ActionCodec

TARGETS = {"chunk": 2.4, "cached": 8.0}  # at least so many times less CPU time than frame by frame
MAX_DIFFERENCE = 1e-4  # of the mean loss, nats


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunk", type=int, default=128, help="frames per chunk")
    parser.add_argument("--frames", type=int, default=128, help="frames per repeat and arm, a multiple of --chunk")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--default-allocator", action="store_true", help="without foundation.training.keep_memory")
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--json", help="write the numbers here as well")
    args = parser.parse_args()
    if args.frames % args.chunk:
        parser.error(f"--frames {args.frames} is not a multiple of --chunk {args.chunk}")
    return args


def modern(classes):
    """(policy, frame size) of configs/method/vpt.yaml on frames of the Doom path."""
    return VideoPolicy(64, 80, *classes), (64, 80)


def release(classes):
    """(policy, frame size): the architecture of the VPT release at its own frame size, narrow."""
    return VptPolicy(*classes, impala_width=1, hidsize=256, attention_heads=4), (128, 128)


NETS = {"VideoPolicy": modern, "VptPolicy": release}


def random_play(size, codec, frames):
    """A training window of noise: {observation [1 t h w c], first [1 t]}, action [1 t 2]."""
    generator = torch.Generator().manual_seed(0)
    first = torch.zeros(1, frames, dtype=torch.bool)
    first[:, 0] = True
    buttons = torch.randint(codec.n_buttons, (1, frames), generator=generator)
    camera = torch.randint(codec.n_camera, (1, frames), generator=generator)
    pictures = torch.randint(256, (1, frames, *size, 3), generator=generator, dtype=torch.uint8)
    return {"observation": pictures, "first": first}, torch.stack([buttons, camera], -1)


def clone(policy, window, action, length):
    """Accumulates the gradient over a window taken `length` frames at a time -> mean loss."""
    policy.zero_grad(set_to_none=True)
    state, total, frames = policy.initial_state(1), 0.0, action.shape[1]
    for start in range(0, frames, length):
        part = {name: value[:, start : start + length] for name, value in window.items()}
        taken = action[:, start : start + length]
        distribution, state = policy(part, state)
        loss = behaviour_cloning_nll(distribution, taken, torch.ones(taken.shape[:2])) * taken.shape[1] / frames
        loss.backward()
        state, total = detach(state), total + loss.item()
    return total


def measure(policy, size, args, codec):
    """{arm: CPU seconds per frame}, and the losses of the arms that must agree."""
    window, action = random_play(size, codec, args.frames)
    with torch.no_grad():
        features = policy.encode(window["observation"])
    cached = {"features": features, "first": window["first"]}
    arms = {
        "frame by frame": lambda: clone(policy, window, action, 1),
        "chunk": lambda: clone(policy, window, action, args.chunk),
        "cached": lambda: clone(policy, cached, action, args.chunk),
        "encode": torch.no_grad()(lambda: policy.encode(window["observation"])),
    }
    seconds, losses = {name: [] for name in arms}, {}
    for _ in range(args.repeats + 1):
        for name, run in arms.items():
            start = time.process_time()
            losses[name] = run()
            seconds[name].append(time.process_time() - start)
    return {name: min(values[1:]) / args.frames for name, values in seconds.items()}, losses


def main():
    args = arguments()
    torch.set_num_threads(1)
    if not args.default_allocator:
        keep_memory()
    codec = ActionCodec(DOOM)
    classes = (codec.n_buttons, codec.n_camera, codec.camera_on, codec.camera_null)
    result = {"chunk": args.chunk, "frames": args.frames, "repeats": args.repeats, "torch": torch.__version__}
    print(f"{'net':12} {'arm':16} {'CPU-ms per frame':>17} {'ratio':>7} {'target':>7}")
    for name in args.nets:
        torch.manual_seed(0)
        policy, size = NETS[name](classes)
        policy = policy.to(memory_format=torch.channels_last).train()
        seconds, losses = measure(policy, size, args, codec)
        row = {f"{arm}_ms": 1000 * value for arm, value in seconds.items()}
        row |= {f"{arm}_ratio": seconds["frame by frame"] / seconds[arm] for arm in TARGETS}
        row["loss_difference"] = abs(losses["frame by frame"] - losses["chunk"])
        row["million_parameters"] = sum(p.numel() for p in policy.parameters()) / 1e6
        result[name] = row
        for arm in seconds:
            ratio, target = seconds["frame by frame"] / seconds[arm], TARGETS.get(arm)
            print(f"{name:12} {arm:16} {1000 * seconds[arm]:17.2f} {ratio:7.2f} {f'>= {target}' if target else '':>7}")
    keep(result, args.json)
    return 0 if all(result[name]["loss_difference"] < MAX_DIFFERENCE for name in args.nets) else 1


if __name__ == "__main__":
    sys.exit(main())
