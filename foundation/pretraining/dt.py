"""Decision Transformer (arXiv:2106.01345, section 3): the action is predicted from what was asked, seen and done."""

from foundation.losses.behaviour_cloning import weighted_mean
from foundation.pretraining.task import PretrainTask
from pipelines import schema
from pipelines.schema import DataError


class DecisionTransformerTask(PretrainTask):
    """Imitates the actions of windows, given their condition.

    loss: mse = mean squared error over steps and action dimensions (the paper) | nll = -log-probability of a Gaussian
    with a learned deviation; discrete actions always take nll. auxiliary: weights {state, condition} of the squared
    errors of the next step's state and condition, for a net with auxiliary=true.
    """

    def __init__(self, net, optimizer, loss="mse", auxiliary=None):
        super().__init__(net, optimizer)
        if loss not in ("mse", "nll"):
            raise DataError(f"method.loss={loss!r}: expected mse or nll")
        self.loss, self.auxiliary = loss if net.n_actions is None else "nll", auxiliary or {}
        if net.log_std is not None:
            net.log_std.requires_grad_(self.loss == "nll")
        if any(self.auxiliary.values()) != (net.predict is not None):
            raise DataError("method.auxiliary weighs predictions that method.net.auxiliary makes: set both, or neither")

    def losses(self, batch):
        distribution, _ = self.net(batch)
        action, weight = batch[schema.ACTION], batch[schema.WEIGHT]
        nll = weighted_mean(-distribution.log_prob(action), weight)
        metrics = {"nll": nll}
        if self.net.n_actions is None:
            metrics["mse"] = weighted_mean(((distribution.mean - action) ** 2).mean(-1), weight)
        else:
            metrics["accuracy"] = weighted_mean((distribution.mode() == action).float(), weight)
        loss = metrics[self.loss]
        if self.net.predict is not None:
            errors = self.auxiliary_errors(batch)
            loss = loss + sum(self.auxiliary[name] * error for name, error in errors.items())
            metrics |= errors
        return loss, metrics

    def auxiliary_errors(self, batch):
        """Mean squared errors of the predicted next state and of the next step's condition."""
        state, condition = self.net.next_state_and_condition(batch)
        weight = batch[schema.WEIGHT]
        within = weight[:, :-1] * weight[:, 1:]  # the condition after a window's end is not in the window
        error = ((condition[:, :-1] - batch[schema.CONDITION][:, 1:]) ** 2).mean(-1)
        return {
            "state": weighted_mean(((state - batch[schema.NEXT_OBSERVATION]) ** 2).mean(-1), weight),
            "condition": weighted_mean(error, within),
        }
