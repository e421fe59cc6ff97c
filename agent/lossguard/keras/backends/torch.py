"""PyTorch: the step runs as it is written, an operation at a time.

Guarantees. The device is not waited for, but where a step branches: once per step where not every step is measured in
full, once more with `SkipNonFinite`. Under `torch.compile` the step is left for ours, which is not compiled.

The fused updates of several layers that Keras has for some optimizers leave no write to catch: a watched optimizer
takes Keras's other implementation of the same formula, layer by layer.
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import keras
import torch
from keras import ops, tree

from lossguard.keras.backends.calls import calls
from lossguard.keras.backends.interface import Hooked, Indices
from lossguard.keras.backends.skips import count_skips as count_skips
from lossguard.keras.backends.skips import forget_skips as forget_skips

END_OF_DATA: Final = (StopIteration,)
WHOLE: Final = "int64"
IN_PLACE: Final = True
ROW: Final = 1024
"""Entries whose squares are added up in one go, see `norms`."""


def version() -> str:
    return str(torch.__version__)


def on_host() -> bool:
    return ops.zeros(()).device.type == "cpu"


# --- tensors


def read(variable: Any) -> Any:
    return ops.convert_to_tensor(variable).detach()


def bits(values: Any) -> Any:
    return values.view(torch.int32)


def norms(tensors: Sequence[Any]) -> Any:
    if any(one.device.type == "cpu" for one in tensors):
        return torch.stack([_norm(one) for one in tensors])
    # On an accelerator one launch for all layers.
    return torch.stack(torch._foreach_norm(list(tensors)))


def _norm(tensor: Any) -> Any:
    """The norm of the norms of rows.

    On CPU PyTorch keeps no more sums than a register has places: of 2**24 normal entries its norm is off by 7e-4.
    """
    rest = tensor.reshape(-1)
    while rest.numel() > ROW:
        even = rest.numel() // ROW * ROW
        rest = torch.cat([torch.linalg.vector_norm(rest[:even].reshape(-1, ROW), dim=1), rest[even:]])
    return torch.linalg.vector_norm(rest)


def branch(wanted: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    return yes() if bool(wanted) else no()


def settled(wanted: Any) -> Any:
    return bool(wanted)


def branches_cheaply() -> bool:
    # It waits for the device.
    return False


def dense(tensor: Any, weight: Any, plain: bool = False) -> Any:
    # An update may be one of the optimizer's variables, such as a momentum.
    tensor = ops.convert_to_tensor(tensor)
    return tensor.to_dense() if tensor.is_sparse else tensor


def scale(value: Any, factor: Any) -> Any:
    return value * ops.cast(factor, value.dtype)


def copy(variable: Any) -> Any:
    return variable.value.detach().clone()


def compiled(function: Callable[[Any], Any], jit: bool) -> Callable[[Any], Any]:
    # Ours is never compiled, see above.
    made: Callable[[Any], Any] = torch.no_grad()(function)
    return made


# --- the step


class Placement:
    """One method of the optimizer."""

    def __init__(self, hook: Hooked) -> None:
        self.hook = hook
        optimizer = hook.optimizer
        # The implementation that goes layer by layer stands behind the fused one in the order of bases.
        unfused = (one for one in type(optimizer).__mro__ if one.__name__ != "TorchParallelOptimizer")
        bare = next(vars(one)["_backend_update_step"] for one in unfused if "_backend_update_step" in vars(one))
        self._bare_update = functools.partial(bare, optimizer)
        optimizer._backend_update_step = self._update_step

    def cover(self, optimizer: Any) -> None:
        pass

    def prepare(self) -> None:
        pass

    def remove(self) -> None:
        self.hook.optimizer.__dict__.pop("_backend_update_step", None)

    @torch.compiler.disable
    @torch.no_grad()
    def _update_step(self, grads: Any, trainable_variables: Any, learning_rate: Any) -> None:
        hook = self.hook
        scalars, position = hook.scalars(learning_rate), hook.position()
        ring = hook.make_ring()
        finite = not hook.skips or bool(torch.stack([torch.isfinite(one).all() for one in grads]).all())
        if finite:
            made = calls(hook.optimizer, self._bare_update, grads, trainable_variables, learning_rate)
        else:
            made = [(gradient, one, learning_rate) for gradient, one in zip(grads, trainable_variables, strict=True)]
        row = hook.begin_row(ring, ring.variable, grads, trainable_variables, position, learning_rate)
        for group in hook.groups(trainable_variables):
            pending = [
                hook.propose(variable, gradient, rate) if finite else hook.nothing(variable, gradient)
                for gradient, variable, rate in (made[place] for place in group)
            ]
            variables = [made[place][1] for place in group]
            hook.decide(row, pending, learning_rate, scalars)
            hook.measure(row, variables, functools.partial(list, pending))
            for variable, one in zip(variables, pending, strict=True):
                if finite:
                    hook.write(variable, one)
        hook.end_row(row, ring, ring.variable, scalars, position)


def place(hook: Hooked) -> Placement:
    return Placement(hook)


def cover_model(model: Any) -> None:
    pass


def uncover_model(model: Any) -> None:
    pass


def make_state(model: Any, data: Any) -> None:
    pass


def still(tensors: Any) -> Any:
    return tree.map_structure(_still, tensors)


def _still(one: Any) -> Any:
    if not isinstance(one, torch.Tensor):
        return one
    alone: Any = one.detach()
    alone._keras_mask = mask(one)
    return alone


def mask(tensor: Any) -> Any:
    return getattr(tensor, "_keras_mask", None)


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compiler.disable(function)


def reachable(tensor: Any) -> bool:
    return True


def replica_total() -> Callable[[list[Any]], list[Any]]:
    return lambda values: values


# --- state on the device


def scope(model: Any) -> AbstractContextManager[Any]:
    return nullcontext()


def sync(model: Any) -> None:
    pass


def adopt(optimizer: Any, state: Sequence[Any]) -> None:
    pass


def variables(optimizer: Any) -> Sequence[Any]:
    return optimizer.variables


def variable(value: Any, name: str) -> Any:
    return keras.Variable(value, trainable=False, dtype="bool" if isinstance(value, bool) else "float32", name=name)


def ring(rows: int, width: int) -> Any:
    return ops.zeros([rows, width])


def write_row(ring: Any, position: Any, row: Any) -> None:
    ring.index_copy_(0, _index(ring, position), row[None])


def read_row(ring: Any, position: Any, columns: int) -> Any:
    return ring.index_select(0, _index(ring, position))[0, :columns]


def _index(ring: Any, position: Any) -> Any:
    return torch.remainder(position, ring.shape[0]).to(torch.int64).reshape(1)


def take_rows(ring: Any, places: Indices) -> Any:
    return ring.index_select(0, torch.as_tensor(places, device=ring.device))
