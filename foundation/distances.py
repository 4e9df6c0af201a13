"""How far the distances of a representation are those of the world: over all pairs of a maze's free cells."""

import logging

import numpy as np
import torch
from scipy.stats import spearmanr

log = logging.getLogger("foundation-policy")


def compare(prompts, world, prefix):
    """Flat numbers of -V(s, g) between the middles of all cells (foundation.prompts.Prompts, an environment with
    `distances`, `xy` and `steps_per_cell`): Spearman's correlation with the least number of steps, their ratio, and the
    correlation of plain coordinates, to compare with."""
    n = len(world.distances())
    xy = torch.from_numpy(np.asarray(world.xy(np.arange(n)), np.float32))
    with torch.no_grad():
        phi = prompts.representation.phi(prompts.seen(xy))  # e n z: some metrics are learned, by each member its own
        found = -prompts.representation.value(phi[:, :, None].expand(-1, -1, n, -1), phi[:, None].expand(-1, n, -1, -1))
    steps = np.asarray(world.distances(), float) * world.steps_per_cell
    pairs = np.isfinite(steps) & ~np.eye(n, dtype=bool)
    found, straight = found[0].cpu().numpy()[pairs], torch.cdist(xy, xy).numpy()[pairs]
    numbers = {
        "spearman": float(spearmanr(found, steps[pairs]).statistic),
        "spearman_coordinates": float(spearmanr(straight, steps[pairs]).statistic),
        "distance_ratio": float(found.mean() / steps[pairs].mean()),
    }
    words = "%d cells: distances have Spearman %.3f with shortest ways (coordinates: %.3f), and %.2f of their length"
    log.info(words, n, *numbers.values())
    return {f"{prefix}/{name}": value for name, value in numbers.items()}
