"""JAX: the step is a pure function, so our state must travel through it with the optimizer's.

Guarantees. No host call. `optimizer.variables` has a few more entries, at its end: the ring and what else of ours the
step writes. They travel where Keras's trainer or a loop of one's own carries the optimizer's state; they are in no
file, for saving and loading do not see them. Gradient accumulation and loss scaling, which put the optimizer's state
back in the steps that are no updates, put them back, too.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

import jax
import keras
import numpy as np
from jax import lax
from jax import numpy as jnp
from keras import ops, tree
from keras.src.backend import get_keras_mask, set_keras_mask  # a JAX array takes no attribute: Keras keeps a table
from keras.src.backend.common.stateless_scope import get_stateless_scope

from lossguard.keras.backends.aside import Call, update_aside
from lossguard.keras.backends.calls import calls
from lossguard.keras.backends.interface import Hooked, Indices

END_OF_DATA: Final = (StopIteration,)
WHOLE: Final = "int64" if jax.config.jax_enable_x64 else "int32"
IN_PLACE: Final = False
PRODUCT: Final = 512
"""Entries of a row, see `norms`."""


def version() -> str:
    return jax.__version__


def on_host() -> bool:
    return jax.default_backend() == "cpu"


# --- tensors


def read(variable: Any) -> Any:
    return ops.convert_to_tensor(variable)


def bits(values: Any) -> Any:
    return jax.lax.bitcast_convert_type(values, jnp.int32)


def norms(tensors: Sequence[Any]) -> Any:
    return jnp.sqrt(jnp.stack([_squares(one) for one in tensors]))


def _squares(tensor: Any) -> Any:
    """The sum of the squares.

    On CPU as products of rows with themselves: a square is what Adagrad takes, too, and XLA would keep the one that it
    has, as large as the layer, for both. Of rows that are short, since such a product is not added up pair by pair in
    every version (decision 0219).
    """
    if tensor.size < PRODUCT or not on_host():
        return jnp.sum(jnp.square(tensor))
    flat = jnp.ravel(tensor)
    even = flat.size // PRODUCT * PRODUCT
    rows = flat[:even].reshape(-1, PRODUCT)
    return jnp.sum(jnp.einsum("ij,ij->i", rows, rows, precision="highest")) + jnp.sum(jnp.square(flat[even:]))


def branch(wanted: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    if isinstance(wanted, jax.core.Tracer):
        # Not `cond`: on a GPU XLA computes both functions of it and selects, which doubled what a step costs there.
        return lax.switch(ops.cast(wanted, "int32"), [no, yes])
    return yes() if wanted else no()


def settled(wanted: Any) -> Any:
    return wanted


def branches_cheaply() -> bool:
    return False


def dense(tensor: Any, weight: Any, plain: bool = False) -> Any:
    # An update may be one of the optimizer's variables, such as a momentum.
    return ops.convert_to_tensor(tensor)


def scale(value: Any, factor: Any) -> Any:
    return value * ops.cast(factor, value.dtype)


def copy(variable: Any) -> Any:
    # The next step takes the buffers of the variables themselves.
    return jnp.copy(variable.value)


def compiled(function: Callable[[Any], Any], jit: bool) -> Callable[[Any], Any]:
    made: Callable[[Any], Any] = jax.jit(function)
    return made


# --- the step


class Passenger(keras.Variable):
    """A variable of ours that travels with the optimizer's."""


