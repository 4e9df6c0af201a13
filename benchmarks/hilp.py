"""CPU time of an update of HILP at the paper's size: 29 numbers of a state, 8 of an action, batch 1024, nets 3 x 512.

    python -m benchmarks.hilp                        plain, ours, and ours with bf16 products
    python -m benchmarks.hilp --compile              the last two by torch.compile as well; needs g++ and a minute
    python -m benchmarks.hilp --width 128 --batch 256 --state 2 --action 2      a size for CPUs

    plain   the obvious PyTorch: a module per member and network, a call wherever the equations have one, float32, Adam
            and the target networks' average by a loop over parameters
    ours    foundation.pretraining.hilp: members as one batched product, every latent and value computed once, fused
            Adam; with bf16, products of hidden layers only: heads, distances, targets, losses and Adam stay float32

An update is the four losses, backward, targets and Adam, on one batch in memory. One thread; arms take turns; CPU time,
the median of the repeats after one that does not count. The weights of all arms are the same at the start. Exit status
1 if the losses of ours differ from plain's by more than 1e-4 of them, or, with bf16, by more than 2 %.
"""

import argparse
import copy
import math
import sys

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.decision_transformer import measure
from benchmarks.results import keep
from foundation.pretraining.hilp import HilpTask
from foundation.training import keep_memory
from models.hilbert import HilbertPolicy
from pipelines.command import machine
from pipelines.schema import ACTION, CONDITION, GOAL, NEXT_OBSERVATION, OBSERVATION, REACHED

LR, TAU, GAMMA = 3e-4, 0.005, 0.99
TARGETS = {"ours bf16": 1.8, "ours compiled bf16": 1.8}
TOLERANCE = {"fp32": 1e-4, "bf16": 0.02}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--state", type=int, default=29, help="numbers of a state")
    parser.add_argument("--action", type=int, default=8, help="numbers of an action")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", help="write the numbers here as well")
    return parser.parse_args()


