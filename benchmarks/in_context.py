"""CPU time of in-context policies (DPT): a step of training, drawing tasks, playing bandits.

    python -m benchmarks.in_context                   all three parts at the paper's sizes
    python -m benchmarks.in_context --parts data play --tasks 50

    train   forward, loss, backward and AdamW on one batch, by transformers' GPT2Model as it comes (embeddings of the
            transitions as its inputs, a linear head) and by ours, one head; the weights are the same
    data    tasks with their contexts and labels, by one Python loop over tasks and transitions, and in tensors
    play    200 Gaussian bandits of 500 rounds, the context growing by what the policy does, by a loop that runs the
            network on the whole context of one task at a time, and by ours: all tasks at once, keys and values kept

One thread; arms take turns; CPU time, the median of the repeats after one that does not count (of `play` one run). The
loops run few tasks and all of their transitions; their time is multiplied by the number of tasks and by nothing else.
Exit status 1 if losses or action probabilities of the two implementations differ.
"""

import argparse
import sys
import time
from functools import partial

import numpy as np
import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from benchmarks.decision_transformer import measure
from benchmarks.results import keep
from foundation import in_context, protocols
from foundation.envs.bandits import GaussianBandit
from foundation.envs.dark_room import MOVES, DarkRoom
from foundation.envs.worlds import per_row, transitions
from foundation.pretraining.world_data import draw
from foundation.training import keep_memory
from models.in_context import InContext
from pipelines.command import machine
from pipelines.dpt_release import import_weights
from pipelines.schema import ACTION, NEXT_OBSERVATION, OBSERVATION, PLACE, QUERY, REWARD, TARGET

TRAIN = {"bandit 500": (GaussianBandit(), 500, 64), "bandit 40": (GaussianBandit(), 40, 192),
         "dark room 100": (DarkRoom(), 100, 64)}  # fmt: skip
TARGETS = {"bandit 500": 1.5, "bandit 40": 1.5, "dark room 100": 1.5, "bandit": 50, "dark room": 50, "play": 50}
LOOPED, DRAWN = 8, 4096  # tasks that the loops of `data`, and ours, draw at a time


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["train", "data", "play"], choices=["train", "data", "play"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=200, help="bandits that are played")
    parser.add_argument("--rounds", type=int, default=500, help="of each bandit")
    parser.add_argument("--looped", type=int, default=1, help="bandits that the loop plays")
    parser.add_argument("--json", help="write the numbers here as well")
    return parser.parse_args()


# train


class Theirs(nn.Module):
    """transformers' GPT2Model on transitions, by the names of the published state dict."""

    def __init__(self, world, length):
        super().__init__()
        from transformers import GPT2Config, GPT2Model

        none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        self.transformer = GPT2Model(GPT2Config(n_positions=4 * (1 + length), n_embd=32, n_layer=4, n_head=1, **none))
        self.embed_transition = nn.Linear(2 * world.state_dim + world.n_actions + 1, 32)
        self.pred_actions = nn.Linear(32, world.n_actions)

    def forward(self, batch):
        """Logits [b n+1 a]."""
        action = F.one_hot(batch[ACTION], self.pred_actions.out_features).float()
        x = torch.cat([batch[OBSERVATION], action, batch[NEXT_OBSERVATION], batch[REWARD][..., None]], -1)
        x = torch.cat([F.pad(batch[QUERY], (0, x.shape[-1] - batch[QUERY].shape[-1])), x], 1)
        return self.pred_actions(self.transformer(inputs_embeds=self.embed_transition(x)).last_hidden_state)


def their_loss(net, batch):
    return F.cross_entropy(rearrange(net(batch), "b p a -> (b p) a"), batch[TARGET].flatten())


def our_loss(net, batch):
    return -net(batch)[0].log_prob(batch[TARGET]).mean()


def ours_from(theirs, world):
    longest = theirs.transformer.config.n_positions - 1
    net = InContext(world.state_dim, n_actions=world.n_actions, context=longest, heads=1)
    net.load_state_dict(import_weights(theirs.state_dict()))
    return net


