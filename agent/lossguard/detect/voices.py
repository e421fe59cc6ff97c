"""Which scalars speak about divergence: losses (voices) and task metrics (judges).

A loss says that something happened. Whether it did damage, the tasks' own metrics say better: batch AUC knows chance
(0.5) and does not care about one absurd label. Names are the glossary's: `loss`, `loss/<task>`, `batch_auc/<task>`,
`label_mean/<task>`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

LOSS = "loss"
AUC = "batch_auc/"
LABEL = "label_mean/"
CHANCE = 0.5
"""Batch AUC of a model that knows nothing."""


@dataclass(frozen=True, slots=True)
class Roles:
    """The columns of a schema by what they are to the detectors.

    Attributes:
        voices: scalar name of each loss.
        judges: scalar name of each batch AUC.
        labels: task name to the scalar that holds its label mean.
    """

    voices: tuple[str, ...]
    judges: tuple[str, ...]
    labels: dict[str, str]


def roles(scalars: tuple[str, ...]) -> Roles:
    """Sort scalar names.

    >>> roles(("loss", "learning_rate", "loss/click", "batch_auc/click"))
    Roles(voices=('loss', 'loss/click'), judges=('batch_auc/click',), labels={})
    """
    return Roles(
        voices=tuple(name for name in scalars if name == LOSS or name.startswith(LOSS + "/")),
        judges=tuple(name for name in scalars if name.startswith(AUC)),
        labels={name[len(LABEL) :]: name for name in scalars if name.startswith(LABEL)},
    )


def task_of(scalar: str) -> str | None:
    """`click` for `loss/click` or `batch_auc/click`; None for the total."""
    head, slash, task = scalar.partition("/")
    return task if slash and head else None


def binary_tasks(tasks: Mapping[str, str], scalars: tuple[str, ...]) -> frozenset[str]:
    """The tasks that are binary: as told, and otherwise those that have an AUC.

    >>> sorted(binary_tasks({}, ("loss/click", "batch_auc/click", "loss/play")))
    ['click']
    """
    told = {name for name, kind in tasks.items() if kind == "binary"}
    return frozenset(told | {name[len(AUC) :] for name in scalars if name.startswith(AUC)})


def entropy(label_mean: float) -> float:
    """The loss of the constant predictor of a binary task, in nats; NaN outside (0, 1).

    >>> round(entropy(0.442), 3)
    0.686
    """
    if not 0.0 < label_mean < 1.0:
        return math.nan
    return -(label_mean * math.log(label_mean) + (1 - label_mean) * math.log(1 - label_mean))