class Placement:
    """One method of the optimizer, one that makes its variables, and the two that read and write files."""

    def __init__(self, hook: Hooked) -> None:
        self.hook = hook
        self._ring: Any = None
        self._covered: list[Any] = []
        optimizer = hook.optimizer
        self._bare_build, self._bare_update = optimizer.build, optimizer._backend_update_step
        optimizer.build = self._build
        optimizer._backend_update_step = self._update_step
        self.cover(optimizer)
        self.prepare()

    def cover(self, optimizer: Any) -> None:
        """Keep our variables out of the files of an optimizer around the hooked one."""
        if "save_own_variables" not in optimizer.__dict__:
            optimizer.save_own_variables = _alone(optimizer, optimizer.save_own_variables)
            optimizer.load_own_variables = _alone(optimizer, optimizer.load_own_variables)
            self._covered.append(optimizer)

    def remove(self) -> None:
        optimizer = self.hook.optimizer
        for passenger in _passengers(optimizer):
            optimizer._untrack_variable(passenger)
        for name in ("build", "_backend_update_step"):
            optimizer.__dict__.pop(name, None)
        for one in self._covered:
            for name in ("save_own_variables", "load_own_variables"):
                one.__dict__.pop(name, None)

    def _build(self, variables: Any) -> None:
        self._bare_build(variables)
        self.prepare()

    def prepare(self) -> None:
        """Let our variables get on, once the optimizer's own are there; makes the ring unless a step has written it."""
        hook, optimizer = self.hook, self.hook.optimizer
        if not optimizer.built:
            return
        if hook.ring is None:
            wanted = (hook.rows, hook.width(hook.most_scalars))
            if self._ring is not None and tuple(self._ring.shape) != wanted:
                optimizer._untrack_variable(self._ring)
                self._ring = None
            if self._ring is None:
                self._ring = variable(np.zeros(wanted, np.float32), "lossguard_ring")
        known = {id(one) for one in optimizer.variables}
        for one in (self._ring, *hook.carried()):
            if one is not None and id(one) not in known:
                optimizer._track_variable(one)

    def _update_step(self, grads: Any, trainable_variables: Any, learning_rate: Any) -> None:
        hook, optimizer = self.hook, self.hook.optimizer
        room = hook.most_scalars if self._ring is None else self._ring.shape[1] - hook.width(0)
        scalars, position = hook.scalars(learning_rate, room), hook.position()
        ring = hook.make_ring(self._ring)
        if not hook.skips:
            self._run(ring, grads, trainable_variables, scalars, position, learning_rate, leave_out=False)
            return
        touched = [*optimizer._trainable_variables, *optimizer.variables]

        def outcome(leave_out: bool) -> list[Any]:
            with keras.StatelessScope([(one, one.value) for one in touched]) as scope:
                self._run(ring, grads, trainable_variables, scalars, position, learning_rate, leave_out=leave_out)
            return [scope.get_current_value(one) for one in touched]

        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(one)) for one in grads]))
        values = branch(finite, lambda: outcome(False), lambda: outcome(True))
        for one, value in zip(touched, values, strict=True):
            one.assign(value)

    def _run(
        self, ring: Any, grads: Any, variables: Any, scalars: Any, position: Any, learning_rate: Any, *, leave_out: bool
    ) -> None:
        """Update with what is measured computed aside (decision 0218)."""
        hook = self.hook
        if leave_out:
            made = [(gradient, one, learning_rate) for gradient, one in zip(grads, variables, strict=True)]
        else:
            made = calls(hook.optimizer, self._bare_update, grads, variables, learning_rate)

        def propose(group: Sequence[Call]) -> list[Any]:
            if leave_out:
                return [hook.nothing(variable, gradient) for gradient, variable, _ in group]
            return [hook.propose(variable, gradient, rate) for gradient, variable, rate in group]

        def aside(group: Sequence[Call]) -> list[Any]:
            with _Aside():
                pending = propose(group)
                for one in pending:
                    # It may be one of the optimizer's variables, such as a momentum, and is another one out there.
                    one.value = ops.convert_to_tensor(one.value)
                return pending

        update_aside(hook, ring, made, scalars, position, learning_rate, propose, aside, leave_out=leave_out)


class _Aside(keras.StatelessScope):
    """What is written in it is forgotten behind it; what is read is what is there outside of it."""

    def __init__(self) -> None:
        self._around = get_stateless_scope()
        super().__init__()

    def get_current_value(self, variable: Any) -> Any:
        value = super().get_current_value(variable)
        return self._around.get_current_value(variable) if value is None and self._around is not None else value


def place(hook: Hooked) -> Placement:
    return Placement(hook)


def _all(optimizer: Any) -> Iterator[Any]:
    yield optimizer
    inner = getattr(optimizer, "inner_optimizer", None)
    for one in (*([] if inner is None else [inner]), *getattr(optimizer, "optimizers", ())):
        yield from _all(one)


def _passengers(optimizer: Any) -> list[Any]:
    return [one for one in optimizer._variables if isinstance(one, Passenger)]


