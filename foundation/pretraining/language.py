"""Language modelling (Radford et al. 2019): next-token cross-entropy on text or made-up chains (arXiv:2310.00771).

What comes out is an initialisation of sequence policies: `method=lamo method.language.init=<run folder>`.
"""

from foundation.losses.next_token import next_token_loss
from foundation.pretraining.task import PretrainTask
from pipelines.schema import TOKENS


class LanguageTask(PretrainTask):
    """Trains a models.language.LanguageModel to predict the next token."""

    def losses(self, batch):
        tokens = batch[TOKENS]
        logits = self.net(tokens[:, :-1])
        loss = next_token_loss(logits, tokens)
        return loss, {"accuracy": (logits.argmax(-1) == tokens[:, 1:]).float().mean()}

    def report(self, dataset, folder, fps):
        """What the loss can be compared with: a chain's entropy, below which no model comes, or byte frequencies."""
        return {f"validation/{name}": value for name, value in dataset.references.items()}, {}
