"""CPU time of HILP's midpoint planning per control step.

    python -m benchmarks.plan                        50,000 exemplars, 50 environments, 3 recursions, 50 neighbours

    sort    as HILP is released: for every environment, in every recursion, the distances of all exemplars to state and
            goal, and a full sort of the larger ones
    ours    foundation.prompts: all environments in one product, distances to the goals kept, the least ones selected

One thread; arms take turns; CPU time, the median of the repeats after one that does not count. The sort plans for a few
environments; its time is multiplied by the number of environments and by nothing else. Exit status 1 if the two
choose other directions.
"""

import argparse
import json
import sys

import torch

from benchmarks.decision_transformer import measure
from foundation.prompts import Prompts, unit
from models.hilbert import HilbertPolicy
from pipelines.checkpoint import Bundle
from pipelines.command import machine

TARGET, LOOPED = 20, 5  # the ratio hoped for; environments that the sort plans for


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exemplars", type=int, default=50_000)
    parser.add_argument("--environments", type=int, default=50)
    parser.add_argument("--neighbours", type=int, default=50)
    parser.add_argument("--recursions", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="write the numbers here as well")
    return parser.parse_args()


def sorted_plan(exemplars, latent, goal, neighbours, recursions):
    """Direction [z] from one latent [z] to one goal [z] through exemplars [m z]."""
    for _ in range(recursions):
        cost = torch.maximum((exemplars - latent).norm(dim=-1), (exemplars - goal).norm(dim=-1))
        goal = exemplars[cost.argsort()[:neighbours]].mean(0)
    return unit(goal - latent)


def main():
    options = arguments()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = HilbertPolicy(29, 8, latent_dim=32, width=64)  # the search sees latents; how they were made does not matter
    prompts = Prompts(Bundle(net, None, None, 1.0, {}, {}, ""))
    states, goals = torch.randn(2, options.environments, 29)
    plan = prompts.plan(goals, torch.randn(options.exemplars, 29), options.neighbours, options.recursions)
    latent, target = prompts.latent(states), prompts.latent(goals)

    def by_sorting(rows):
        return [sorted_plan(plan.exemplars, latent[b], target[b], plan.neighbours, plan.recursions) for b in rows]

    looped = range(min(LOOPED, options.environments))
    with torch.no_grad():
        gap = float((torch.stack(by_sorting(looped)) - unit(plan.towards(latent) - latent)[: len(looped)]).abs().max())
        seconds = measure({"sort": lambda: by_sorting(looped), "ours": lambda: plan.towards(latent)}, options.repeats)
    seconds["sort"] *= options.environments / len(looped)
    ratio = seconds["sort"] / seconds["ours"]
    found = {**{f"{name}/ms": 1000 * value for name, value in seconds.items()}, "ratio": ratio, "gap": gap}
    print(f"{options.environments} environments, {options.exemplars} exemplars: sort {1000 * seconds['sort']:.0f} ms,"
          f" ours {1000 * seconds['ours']:.1f} ms a step: {ratio:.1f}x (hoped for: {TARGET}x); directions differ"
          f" by at most {gap:.1e}")  # fmt: skip
    print(machine())
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file, indent=1)
    sys.exit(gap > 1e-3)


if __name__ == "__main__":
    main()