def training(net, loss_of, batch):
    """A function that makes one step of training."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=1e-4)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss_of(net, batch).backward()
        optimizer.step()

    return step


def train(args):
    """[(name, ratio, milliseconds of ours, difference of the losses)]"""
    for name, (world, length, rows) in TRAIN.items():
        batch, _ = draw(world, rows, length, torch.arange(length + 1), 1, torch.Generator().manual_seed(0), "train")
        theirs = Theirs(world, length)
        ours = ours_from(theirs, world)
        with torch.no_grad():
            difference = float((their_loss(theirs, batch) - our_loss(ours, batch)).abs())
        arms = {"theirs": training(theirs, their_loss, batch), "ours": training(ours, our_loss, batch)}
        seconds = measure(arms, args.repeats)
        yield name, seconds["theirs"] / seconds["ours"], 1000 * seconds["ours"], difference


# data


def bandit_loop(tasks, length, arms=5, noise=0.3):
    """Tasks of a Gaussian bandit, one pull at a time."""
    found = []
    for _ in range(tasks):
        means, c = np.random.rand(arms), np.random.randint(11) / 10
        p = (1 - c) * np.random.dirichlet(np.ones(arms)) + c * np.eye(arms)[np.random.randint(arms)]
        rows = []
        for _ in range(length):
            action = np.random.choice(arms, p=p)
            rows.append((np.ones(1), action, np.random.normal(means[action], noise), np.ones(1)))
        found.append({"context": [np.array(column) for column in zip(*rows, strict=True)], "label": means.argmax()})
    return found


def room_loop(tasks, length, size=10):
    """Tasks of Dark Room, one transition at a time."""
    found, moves = [], np.array(MOVES)
    for _ in range(tasks):
        goal, query, rows = np.random.randint(size, size=2), np.random.randint(size, size=2), []
        for _ in range(length):
            state, action = np.random.randint(size, size=2), np.random.randint(len(moves))
            after = np.clip(state + moves[action], 0, size - 1)
            rows.append((state, action, float(np.all(after == goal)), after))
        (x, y) = goal - query
        label = 0 if x > 0 else 1 if x < 0 else 2 if y > 0 else 3 if y < 0 else 4
        found.append({"context": [np.array(column) for column in zip(*rows, strict=True)], "label": label})
    return found


def data(args):
    """[(name, ratio, microseconds of ours per task, 0)]"""
    generator = torch.Generator().manual_seed(0)
    for name, loop, world, length in (("bandit", bandit_loop, GaussianBandit(), 500),
                                      ("dark room", room_loop, DarkRoom(), 100)):  # fmt: skip
        ours = partial(draw, world, DRAWN, length, torch.tensor([length]), 1, generator, "train")
        seconds = measure({"loop": partial(loop, LOOPED, length), "ours": ours}, args.repeats)
        each = seconds["ours"] / DRAWN
        yield name, seconds["loop"] / LOOPED / each, 1e6 * each, 0.0


# play


@torch.no_grad()
def play_loop(net, world, rounds, generator):
    """One task, the network run on the whole context every round -> (context, the last distribution [a])."""
    tasks, one = world.draw(1, generator), torch.ones(1, 1)
    context = {OBSERVATION: torch.ones(1, 0, 1), NEXT_OBSERVATION: torch.ones(1, 0, 1),
               ACTION: torch.zeros(1, 0, dtype=torch.long), REWARD: torch.zeros(1, 0)}  # fmt: skip
    for n in range(rounds):
        distribution, _ = net({**context, QUERY: one[:, None], PLACE: torch.tensor([n])})
        action = distribution.sample(generator)[:, 0]
        reward, following = world.step(tasks, one, action, generator)
        new = per_row(transitions(one, action, reward, following))
        context = {name: torch.cat([value, new[name]], 1) for name, value in context.items()}
    distribution, _ = net({**context, QUERY: one[:, None], PLACE: torch.tensor([rounds])})
    return context, distribution.log_probs[0, 0].exp()


def play(args):
    """[(name, ratio, milliseconds of ours per task, difference of the probabilities)]"""
    world, generator = GaussianBandit(), torch.Generator().manual_seed(0)
    net = InContext(1, n_actions=5, context=args.rounds, heads=1).eval()
    start = time.process_time()
    for _ in range(args.looped):
        context, expected = play_loop(net, world, args.rounds, generator)
    loop = (time.process_time() - start) / args.looped
    learner, start = in_context.NetLearner(net, world.states), time.process_time()
    protocols.bandit_online(world, learner, world.draw(args.tasks, generator), args.rounds, generator)
    each = (time.process_time() - start) / args.tasks
    said = learner.distribution(learner.observe(learner.start(1), context), torch.ones(1, 1)).log_probs[0].exp()
    yield "play", loop / each, 1000 * each, float((said - expected).abs().max())


def main():
    args = arguments()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    keep_memory()
    result = {"repeats": args.repeats, "tasks": args.tasks, "rounds": args.rounds, **machine()}
    print(f"{machine()['processor']}, 1 thread, median of {args.repeats}")
    print(f"{'part':6} {'what':14} {'ratio':>8}  {'target':>8} {'ours':>12}  difference")
    units = {"train": "ms a step", "data": "us a task", "play": "ms a task"}
    worst = 0.0
    for part in args.parts:
        for name, ratio, ours, difference in {"train": train, "data": data, "play": play}[part](args):
            worst = max(worst, difference)
            print(f"{part:6} {name:14} {ratio:8.2f}  >= {TARGETS[name]:5} {ours:8.2f} {units[part]}  {difference:.1e}")
            result[f"{part}/{name}"] = {"ratio": ratio, units[part]: ours, "difference": difference}
    if "play" in args.parts:
        print(f"the loop played {args.looped} of {args.tasks} bandits; the others were taken to cost as much")
    keep(result, args.json)
    return 0 if worst < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
