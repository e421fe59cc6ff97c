"""What measuring costs on this device, clocked once a process, since nothing inside a compiled step has a clock.

Guarantees. A price is seconds a layer plus seconds an entry, from the same functions that the step calls, compiled in
the same way, run on made-up layers: many small ones and one about as large as the training's largest, of two million
entries at most. What calling costs, which a step pays once and not for each layer, is clocked with a function that does
nothing and taken off. Once a process, size and kind of compilation; the training's own tensors are not touched. What a
step fuses with its update is cheaper than this, so the price is an upper bound where the compiler fuses.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from keras import ops

from lossguard.guard import guarded
from lossguard.keras import measure
from lossguard.keras.backends import backend
from lossguard.keras.budget import StepPrice

SMALL: Final = 16
LARGE: Final = 1 << 21
LEAST: Final = 1 << 16
TURNS: Final = 7
FREE: Final = StepPrice(0.0, 0.0)


@guarded("price_of", FREE)
def price_of(entries: Sequence[int], *, jit: bool) -> StepPrice:
    """The price of a step that measures layers of so many entries.

    Args:
        entries: of each layer.
        jit: whether the step is compiled by XLA.
    """
    prices = _prices(jit, _size(max(entries, default=0)))
    cheap, rest = (len(entries) * layer + sum(entries) * entry for layer, entry in prices)
    return StepPrice(cheap, rest)


def _size(entries: int) -> int:
    """Of the large made-up layer: a power of two, so that trainings alike share a price."""
    return min(LARGE, max(LEAST, 1 << (entries - 1).bit_length()))


@functools.cache
def _prices(jit: bool, size: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """(seconds a layer, seconds an entry) of the cheap set and of the rest."""
    random = np.random.default_rng(0)
    small = [tuple(random.standard_normal((3, 4), np.float32)) for _ in range(SMALL)]
    large = [tuple(random.standard_normal((3, size), np.float32))]
    return _price(_cheap, small, large, jit), _price(_rest, small, large, jit)


def _price(function: Callable[[Any], Any], small: list[Any], large: list[Any], jit: bool) -> tuple[float, float]:
    one, many, big = (_seconds(function, layers, jit) for layers in (small[:1], small, large))
    return max(0.0, (many - one) / (SMALL - 1)), max(0.0, (big - one) / len(large[0][0]))


def _seconds(function: Callable[[Any], Any], layers: list[Any], jit: bool) -> float:
    """Of computing alone."""
    given = [tuple(ops.convert_to_tensor(part) for part in layer) for layer in layers]
    return _least(backend.compiled(function, jit), given) - _least(backend.compiled(_nothing, jit), given)


def _least(function: Callable[[Any], Any], given: list[Any]) -> float:
    taken = []
    for _ in range(TURNS + 1):
        begin = time.perf_counter()
        ops.convert_to_numpy(function(given))
        taken.append(time.perf_counter() - begin)
    # The least: what else runs on the machine only adds. The first turn compiles.
    return min(taken[1:])


def _nothing(layers: list[Any]) -> Any:
    return layers[0][0][:1]


def _cheap(layers: list[Any]) -> Any:
    return measure.norms([gradient for _, gradient, _ in layers])


def _rest(layers: list[Any]) -> Any:
    limits = measure.LAMBDA_REL, measure.LAMBDA_ABS
    looks = [measure.extremes(weight, gradient, update, *limits) for weight, gradient, update in layers]
    norms = measure.norms([tensor for weight, _, update in layers for tensor in (weight, update)])
    return ops.concatenate([norms, ops.stack([value for look in looks for value in look.values()])], 0)
