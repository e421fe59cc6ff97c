"""What the steps of a training do not tell, though it is needed to judge them: their loss, or a task's labels.

Told once an attempt, by a sentence in the log, when the first rows are taken; the layers' stats do not need either.
"""

import logging
from collections.abc import Collection, Sequence

_log = logging.getLogger("lossguard")


def say_of_unheard(scalars: Collection[str], tasks: Sequence[str]) -> None:
    """Warn of what is missing.

    Args:
        scalars: names of those that a step has.
        tasks: names of the tasks that are of a kind.
    """
    if "loss" not in scalars:
        _log.warning(
            "Lossguard: the loss of the steps is not heard, so that divergence is judged by the layers alone: let your "
            "train_step call self.compute_loss, or call watch.observe(loss, ...) in the step, before optimizer.apply"
        )
        return
    for task in tasks:
        if f"label_mean/{task}" not in scalars:
            _log.warning(
                "Lossguard: the steps have no labels or no outputs of the task %r, so that it is not judged: give them "
                "by that name",
                task,
            )
