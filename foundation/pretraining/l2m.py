"""Learning to Modulate (L2M, arXiv:2306.14884, section 3.2): a slot of a frozen policy's pool imitates a new task."""

from foundation.pretraining.mddt import MultiDomainTask
from pipelines import schema
from pipelines.schema import DataError


class ModulationTask(MultiDomainTask):
    """Cross-entropy - pull * mean cosine of the query and the key that it picked, which draws that key nearer.

    task: place of these data in the sequence of tasks, from 0. A net that starts where the run on task - 1 ended goes
    on with its counts: the switch freezes which slots are taken.
    """

    def __init__(self, net, optimizer, task=0, pull=0.5):
        super().__init__(net, optimizer)
        trained = int(net.counts.sum(1).count_nonzero())
        if not 0 <= task <= min(trained, len(net.counts) - 1):
            raise DataError(
                f"method.task={task}: the policy was trained on {trained} of its {len(net.counts)} tasks (method.net."
                f"tasks); the next is task {trained}, and init= should be the run on the one before it"
            )
        net.begin(task)
        self.pull = pull

    def losses(self, batch):
        distribution, (_, similarity) = self.net(self.window(batch))
        loss, metrics = self.imitation(distribution, batch)
        near = similarity.mean()
        return loss - self.pull * near, {**metrics, "similarity": near, "slots": self.slots_in_use()}

    def slots_in_use(self):
        """How many slots this task has used so far."""
        return self.net.own(self.net.task).sum().float()

    def window(self, batch):
        return {**super().window(batch), schema.MASK: batch[schema.MASK]}
