"""CPU time of a Decision Transformer: a step of training, a step of acting, and what a modulation pool adds.

    python -m benchmarks.decision_transformer               the paper's size: 20 steps, width 128, 3 layers, batch 64
    python -m benchmarks.decision_transformer --repeats 20

    train   forward, loss, backward, clipping and AdamW on the same windows, by transformers' DecisionTransformerModel
            (eager attention, fp32 and bf16 autocast) and by ours (tokens interleaved or merged)
    act     one step of an episode longer than the context: windows computed again for one environment, for --batch of
            them, and with keys and values kept (cache=rolling)
    pool    actions of windows by a frozen policy, bare and with 30 LoRA modulators (L2M), all windows with the same one
            or each with another

One thread; arms take turns; CPU time, the median of the repeats after one that does not count. Ratios are against the
first arm of each part, of pool against the bare policy. Exit status 1 if the two implementations' losses differ.
"""

import argparse
import statistics
import sys
import time
from functools import partial

import torch

from benchmarks.results import keep
from foundation.training import keep_memory
from models.decision_transformer import DecisionTransformer
from models.modulation import Modulated
from models.rolling import Rolling
from pipelines.command import machine
from pipelines.dt_release import import_weights

STATE, ACTION, EPISODE = 11, 3, 1000
TARGETS = {
    "train": {"ours fp32": 1.8, "ours bf16": 1.8, "merged fp32": 4.0, "merged bf16": 4.0},
    "act": {"batch, rolling": 10.0},
    "pool": {"pool": 1.15},
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64, help="windows, or environments")
    parser.add_argument("--context", type=int, default=20, help="steps of a window")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", help="write the numbers here as well")
    return parser.parse_args()


def windows(args):
    """A batch of full windows of noise."""
    generator = torch.Generator().manual_seed(0)
    b, t = args.batch, args.context
    draw = lambda n: torch.randn(b, t, n, generator=generator)  # noqa: E731
    time = torch.randint(EPISODE - t, (b, 1), generator=generator) + torch.arange(t)
    return {"observation": draw(STATE), "condition": draw(1), "action": draw(ACTION).clamp(-1, 1), "timestep": time}


def theirs():
    """transformers' model as it comes, its attention eager."""
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    config = DecisionTransformerConfig(state_dim=STATE, act_dim=ACTION, max_ep_len=EPISODE)
    config._attn_implementation = "eager"
    return DecisionTransformerModel(config)


def their_actions(net, window):
    mask = torch.ones(window["timestep"].shape)
    out = net(states=window["observation"], actions=window["action"], rewards=None, return_dict=True,
              returns_to_go=window["condition"], timesteps=window["timestep"], attention_mask=mask)  # fmt: skip
    return out.action_preds


def our_actions(net, window):
    return net(window)[0].mode()


def training(net, actions, window, bf16):
    """A function that makes one step of training."""
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=1e-4)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = actions(net, window)
        loss = torch.nn.functional.mse_loss(out.float(), window["action"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.25)
        optimizer.step()

    return step


def make(layout="interleaved", context=20):
    sizes = {"state_dim": STATE, "action_dim": ACTION, "context": context, "max_timestep": EPISODE}
    return DecisionTransformer(**sizes, layout=layout)


def train_arms(args):
    window = windows(args)
    arms = {f"transformers {name}": training(theirs(), their_actions, window, bf16) for name, bf16 in PRECISIONS}
    for layout, word in (("interleaved", "ours"), ("merged", "merged")):
        arms |= {f"{word} {name}": training(make(layout, args.context), our_actions, window, bf16)
                 for name, bf16 in PRECISIONS}  # fmt: skip
    return arms, dict.fromkeys(arms, 1)


PRECISIONS = ("fp32", False), ("bf16", True)


def act_arms(args):
    policy = make(context=args.context).eval()
    arms, per = {}, {}
    for name, one, b in (("one", policy, 1), ("one, rolling", Rolling(policy), 1), ("batch", policy, args.batch),
                         ("batch, rolling", Rolling(policy), args.batch)):  # fmt: skip
        arms[name], per[name] = acting(one, b, args.context), b
    return arms, per


@torch.no_grad()
def acting(policy, b, context):
    """A function that takes one step in b environments, whose histories are full."""
    now = {"observation": torch.randn(b, STATE), "condition": torch.randn(b, 1), "action": torch.randn(b, ACTION)}
    state, first = policy.initial_state(b), torch.zeros(b, dtype=torch.bool)

    @torch.no_grad()
    def step(t=context):
        nonlocal state
        distribution, _, state = policy.step({**now, "timestep": torch.full((b,), t)}, first, state)
        return distribution.mode()

    for t in range(context):
        step(t)
    return step


def pool_arms(args):
    window, bare = windows(args), make(context=args.context).eval()
    arms = {"bare": bare, "pool": filled(Modulated(make(context=args.context), slots=30))}
    arms["pool, mixed"] = filled(Modulated(make(context=args.context), slots=30))
    alike = {name: value[:1].expand_as(value) for name, value in window.items()}  # these look for the same slot
    seen = {"bare": window, "pool": alike, "pool, mixed": window}
    act = torch.no_grad()(our_actions)
    return {name: partial(act, net, seen[name]) for name, net in arms.items()}, {}


@torch.no_grad()
def filled(pool):
    """With modulators that do change something."""
    for block in pool.modulators:
        for modulator in block.values():
            modulator.b.normal_(0, 0.02)
    return pool.eval()


def measure(arms, repeats):
    """{arm: median CPU seconds of a call}"""
    seconds = {name: [] for name in arms}
    for _ in range(repeats + 1):
        for name, run in arms.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def difference(args):
    """Between the losses of transformers' model and of ours with its weights."""
    net, window = theirs().eval(), windows(args)
    ours = make(context=args.context).eval()
    ours.load_state_dict(import_weights(net.state_dict()))
    with torch.no_grad():
        one, other = their_actions(net, window), our_actions(ours, window)
    return float(((one - window["action"]).square().mean() - (other - window["action"]).square().mean()).abs())


def main():
    args = arguments()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_memory()
    result = {"batch": args.batch, "context": args.context, "repeats": args.repeats, **machine()}
    print(f"{machine()['processor']}, 1 thread, batch {args.batch}, {args.context} steps, median of {args.repeats}")
    print(f"{'part':6} {'arm':20} {'CPU-ms':>8} {'ratio':>7}  target")
    for part, arms_of in (("train", train_arms), ("act", act_arms), ("pool", pool_arms)):
        arms, per = arms_of(args)
        seconds = {name: value / per.get(name, 1) for name, value in measure(arms, args.repeats).items()}
        base = next(iter(seconds.values()))
        for name, value in seconds.items():
            ratio, target = (value / base if part == "pool" else base / value), TARGETS[part].get(name)
            sign = "" if target is None else f"{'<=' if part == 'pool' else '>='} {target}"
            print(f"{part:6} {name:20} {1000 * value:8.3f} {ratio:7.2f}  {sign}")
            result[f"{part}/{name}"] = {"ms": 1000 * value, "ratio": ratio}
    result["loss_difference"] = difference(args)
    print(f"losses with the same weights differ by {result['loss_difference']:.1e}")
    keep(result, args.json)
    return 0 if result["loss_difference"] < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
