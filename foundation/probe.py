"""What a frozen encoder knows, read out linearly: ridge regression from its features to numbers, scored elsewhere.

`linear_probe(encoder_of(bundle.net), frames, distance, other_frames, other_distance)` beside that of
`encoder_of(untrained(bundle))`, of another model, or of `bundle.net.encoder[0]`, the image encoder without its MLP.
"""

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipelines.checkpoint import construct
from pipelines.schema import DataError

PENALTIES = np.logspace(-3, 5, 9)  # the best on the training states is taken, by leave-one-out


def linear_probe(encode, observation, target, held_observation, held_target):
    """R2 of `target` float [n] or [n m] predicted linearly from features, on states that the regression did not see.

    encode: states, uint8 [b h w c] or float [b s] -> [b d]. R2 is the mean over m targets: 1 is perfect, 0 a constant,
    and it may be below.
    """
    train, held = features(encode, observation), features(encode, held_observation)
    if len(train) != len(target) or len(held) != len(held_target):
        raise DataError(
            f"{len(train)} and {len(held)} states have {len(target)} and {len(held_target)} targets; give one for each"
        )
    return float(make_pipeline(StandardScaler(), RidgeCV(PENALTIES)).fit(train, target).score(held, held_target))


@torch.no_grad()
def features(encode, observation, at_once=256):
    """Features of single states, uint8 [n h w c] or float [n s] -> float32 [n d]."""
    return torch.cat([encode(part).float().cpu() for part in torch.as_tensor(observation).split(at_once)]).numpy()


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
