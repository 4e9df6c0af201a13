"""Implicit Q-learning on frames, from an encoder of video: see `foundation.pretraining.iql` and `.cql`."""

from foundation.pretraining.encoders import EncoderRate, check_encoder, start_from
from foundation.pretraining.iql import IqlTask
from pipelines.schema import DataError


class FrameIqlTask(EncoderRate, IqlTask):
    """Trains a models.visual_actor_critic.VisualActorCritic with a value, its actor by weighted imitation.

    encoder, train_encoder, encoder_lr: as those of `CqlTask`.
    """

    @classmethod
    def configured(cls, net, method, init):
        if not net["value"]:
            raise DataError("method=iql_frames learns V(s); set method.net.value=true")
        return check_encoder(net, method["encoder"], init)

    def __init__(self, net, optimizer, gamma, expectile, temperature, clip, advantage, tau, ema, encoder=None,
                 train_encoder=True, encoder_lr=None):  # fmt: skip
        started = start_from(net, encoder, train_encoder)  # before the slow copy is made
        super().__init__(net, optimizer, gamma=gamma, expectile=expectile, extraction="awr", temperature=temperature,
                         clip=clip, advantage=advantage, tau=tau, ema=ema)  # fmt: skip
        self.started, self.encoder_lr = started, encoder_lr
