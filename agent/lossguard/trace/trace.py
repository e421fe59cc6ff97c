"""A saved run in memory, and the one error of this room.

TraceError  the file is not what its reader expects: the message names the file and says what to do
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lossguard.wire.frame import Frames, Schema

ALIASES: Mapping[str, tuple[str, ...]] = {
    "loss": (
        "loss", "train_loss", "train/loss", "training_loss", "loss/train", "train/total_loss", "total_loss",
        "batch_loss", "epoch_loss", "train/loss_step", "train_loss_step",
    ),
    "learning_rate": (
        "learning_rate", "lr", "train/learning_rate", "train/lr", "epoch_learning_rate", "batch_learning_rate",
        "epoch_lr", "optimizer/lr",
    ),
    "gradient_norm": (
        "gradient_norm", "grad_norm", "train/grad_norm", "train/gradient_norm", "gradnorm", "grad_norm/global",
    ),
}  # fmt: skip
"""How other people's logs call the scalars that the detectors know, the most specific first."""

STEP_NAMES = ("step", "global_step", "train/global_step", "iteration", "iter", "batch", "epoch")


class TraceError(ValueError):
    """A saved run that cannot be read; the message names the file and says what to do."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A saved run.

    Attributes:
        name: the run's name; the file's name without its ending where the file holds none.
        attempts: one block of frames for each attempt; a step that goes back begins the next one.
        tasks: task name to `binary` or `regression`; empty where the file does not say.
        meta: what else the file says about the run.
    """

    name: str
    attempts: tuple[Frames, ...]
    tasks: Mapping[str, str] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(frames) for frames in self.attempts)


def renamed(columns: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """Column to scalar name: as given, and by the usual names for what is missing.

    Args:
        columns: the names in the file.
        given: scalar name to column, for example `{"loss": "my/objective"}`.

    Raises:
        TraceError: a given column that is not there.

    >>> renamed(["Train Loss", "lr", "x"], {})
    {'Train Loss': 'loss', 'lr': 'learning_rate'}
    """
    found: dict[str, str] = {}
    for scalar, column in given.items():
        if column not in columns:
            raise TraceError(f"no column {column!r}; there are: {', '.join(columns)}")
        found[column] = scalar
    lower = {plain(column): column for column in reversed(columns)}
    for scalar, names in ALIASES.items():
        if scalar in found.values() or scalar in columns:
            continue
        hit = next((lower[name] for name in names if name in lower and lower[name] not in found), None)
        if hit is not None:
            found[hit] = scalar
    for column in columns:  # a name that was given to another column
        if column in given and column not in found:
            found[column] = f"{column} (as logged)"
    return found


def plain(column: str) -> str:
    """A column's name as it is compared: `Train Loss`, `train-loss` and `train_loss` are one."""
    return column.strip().lower().translate({ord(mark): "_" for mark in " -."})


def of_rows(
    name: str, rows: Sequence[tuple[int, Mapping[str, float]]], given: Mapping[str, str], meta: Mapping[str, Any]
) -> Trace:
    """A trace of (step, values) rows in the order in which they were logged.

    Rows of one step that follow each other are one frame; a step that goes back begins a new attempt; a name that a
    row lacks was not measured there.

    Raises:
        TraceError: no row, or no loss among the names.
    """
    columns = list(dict.fromkeys(column for _, values in rows for column in values))
    if not columns:
        raise TraceError("no numbers in it")
    names = renamed(columns, given)
    scalars = tuple(names.get(column, column) for column in columns)
    if "loss" not in scalars and not any(scalar.startswith("loss/") for scalar in scalars):
        raise TraceError(f"no loss among {', '.join(columns)}: name it with --scalar loss=COLUMN")
    merged: list[list[tuple[int, dict[str, float]]]] = [[]]
    for step, values in rows:
        current = merged[-1]
        if current and step == current[-1][0]:
            current[-1][1].update(values)
            continue
        if current and step < current[-1][0]:
            current = []
            merged.append(current)
        current.append((step, dict(values)))
    schema = Schema(scalars)
    attempts = []
    for part in merged:
        present = np.array([[column in values for column in columns] for _, values in part], np.bool_)
        array = np.array([[values.get(column, np.nan) for column in columns] for _, values in part], np.float64)
        attempts.append(Frames.of(schema, [step for step, _ in part], array, scalars_present=present))
    return Trace(name, tuple(attempts), {}, meta)
