"""python -m foundation.probe task=maze_video policy=outputs/icvf: what a frozen encoder knows of the way to a goal.

Ridge regression from features of a state and of a goal to the least number of steps between them, scored in mazes that
the regression did not see, beside that from pixels and from the same network untrained.
"""

import logging
from typing import NamedTuple

import numpy as np
import torch
from omegaconf import OmegaConf
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV
from tqdm import trange

from foundation import hub
from foundation.envs import registry
from foundation.pretraining.icvf import towards
from pipelines.checkpoint import construct
from pipelines.command import command
from pipelines.schema import DataError

PENALTIES = np.logspace(-3, 5, 9)  # the best on the training states is taken, by leave-one-out
PARTS = ("encoder", "features")
log = logging.getLogger("foundation-policy")


class Score(NamedTuple):
    """r2: 1 is perfect, 0 a constant, and it may be below. rank: Spearman's correlation. Means over several targets."""

    r2: float
    rank: float


@command("probe")
def main(cfg):
    if cfg.part not in PARTS or not 0 < cfg.held_out < 1 or cfg.states * min(cfg.held_out, 1 - cfg.held_out) < 2:
        given = f"part={cfg.part!r}, states={cfg.states}, held_out={cfg.held_out}"
        raise DataError(f"{given}: expected one of {list(PARTS)}, a number of which two or more are in either share")
    if cfg.policy is None:
        raise DataError("give policy=<run folder or hub name> of a network of frames, such as one of method=icvf")
    bundle = hub.load(cfg.policy)
    state, goal, distance = drawn(OmegaConf.to_container(cfg.task, resolve=True), bundle, cfg.states, cfg.run.seed)
    first = round(cfg.states * (1 - cfg.held_out))
    encoders = {
        "probe": part_of(bundle.net, cfg.part),
        "probe/untrained": part_of(untrained(bundle, cfg.run.seed), cfg.part),
        "probe/pixels": lambda x: x.flatten(1).float() / 255,
    }
    summary = {}
    for name, encode in encoders.items():
        x = pairs(features(encode, state), features(encode, goal))
        score = linear_probe(x[:first], distance[:first], x[first:], distance[first:])
        summary |= {f"{name}/{key}": value for key, value in score._asdict().items()}
        log.info("%-16s R2 %6.3f, rank correlation %6.3f", name, *score)
    if hasattr(bundle.net, "values"):
        value = towards(bundle.net, torch.as_tensor(state[first:]), torch.as_tensor(goal[first:])).mean(0)
        summary["probe/value_rank"] = float(spearmanr(-value, distance[first:]).statistic)
        log.info("%-16s             rank correlation %6.3f", "value itself", summary["probe/value_rank"])
    return summary | {"states": first, "states/held_out": cfg.states - first}


def drawn(task, bundle, count, seed):
    """Starts of episodes and their goals, uint8 [n h w c], and the steps between them [n]; each is of another seed, and
    so in another maze where there are as many."""
    size = bundle.config.get("size")
    if size is None:
        raise DataError("this network has no frames as observations; give one of method=icvf, idm_frames, cql, ...")
    if not hasattr(registry.env_class(task), "distance"):
        raise DataError(f"the task {task['name']} does not know how far its goals are; take task=maze_video")
    env = registry.make(task, size=tuple(size), **task["evaluation"].get("env", {}))
    frames, goals, distances = [], [], []
    for number in trange(count, unit="state", desc="drawing", disable=None, leave=False):
        frames.append(env.reset(seed=seed * count + number)[0])
        goals.append(env.goal)
        distances.append(env.distance)
    return np.stack(frames), np.stack(goals), np.array(distances, np.float32)


def pairs(state, goal):
    """Features [n d] of states and of goals -> [n 3 d], with how far apart they are in each."""
    return np.concatenate([state, goal, np.abs(state - goal)], 1)


def linear_probe(train, target, held, held_target):
    """How well `target` float [n] or [n m] is predicted linearly from features [n d], on states not used for it."""
    if len(train) != len(target) or len(held) != len(held_target):
        raise DataError(
            f"{len(train)} and {len(held)} states have {len(target)} and {len(held_target)} targets; give one for each"
        )
    scale = train.std(0).mean() or 1.0  # one for all: a feature that hardly varies stays small
    model = RidgeCV(PENALTIES).fit(train / scale, target)
    found, asked = (np.reshape(y, (len(held), -1)) for y in (model.predict(held / scale), held_target))
    ranks = [spearmanr(one, other).statistic for one, other in zip(found.T, asked.T, strict=True)]
    return Score(float(model.score(held / scale, held_target)), float(np.mean(ranks)))


@torch.no_grad()
def features(encode, observation, at_once=256):
    """Features of single states, uint8 [n h w c] or float [n s] -> float32 [n d]."""
    return torch.cat([encode(part).float().cpu() for part in torch.as_tensor(observation).split(at_once)]).numpy()


def part_of(net, part):
    """Function: states [b ...] -> features [b d]; part: `encoder`, the image encoder that others start from, or
    `features`, see `encoder_of`."""
    if part == "features":
        return encoder_of(net)
    if not getattr(net, "encoder", None):
        raise DataError(f"{type(net).__name__} has no image encoder of single frames; set part=features")
    encoder = net.encoder
    return encoder[0] if isinstance(encoder, torch.nn.ModuleList) else encoder


def encoder_of(net):
    """Function: states [b ...] -> features [b d]: phi of member 0, or what an inverse dynamics model or a video policy
    makes of a window of one frame."""
    net = getattr(net, "representation", net)
    if hasattr(net, "phi"):
        return lambda x: net.phi(x)[0]
    if hasattr(net, "encode"):
        return lambda x: net.encode(x[:, None])[:, 0]
    raise DataError(f"{type(net).__name__} has neither `phi` nor `encode`; give a model of icvf, hilp, idm or vpt")


def untrained(bundle, seed=0):
    """A network as that of the bundle, with the weights of a start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return construct(bundle.config["net"]).eval()


if __name__ == "__main__":
    main()