def _alone(optimizer: Any, bare: Callable[[Any], None]) -> Callable[[Any], None]:
    def call(store: Any) -> None:
        with _without_passengers(optimizer):
            bare(store)

    return call


@contextmanager
def _without_passengers(optimizer: Any) -> Iterator[None]:
    travelling = [(one, passenger) for one in _all(optimizer) for passenger in _passengers(one)]
    for one, passenger in travelling:
        one._untrack_variable(passenger)
    try:
        yield
    finally:
        for one, passenger in travelling:
            one._track_variable(passenger)


def cover_model(model: Any) -> None:
    bare = model.get_state_tree

    def get_state_tree(*places: Any, **options: Any) -> Any:
        with _without_passengers(model.optimizer):
            return bare(*places, **options)

    if "get_state_tree" not in model.__dict__:
        model.get_state_tree = get_state_tree


def uncover_model(model: Any) -> None:
    model.__dict__.pop("get_state_tree", None)


def make_state(model: Any, data: Any) -> None:
    pass


def still(tensors: Any) -> Any:
    # What is met within `jax.grad` may not be used outside of it; without a tangent it may.
    return tree.map_structure(_still, tensors)


def _still(one: Any) -> Any:
    if not isinstance(one, jax.Array):
        return one
    alone, hidden = lax.stop_gradient(one), mask(one)
    if hidden is not None:
        set_keras_mask(alone, lax.stop_gradient(hidden))
    return alone


def mask(tensor: Any) -> Any:
    return get_keras_mask(tensor)


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def reachable(tensor: Any) -> bool:
    try:
        tensor + 0.0
    except jax.errors.UnexpectedTracerError:
        return False
    return True


def replica_total() -> Callable[[list[Any]], list[Any]]:
    # Arrays that lie on several devices are whole ones to the step.
    return lambda values: values


def count_skips(optimizer: Any, skipped: Any) -> None:
    bare = optimizer._stateless_handle_non_finite_grads

    def leave_out(optimizer_variables: Any, trainable_variables: Any) -> Any:
        trainable, found = bare(optimizer_variables, trainable_variables)
        place = [one is skipped for one in optimizer.variables].index(True)
        return trainable, [*found[:place], found[place] + 1.0, *found[place + 1 :]]

    optimizer._stateless_handle_non_finite_grads = leave_out


def forget_skips(optimizer: Any) -> None:
    optimizer.__dict__.pop("_stateless_handle_non_finite_grads", None)


# --- state on the device


def scope(model: Any) -> AbstractContextManager[Any]:
    return nullcontext()


def sync(model: Any) -> None:
    """Bring the values of the last step back from the trainer, which keeps them to itself between epochs."""
    if model is not None:
        model.jax_state_sync()


def adopt(optimizer: Any, state: Sequence[Any]) -> None:
    """Look at the state of a loop of one's own; what the step is given next is the loop's business."""
    counters = [one._iterations for one in _all(optimizer)]
    for one, value in zip(optimizer.variables, state, strict=True):
        if isinstance(one, Passenger) or any(one is counter for counter in counters):
            one.assign(jnp.copy(value))


def variables(optimizer: Any) -> Sequence[Any]:
    return [one for one in optimizer.variables if not isinstance(one, Passenger)]


def variable(value: Any, name: str) -> Any:
    return Passenger(value, trainable=False, dtype="bool" if isinstance(value, bool) else "float32", name=name)


def ring(rows: int, width: int) -> Any:
    return variable(np.zeros((rows, width), np.float32), "lossguard_ring")


def write_row(ring: Any, position: Any, row: Any) -> None:
    whole = jnp.pad(row, (0, ring.shape[1] - row.shape[0]))
    ring.assign(lax.dynamic_update_index_in_dim(ring.value, whole, position % ring.shape[0], 0))


def read_row(ring: Any, position: Any, columns: int) -> Any:
    return lax.dynamic_index_in_dim(ring.value, position % ring.shape[0], 0, keepdims=False)[:columns]


class _Rows:
    """Rows of a copy of the ring, which are chosen on the host: on the device each number of rows is a program."""

    def __init__(self, ring: Any, places: Indices) -> None:
        self._ring = copy(ring)
        self._places = places

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.asarray(self._ring)[self._places]


def take_rows(ring: Any, places: Indices) -> Any:
    return _Rows(ring, places)