def batches(args):
    """A batch of noise in which a tenth of the goals are reached."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randn(args.batch, n, generator=generator)  # noqa: E731
    state, goal, reached = draw(args.state), draw(args.state), torch.arange(args.batch) % 10 == 0
    return {
        OBSERVATION: state, NEXT_OBSERVATION: state + 0.1 * draw(args.state), ACTION: draw(args.action).clamp(-1, 1),
        GOAL: torch.where(reached[:, None], state, goal), REACHED: reached, CONDITION: F.normalize(draw(32), dim=-1),
    }  # fmt: skip


# plain


def mlp(ensemble, member):
    """A member of an EnsembleMLP as a module of its own, with the same weights."""
    layers = []
    for i, linear in enumerate((*ensemble.linears, ensemble.out)):
        layers.append(nn.Linear(*linear.weight.shape[1:]))
        layers[-1].weight.data.copy_(linear.weight[member].T)
        layers[-1].bias.data.copy_(linear.bias[member, 0])
        if linear is ensemble.out:
            break
        layers.append(nn.GELU("tanh") if ensemble.norms else nn.ReLU())
        if ensemble.norms:
            layers.append(nn.LayerNorm(linear.weight.shape[2], 1e-6))
            layers[-1].weight.data.copy_(ensemble.norms[i].weight[member, 0])
            layers[-1].bias.data.copy_(ensemble.norms[i].bias[member, 0])
    return nn.Sequential(*layers)


class Plain(nn.Module):
    """HILP's networks, each member by itself."""

    def __init__(self, policy):
        super().__init__()
        self.phis = nn.ModuleList(mlp(policy.representation.net, k) for k in range(2))
        self.critics = nn.ModuleList(mlp(policy.critic, k) for k in range(2))
        self.value, self.actor = mlp(policy.value, 0), mlp(policy.actor, 0)
        self.log_std = nn.Parameter(policy.log_std.detach().clone())
        self.target_phis, self.target_critics = copy.deepcopy(self.phis), copy.deepcopy(self.critics)

    @staticmethod
    def distance(phi, s, g):
        return -((phi(s) - phi(g)) ** 2).sum(-1).clamp(min=1e-6).sqrt()

    def losses(self, batch):
        names = (OBSERVATION, NEXT_OBSERVATION, ACTION, GOAL, CONDITION)
        s, after, a, g, z = (batch[name] for name in names)
        going = 1 - batch[REACHED].float()
        with torch.no_grad():
            ahead = [self.distance(phi, after, g) for phi in self.target_phis]
            now = [self.distance(phi, s, g) for phi in self.target_phis]
            advantage = -going + GAMMA * going * torch.min(*ahead) - (now[0] + now[1]) / 2
            weight = torch.where(advantage >= 0, 0.95, 0.05)
            reward = ((self.phis[0](after) - self.phis[0](s)) * z).sum(-1)
            q = torch.min(*(critic(torch.cat([s, a, z], -1))[:, 0] for critic in self.target_critics))
            q_next = reward + GAMMA * self.value(torch.cat([after, z], -1))[:, 0]
            better = (10 * (q - self.value(torch.cat([s, z], -1))[:, 0])).exp().clamp(max=100)
        parts = [(weight * (-going + GAMMA * going * v - self.distance(phi, s, g)) ** 2).mean()
                 for phi, v in zip(self.phis, ahead, strict=True)]  # fmt: skip
        u = q - self.value(torch.cat([s, z], -1))[:, 0]
        parts.append((torch.where(u >= 0, 0.9, 0.1) * u**2).mean())
        parts += [((critic(torch.cat([s, a, z], -1))[:, 0] - q_next) ** 2).mean() for critic in self.critics]
        log_std = self.log_std.clamp(-5, 2)
        error = (a - self.actor(torch.cat([s, z], -1))) / log_std.exp()
        log_prob = (-0.5 * error**2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
        return sum(parts) - (better * log_prob).mean()

    @torch.no_grad()
    def follow(self):
        for targets, sources in ((self.target_phis, self.phis), (self.target_critics, self.critics)):
            for target, source in zip(targets.parameters(), sources.parameters(), strict=True):
                target.copy_(TAU * source + (1 - TAU) * target)


def plain(policy, batch):
    """(function that makes an update, function that says the loss)"""
    net = Plain(policy)
    online = [p for name, p in net.named_parameters() if not name.startswith("target")]
    optimizer = torch.optim.Adam(online, lr=LR, foreach=False, fused=False)

    def update():
        optimizer.zero_grad()
        net.losses(batch).backward()
        net.follow()
        optimizer.step()

    return update, lambda: float(net.losses(batch).detach())


# ours


def ours(policy, batch, bf16, compiled):
    task = HilpTask(copy.deepcopy(policy), None, gamma=GAMMA, tau=TAU, compile=compiled)
    parameters = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.0, fused=True)

    def loss():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            return task.losses(batch)[0]

    def update():
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        task.follow()
        optimizer.step()

    return update, lambda: float(loss().detach())


def main():
    args = arguments()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_memory()
    policy, batch = HilbertPolicy(args.state, args.action, width=args.width), batches(args)
    arms = {"plain": plain(policy, batch)}
    for compiled in (False, True)[: 1 + args.compile]:
        for precision in ("fp32", "bf16"):
            name = f"ours {'compiled ' if compiled else ''}{precision}"
            arms[name] = ours(policy, batch, precision == "bf16", compiled)
    losses = {name: loss() for name, (_, loss) in arms.items()}
    seconds = measure({name: update for name, (update, _) in arms.items()}, args.repeats)
    sizes = {"batch": args.batch, "state": args.state, "action": args.action, "width": args.width}
    print(f"{machine()['processor']}, 1 thread, median of {args.repeats}, {sizes}")
    print(f"{'arm':20} {'ms':>8} {'ratio':>7} {'target':>8}  loss, its difference")
    result, failed = {"repeats": args.repeats, **sizes, **machine()}, False
    for name, value in seconds.items():
        ratio, difference = seconds["plain"] / value, abs(losses[name] / losses["plain"] - 1)
        target = f">= {TARGETS[name]}" if name in TARGETS else ""
        print(f"{name:20} {1000 * value:8.1f} {ratio:7.2f} {target:>8}  {losses[name]:.5f}, {difference:.1e}")
        result[name] = {"milliseconds": 1000 * value, "ratio": ratio, "difference": difference}
        failed |= difference > TOLERANCE.get(name.split()[-1], 0)
    keep(result, args.json)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
