"""Which scalars speak about divergence: losses (voices) and task metrics (judges).

A loss says that something happened. Whether it did damage, the tasks' own metrics say better: batch AUC knows chance
(0.5) and does not care about one absurd label; a regression's error against its batch's own deviation knows the
constant predictor. Names are the glossary's: `loss`, `loss/<task>`, `batch_auc/<task>`, `rmse/<task>` with
`label_std/<task>`, `label_mean/<task>`, `prediction_std/<task>`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lossguard.wire.frame import Floats64

LOSS = "loss"
AUC = "batch_auc/"
RMSE = "rmse/"
LABEL = "label_mean/"
DEVIATION = "label_std/"
SPREAD = "prediction_std/"
CHANCE = 0.5
"""Batch AUC of a model that knows nothing."""


@dataclass(frozen=True, slots=True)
class Roles:
    """The columns of a schema by what they are to the detectors.

    Attributes:
        voices: scalar name of each loss.
        judges: scalar name of each batch AUC, and of each root mean squared error that stands beside its labels'
            deviation.
        labels: task name to the scalar that holds its label mean.
        spreads: task name to the scalar that holds its predictions' deviation.
    """

    voices: tuple[str, ...]
    judges: tuple[str, ...]
    labels: dict[str, str]
    spreads: dict[str, str]


@lru_cache(maxsize=256)
def roles(scalars: tuple[str, ...]) -> Roles:
    """Sort scalar names.

    >>> roles(("loss", "learning_rate", "loss/click", "batch_auc/click"))
    Roles(voices=('loss', 'loss/click'), judges=('batch_auc/click',), labels={}, spreads={})
    """
    errors = {name for name in scalars if name.startswith(RMSE) and DEVIATION + name[len(RMSE) :] in scalars}
    return Roles(
        voices=tuple(name for name in scalars if name == LOSS or name.startswith(LOSS + "/")),
        judges=tuple(name for name in scalars if name.startswith(AUC) or name in errors),
        labels={name[len(LABEL) :]: name for name in scalars if name.startswith(LABEL)},
        spreads={name[len(SPREAD) :]: name for name in scalars if name.startswith(SPREAD)},
    )


def error_skill(rmse: Floats64, deviation: Floats64) -> Floats64:
    """What a regression knows, on the scale of an AUC: 0.5 for the constant predictor's error, 1 for none [T].

    Both are of the same batch, so that a heavy tail in its labels cancels out. Below 0 is 0; NaN where either is
    unknown or all labels are the same.
    """
    with np.errstate(all="ignore"):
        share = np.where(deviation > 0, rmse / deviation, np.nan)
        return np.asarray(np.maximum(CHANCE + 1.0 - share, 0.0).clip(max=1.0))


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
