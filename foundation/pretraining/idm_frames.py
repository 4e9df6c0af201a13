"""An image encoder from inverse dynamics: the keys between a frame and the next, by cross-entropy.

Beside `method=icvf`, an encoder for `method.encoder=` of cql and iql_frames; it needs actions.
"""

from foundation.pretraining.task import PretrainTask
from pipelines import schema


class FrameInverseTask(PretrainTask):
    """Trains a models.frame_inverse.FrameInverse."""

    def losses(self, batch):
        keys = self.net(batch[schema.OBSERVATION], batch[schema.NEXT_OBSERVATION])
        action = batch[schema.ACTION]
        return -keys.log_prob(action).mean(), {"agreement": (keys.mode() == action).float().mean()}
