"""What the room needs of a backend beyond `keras.ops`.

A module of this folder is a `Backend`; so a fourth one is a fourth module, and nothing else asks which one runs.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

Indices = np.ndarray[Any, np.dtype[np.int32]]


class Hooked(Protocol):
    """What the hook (`lossguard.keras.optimizer.Hook`) lets a backend call within the step.

    Attributes:
        optimizer: that it stands in.
        skips: whether steps with gradients that are not finite are left out.
        ring: what `make_ring` made; None before.
        rows: wanted length of the ring.
        most_scalars: how many scalars the ring must have room for, where it is made before the first step.
    """

    optimizer: Any
    skips: bool
    ring: Any
    rows: int
    most_scalars: int

    def carried(self) -> Sequence[Any]:
        """Variables of ours, besides the ring, that the step reads or writes."""

    def width(self, scalars: int) -> int:
        """Of a row with so many scalars."""

    def scalars(self, learning_rate: Any, most: int | None = None) -> Any:
        """[S] float32: the scalars of the step being updated, the first `most` of them."""

    def position(self) -> Any:
        """Updates before this one, a whole number on the device."""

    def make_ring(self, variable: Any = None) -> Any:
        """The ring (`lossguard.keras.ring.Ring`); made at the first call, of `variable` if there is one already."""

    def propose(self, variable: Any, gradient: Any, learning_rate: Any) -> Any:
        """Let the optimizer update its slots, and catch what it would write."""

    def nothing(self, variable: Any, gradient: Any) -> Any:
        """A proposal that changes nothing."""

    def decide(self, row: Any, pending: list[Any], learning_rate: Any, scalars: Any) -> None:
        """Ask the treatments, and note in the row what they say."""

    def groups(self, variables: Sequence[Any]) -> list[list[int]]:
        """The places of these variables, in groups that are updated one after the other."""

    def begin_row(
        self,
        ring: Any,
        copy: Any,
        gradients: Sequence[Any],
        variables: Sequence[Any],
        position: Any,
        learning_rate: Any,
    ) -> Any:
        """What the row of this step is made in; decides whether it is measured in full."""

    def measure(self, row: Any, variables: Sequence[Any], proposed: Callable[[], Sequence[Any]]) -> Any:
        """Measure these layers; what is there when nobody reads them any more, or None.

        `proposed` gives what the optimizer proposes for them, and is called where it is needed, such as in a branch.
        """

    def end_row(self, row: Any, ring: Any, copy: Any, scalars: Any, position: Any) -> None:
        """Write the row."""

    def write(self, variable: Any, one: Any) -> None:
        """Write what is left of a proposal."""


class Placement(Protocol):
    """The hook in its place within the optimizer.

    Attributes:
        hook: see there.
    """

    hook: Hooked

    def cover(self, optimizer: Any) -> None:
        """The hooked optimizer stands within this one."""

    def prepare(self) -> None:
        """Make what must be there before the next step is traced; called whenever more of it is known."""

    def remove(self) -> None:
        """Give the bare optimizer back."""


class Backend(Protocol):
    """A module of this folder."""

    END_OF_DATA: tuple[type[BaseException], ...]
    """What a train function raises where the data end."""

    WHOLE: str
    """The dtype of the largest whole numbers."""

    IN_PLACE: bool
    """Whether a value that was read changes when its variable is written."""

    def version(self) -> str:
        """Of the framework."""

    def on_host(self) -> bool:
        """Whether tensors lie in the host's memory, there being no accelerator."""

    # --- tensors

    def read(self, variable: Any) -> Any:
        """A variable's value."""

    def bits(self, values: Any) -> Any:
        """The bits of float32 values as int32. (`keras.ops.view` is newer than the oldest Keras that we support.)"""

    def norms(self, tensors: Sequence[Any]) -> Any:
        """[L] the Euclidean norm of each tensor, over all its entries."""

    def branch(self, wanted: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
        """What one of two functions gives, both of the same shape; only that one is computed."""

    def settled(self, wanted: Any) -> Any:
        """A boolean that will be given to more than one `branch`, so that the device is waited for once at most."""

    def branches_cheaply(self) -> bool:
        """Whether here, where a step is traced or run, a `branch` is surely cheaper than a pass over a batch."""

    def dense(self, tensor: Any, weight: Any, plain: bool = False) -> Any:
        """A sparse gradient or update as the dense one it stands for; `plain` if XLA will surely not compile it."""

    def scale(self, value: Any, factor: Any) -> Any:
        """An update, sparse or not, times a factor."""

    def copy(self, variable: Any) -> Any:
        """A variable's value as a tensor that later steps leave alone."""

    def compiled(self, function: Callable[[Any], Any], jit: bool) -> Callable[[Any], Any]:
        """A pure function of tensors, compiled as a train step is: with XLA or without, where there is a choice."""

    # --- the step

    def place(self, hook: Hooked) -> Placement:
        """Put a hook into its optimizer."""

    def cover_model(self, model: Any) -> None:
        """Keep our variables out of what the model gives away as its state (Orbax checkpoints)."""

    def uncover_model(self, model: Any) -> None:
        """No more."""

    def make_state(self, model: Any, data: Any) -> None:
        """Make what Keras would make while it traces the step that is about to be traced.

        Args:
            model: compiled, in `fit`.
            data: what its step is called with.
        """

    def still(self, tensors: Any) -> Any:
        """Tensors, nested or not, met while gradients are recorded, as ones that may be used after that."""

    def mask(self, tensor: Any) -> Any:
        """Keras's mask of an output: false entries have no loss; None if it has none."""

    def uncompiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that is called while the step is traced, as one that the step's compiler leaves alone."""

    def reachable(self, tensor: Any) -> bool:
        """Whether a remembered tensor belongs to the step being computed, not to a validation or an older trace."""

    def replica_total(self) -> Callable[[list[Any]], list[Any]]:
        """What adds scalars up over the replicas; the identity on one."""

    def count_skips(self, optimizer: Any, skipped: Any) -> None:
        """Add 1 to a variable at every step that a LossScaleOptimizer leaves out."""

    def forget_skips(self, optimizer: Any) -> None:
        """No more."""

    # --- state on the device

    def scope(self, model: Any) -> AbstractContextManager[Any]:
        """Where variables of ours are made: that of the model's replicas, or without a model of the current ones."""

    def sync(self, model: Any) -> None:
        """Between two executions: let variables have the values of the last step."""

    def adopt(self, optimizer: Any, state: Sequence[Any]) -> None:
        """The same in a loop of one's own, from the optimizer's variables as its step returned them."""

    def variables(self, optimizer: Any) -> Sequence[Any]:
        """The optimizer's variables without ours."""

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
