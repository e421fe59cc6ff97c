"""The hook: what stands inside a watched optimizer.

Guarantees. The optimizer stays the object it was: same class, same slots, same checkpoints; the hook is a few instance
attributes, and `detach` deletes them (decision 0201). Without a treatment the update that is written is the tensor
that the optimizer proposed, so weights and slots are bit-identical to those of the bare optimizer. No host call, no
collective beyond the sum of a few scalars.

How. Every Keras optimizer writes a model variable exactly once in `update_step`, through its own `assign`,
`assign_add` or `assign_sub`. The hook catches that one write, which is exactly u = eta * r, without the rounding of a
difference, measures, scales if a treatment says so, and writes. Where in the optimizer that happens is the backend's
(`lossguard.keras.backends`).
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import keras
from keras import ops

from lossguard.guard import guarded
from lossguard.keras import measure
from lossguard.keras.backends import backend
from lossguard.keras.ring import Layout, Ring, numbered
from lossguard.keras.rows import Pending, Row, step_of
from lossguard.keras.treatments.base import StepTreatment, Treatment
from lossguard.keras.treatments.clippy import Clippy
from lossguard.wire import stats

SMALL_GROUP: Final = 1 << 18
"""Entries of layers that are updated together at least, and so share a conditional ..."""
SMALL_GROUP_BESIDE: Final = 1 << 24
"""... and on an accelerator, where a conditional is a wait, and 64 MiB are little."""
_WRITES: Final = ("assign", "assign_add", "assign_sub")


class Hook:
    """Watches, and treats, the updates of one optimizer instance.

    Args:
        optimizer: any Keras optimizer that updates variables itself (not a wrapper around another).
        treatments: applied in order; their factors multiply.
        scalars: called once per step in the replica context, with the learning rate; names to scalar tensors.
        rows: length of the ring.
        full_every: every how many steps all stats are measured.
        unwatched: patterns of layers that are not measured (but treated).
        carried: variables of treatments and scalars, which this optimizer's step reads or writes.

    Attributes:
        most_scalars: how many scalars there may be, where that must be known before the first step.
        plain: whether XLA will surely not compile the step.
        resting: whether the attempt that it watched for has ended, and none has begun since.
        let_go: what gives the bare optimizers back, this one among them.
        whole: the optimizer that this one stands in, a MultiOptimizer, or this one.
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        treatments: Sequence[Treatment],
        scalars: Callable[[Any], dict[str, Any]],
        rows: int,
        full_every: int,
        unwatched: Sequence[str] = (),
        carried: Callable[[], Sequence[Any]] = tuple,
    ) -> None:
        self.optimizer: Any = optimizer
        self.whole: Any = optimizer
        self.treatments = tuple(treatments)
        self.rows = rows
        self.full_every = full_every
        self.unwatched = tuple(unwatched)
        self.skips = any(getattr(one, "skips_nonfinite", False) for one in treatments)
        self.ring: Ring | None = None
        self._stretch: Any = None
        self._stretched = 1
        self.most_scalars = 16
        self.plain = False
        self.resting = False
        self.let_go: Callable[[], None] = self.detach
        self._scalars = scalars
        self._carried = carried
        self._caught_alone: set[int] = set()
        self._clippy = next((one for one in treatments if isinstance(one, Clippy)), Clippy())
        self._scalar_names: tuple[str, ...] = ()
        self._placement = backend.place(self)

    def cover(self, optimizer: keras.optimizers.Optimizer) -> None:
        """The watched optimizer stands within this one."""
        self._placement.cover(optimizer)

    def prepare(self) -> None:
        """Make what must be there before the next step is compiled."""
        self._placement.prepare()

    def detach(self) -> None:
        """Give the bare optimizer back. Functions that were compiled with the hook keep it."""
        self._placement.remove()

    @property
    def layers(self) -> tuple[str, ...]:
        """Paths of the optimizer's variables, in its order; a path that stands twice is numbered."""
        return numbered(variable.path for variable in self.optimizer._trainable_variables)

    @property
    def _watched(self) -> tuple[int, ...]:
        return tuple(
            index
            for index, layer in enumerate(self.layers)
            # Of no numbers there is no largest one.
            if math.prod(self.optimizer._trainable_variables[index].shape)
            and not any(re.search(pattern, layer) for pattern in self.unwatched)
        )

    @property
    def step(self) -> int:
        """Updates so far. Copies one integer from the device."""
        return int(keras.ops.convert_to_numpy(self.optimizer.iterations))

    def stretch(self, times: int) -> None:
        """Measure all stats so many times more rarely than `full_every`, from the next step on.

        Args:
            times: a power of two up to 16. With `full_every` 1 it changes nothing.
        """
        if self._stretch is not None and times != self._stretched:
            self._stretched = times
            self._stretch.assign(float(times))

    @property
    def entries(self) -> tuple[int, ...]:
        """How many numbers each watched layer has."""
        variables = self.optimizer._trainable_variables
        return tuple(math.prod(variables[index].shape) for index in self._watched)

    def weigh(self) -> Any:
        """[L] float32 on the device: the norms of the watched weights as they are, between two executions."""
        variables = self.optimizer._trainable_variables
        if not self._watched:
            return ops.zeros([0])
        return measure.norms([ops.cast(backend.read(variables[index]), "float32") for index in self._watched])

    # --- inside the train step, called by the backend

    def carried(self) -> Sequence[Any]:
        """Variables of ours, besides the ring, that the step reads or writes."""
        if self._stretch is None:
            self._stretch = backend.variable(1.0, "lossguard_stretch")
        return (self._stretch, *self._carried())

    def width(self, scalars: int) -> int:
        """Of a row with so many scalars."""
        return Layout(("",) * scalars, tuple(self.layers[index] for index in self._watched), stats.STAT_NAMES).width

    def scalars(self, learning_rate: Any, most: int | None = None) -> Any:
        """[S] float32: the scalars of the step being updated; what the first step has, every one has."""
        scalars = self._scalars(learning_rate)
        if self.ring is None:
            self._scalar_names = tuple(scalars)[:most]
        row = [ops.cast(scalars.get(name, float("nan")), "float32") for name in self._scalar_names]
        return ops.stack(row) if row else ops.zeros([0])

    def position(self) -> Any:
        """Updates before this one, on the device."""
        return ops.cast(backend.read(self.optimizer.iterations), backend.WHOLE)

    def make_ring(self, variable: Any = None) -> Ring:
        """The ring; made at the first call, of `variable` if there is one already."""
        if self.ring is None:
            layers = tuple(self.layers[index] for index in self._watched)
            self.ring = Ring(Layout(self._scalar_names, layers, stats.STAT_NAMES), self.rows, variable)
            self.carried()
        return self.ring

    def propose(self, variable: Any, gradient: Any, learning_rate: Any) -> Pending:
        """Let the optimizer update its slots, and catch what it would write."""
        index = self.optimizer._get_variable_index(variable)
        weight = backend.read(variable)
        if backend.IN_PLACE and index not in self._caught_alone:
            weight = ops.copy(weight)
        with self._caught(variable) as writes:
            self.optimizer.update_step(gradient, variable, learning_rate)
        if len(writes) == 1:
            self._caught_alone.add(index)
            write, value = writes[0]
            return Pending(index, gradient, weight, write, value, plain=self.plain)
        # A custom optimizer that writes the variable itself: what it did is the difference, and is corrected after.
        return Pending(index, gradient, weight, None, weight - backend.read(variable), plain=self.plain)

    def nothing(self, variable: Any, gradient: Any) -> Pending:
        """A proposal that changes nothing."""
        weight = backend.read(variable)
        index = self.optimizer._get_variable_index(variable)
        return Pending(index, gradient, weight, "assign_sub", ops.zeros_like(weight))

    @contextmanager
    def _caught(self, variable: Any) -> Iterator[list[tuple[str, Any]]]:
        optimizer, writes = self.optimizer, []
        bare = {name: getattr(optimizer, name) for name in _WRITES}

        def catch(name: str) -> Callable[[Any, Any], None]:
            def call(target: Any, value: Any) -> None:
                if target is variable:
                    writes.append((name, value))
                else:
                    bare[name](target, value)

            return call

        for name in _WRITES:
            setattr(optimizer, name, catch(name))
        try:
            yield writes
        finally:
            for name in _WRITES:
                optimizer.__dict__.pop(name, None)
        if len(writes) > 1:
            for name, value in writes:
                bare[name](variable, value)

    def decide(self, row: Row | None, pending: list[Pending], learning_rate: Any, scalars: Any) -> None:
        """Ask the treatments, and note in the row what they say.

        Raises:
            ValueError: one needs the loss, and it was not observed.
        """
        names = self.layers
        for treatment in self.treatments:
            treated = [one for one in pending if treatment.applies_to(names[one.index])]
            if not treated:
                continue
            if isinstance(treatment, StepTreatment):
                left = [one.left(learning_rate) for one in treated]
                factors = treatment.step_factors(left, self._loss(treatment, scalars))
            else:
                factors = [treatment.factor(one.proposal(learning_rate)) for one in treated]
            for one, factor in zip(treated, factors, strict=True):
                one.factor = one.factor * factor
        if row is not None:
            row.note(pending)

    def _loss(self, treatment: StepTreatment, scalars: Any) -> Any:
        if "loss" not in self._scalar_names:
            raise ValueError(
                f"treatment: {type(treatment).__name__} needs the loss of the step; in a loop of your own call "
                "watch.observe(loss, ...) in the step, before optimizer.apply"
            )
        return scalars[self._scalar_names.index("loss")]

    def groups(self, variables: Sequence[Any]) -> list[list[int]]:
        """The places of these variables, in groups that are updated one after the other.

        A group is as large as the largest layer and a quarter, so that small layers do not come one by one, and at
        least as large as is not worth a conditional of its own. All at once where a treatment looks at all of them.
        """
        sizes = [math.prod(variable.shape) for variable in variables]
        if any(isinstance(one, StepTreatment) for one in self.treatments):
            return [list(range(len(sizes)))]
        most = max(SMALL_GROUP if backend.on_host() else SMALL_GROUP_BESIDE, *(size + size // 4 for size in sizes))
        groups: list[list[int]] = []
        left = 0
        for place, size in enumerate(sizes):
            if size > left:
                groups.append([])
                left = most
            groups[-1].append(place)
            left -= size
        return groups

    @guarded("Hook.begin_row", None)
    def begin_row(
        self,
        ring: Ring,
        copy: Any,
        gradients: Sequence[Any],
        variables: Sequence[Any],
        position: Any,
        learning_rate: Any,
    ) -> Any:
        """What the row of this step is made in; decides whether it is measured in full."""
        weights = {index: self.optimizer._trainable_variables[index] for index in self._watched}
        row = Row(weights, self.full_every, self._clippy.lambda_rel, self._clippy.lambda_abs, learning_rate)
        if weights and not row.always:
            indices = map(self.optimizer._get_variable_index, variables)
            found = dict(zip(indices, zip(gradients, variables, strict=True), strict=True))
            before = ring.state(copy, position - 1)
            row.decide(before, found, position, backend.read(self._stretch), self.plain)
        return row

    def measure(self, row: Row | None, variables: Sequence[Any], proposed: Callable[[], Sequence[Pending]]) -> Any:
        """Measure these layers; what is there when nobody reads them any more, or None.

        Args:
            row: of `begin_row`.
            variables: the layers.
            proposed: what the optimizer proposes for them; called where it is needed, such as in a branch.
        """
        if row is None or row.lost:
            return None
        # Until it is there: what raises is swallowed.
        row.lost = True
        return self._measure(row, [self.optimizer._get_variable_index(one) for one in variables], proposed)

    @guarded("Hook.measure", None)
    def _measure(self, row: Row, layers: Sequence[int], proposed: Callable[[], Sequence[Pending]]) -> Any:
        read = row.measure(layers, proposed)
        row.lost = False
        return read

    @guarded("Hook.end_row", None)
    def end_row(self, row: Row | None, ring: Ring, copy: Any, scalars: Any, position: Any) -> None:
        """Write the row."""
        if row is None or row.lost:
            return
        if self._watched:
            whole = row.whole(scalars, position)
        else:
            no_state = ops.zeros([ring.layout.state - 1])
            whole = ops.concatenate([ops.reshape(step_of(position), [1]), no_state, scalars], 0)
        ring.write(copy, position, whole)

    def write(self, variable: Any, one: Pending) -> None:
        """Write what the treatments leave of a proposal."""
        optimizer = self.optimizer
        if one.write is None:
            if one.treated:
                correction = ops.cast(1.0 - one.factor, variable.dtype) * one.value
                optimizer.assign_add(variable, ops.where(one.factor == 1.0, ops.zeros_like(correction), correction))
            return
        value = one.value
        if one.treated and one.write == "assign":
            factor = ops.cast(one.factor, variable.dtype)
            value = ops.where(factor == 1.0, value, one.weight - factor * (one.weight - value))
        elif one.treated:
            value = backend.scale(value, one.factor)
        getattr(optimizer, one.write)(variable, value)


def hook_of(optimizer: keras.optimizers.Optimizer) -> Hook | None:
    """The hook that stands in an optimizer."""
    place = getattr(optimizer.__dict__.get("_backend_update_step"), "__self__", None)
    return getattr(place, "hook", None)


def leaves(optimizer: keras.optimizers.Optimizer) -> tuple[keras.optimizers.Optimizer, ...]:
    """The optimizers inside `optimizer` that update variables themselves."""
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is not None:
        return leaves(inner)
    several = getattr(optimizer, "optimizers", None)
    if several:
        return tuple(leaf for one in several for leaf in leaves(one))
    return (optimizer,)
