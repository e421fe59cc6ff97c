"""What the room needs of a backend beyond `keras.ops`.

A module of this folder is a `Backend`; so a fourth one is a fourth module, and nothing else asks which one runs.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

Indices = np.ndarray[Any, np.dtype[np.int32]]


class Hooked(Protocol):
    """What the hook (`lossguard.keras.optimizer.Hook`) lets a backend call within the step.

    Attributes:
        optimizer: that it stands in.
        skips: whether steps with gradients that are not finite are left out.
    """

    optimizer: Any
    skips: bool

    def scalars(self, learning_rate: Any) -> Any:
        """[S] float32: the scalars of the step being updated."""

    def position(self) -> Any:
        """Updates before this one, a whole number on the device."""

    def make_ring(self) -> Any:
        """The ring (`lossguard.keras.ring.Ring`); made at the first call."""

    def propose(self, variable: Any, gradient: Any, learning_rate: Any) -> Any:
        """Let the optimizer update its slots, and catch what it would write."""

    def nothing(self, variable: Any, gradient: Any) -> Any:
        """A proposal that changes nothing."""

    def decide(self, pending: list[Any], learning_rate: Any) -> None:
        """Ask the treatments."""

    def record(self, ring: Any, copy: Any, pending: list[Any], scalars: Any, position: Any, learning_rate: Any) -> Any:
        """Write the row; what it was, or None."""

    def write(self, variable: Any, one: Any) -> None:
        """Write what is left of a proposal."""


class Placement(Protocol):
    """The hook in its place within the optimizer."""

    def remove(self) -> None:
        """Give the bare optimizer back."""


class Backend(Protocol):
    """A module of this folder."""

    END_OF_DATA: tuple[type[BaseException], ...]
    """What a train function raises where the data end."""

    def version(self) -> str:
        """Of the framework."""

    # --- tensors

    def read(self, variable: Any) -> Any:
        """A variable's value."""

    def norm(self, values: Any) -> Any:
        """The Euclidean norm over all entries."""

    def branch(self, wanted: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
        """What one of two functions gives, both of the same shape; only that one is computed."""

    def dense(self, tensor: Any, weight: Any) -> Any:
        """A sparse gradient or update as the dense one it stands for."""

    def scale(self, value: Any, factor: Any) -> Any:
        """An update, sparse or not, times a factor."""

    def copy(self, variable: Any) -> Any:
        """A variable's value as a tensor that later steps leave alone."""

    # --- the step

    def place(self, hook: Hooked) -> Placement:
        """Put a hook into its optimizer."""

    def still(self, tensor: Any) -> Any:
        """A tensor met while gradients are recorded, as one that may be used after that; nested ones too."""

    def reachable(self, tensor: Any) -> bool:
        """Whether a remembered tensor belongs to the step being computed, not to a validation or an older trace."""

    def replica_total(self) -> Callable[[list[Any]], list[Any]]:
        """What adds scalars up over the replicas; the identity on one."""

    # --- state on the device

    def scope(self, model: Any) -> AbstractContextManager[Any]:
        """Where variables of ours are made: that of the model's replicas, or without a model of the current ones."""

    def variable(self, value: Any, name: str) -> Any:
        """A small float32 or bool variable of ours, the same on all replicas; has `assign`. Read it by `read`."""

    def ring(self, rows: int, width: int) -> Any:
        """A float32 variable [rows, width] of zeros, of which each replica writes its own copy."""

    def write_row(self, ring: Any, position: Any, row: Any) -> None:
        """Write row `position` mod its length."""

    def read_row(self, ring: Any, position: Any, columns: int) -> Any:
        """Read the first columns of row `position` mod its length."""

    def take_rows(self, ring: Any, places: Indices) -> Any:
        """Rows, as a tensor on the device that later steps leave alone."""
