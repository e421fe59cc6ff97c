"""What measuring costs on this device, clocked once a process, since nothing inside a compiled step has a clock.

Guarantees. A price is seconds a layer plus seconds an entry, from the same functions that the step calls, compiled in
the same way, run on made-up layers: four of four entries, and one of 2**17, which with what is computed on the way
takes 5 MiB of the host's memory (on an accelerator 2**21, in its own). They are compiled by another thread than the
training's, which is held for the clocking alone, some ten milliseconds between two executions. What calling costs,
which a step pays once and not for each layer, is clocked with a function that computes nothing and taken off. Once a
process and kind of compilation; the training's own tensors are not touched. What a step fuses with its update is
cheaper than this, so the price is an upper bound where the compiler fuses.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from keras import ops

from lossguard.guard import guarded
from lossguard.keras import measure
from lossguard.keras.backends import backend
from lossguard.keras.budget import StepPrice

SMALL: Final = 4
FEW: Final = 4
LARGE: Final = 1 << 17
"""Entries of three tensors that stay in a core's cache, where each turn finds them again."""
LARGE_BESIDE: Final = 1 << 21
BEYOND_CACHE: Final = 2.0
"""What an entry of a layer larger than `LARGE` costs over one in the cache: of 1.4 to 2.8 measured (decision 0216)."""
TURNS: Final = 7


class Rate(NamedTuple):
    """Seconds of one set of stats.

    Attributes:
        layer, entry: for each of them.
    """

    layer: float
    entry: float


class Clock:
    """Of the trainings of a process that are compiled in one way.

    Args:
        jit: whether by XLA.

    Attributes:
        begun: whether somebody has been asked to `prepare` it, which is for the caller to say.
        ready: whether that is done.
    """

    def __init__(self, jit: bool) -> None:
        self._jit = jit
        self._given: dict[str, Any] = {}
        self._functions: dict[str, Callable[[Any], Any]] = {}
        self._rates: tuple[Rate, Rate] | None = None
        self._beyond = 1.0
        self.begun = False
        self.ready = False

    @guarded("Clock.prepare", None)
    def prepare(self) -> None:
        """Make the layers and compile the functions; in any thread. The most that there is to do."""
        on_host = backend.on_host()
        self._beyond = BEYOND_CACHE if on_host else 1.0
        # All layers in one argument, three rows for each: a call of TensorFlow's takes longer with every tensor.
        self._given = {
            "small": ops.full((3 * SMALL, FEW), 0.5, "float32"),
            "large": ops.full((3, LARGE if on_host else LARGE_BESIDE), 0.5, "float32"),
        }
        self._functions = {one.__name__: backend.compiled(one, self._jit) for one in (_nothing, _cheap, _rest)}
        for function in self._functions.values():
            for given in self._given.values():
                ops.convert_to_numpy(function(given))
        self.ready = True

    def price(self, entries: Sequence[int]) -> StepPrice:
        """Of a step that measures layers of so many entries; once it is ready. The first call clocks.

        Args:
            entries: of each layer.
        """
        if self._rates is None:
            self._rates = self._rate("_cheap"), self._rate("_rest")
            # Their memory is wanted elsewhere.
            self._given, self._functions = {}, {}
        weighed = sum(count * (self._beyond if count > LARGE else 1.0) for count in entries)
        cheap, rest = (len(entries) * rate.layer + weighed * rate.entry for rate in self._rates)
        return StepPrice(cheap, rest)

    @guarded("Clock.rate", Rate(0.0, 0.0))
    def _rate(self, name: str) -> Rate:
        function, nothing = self._functions[name], self._functions[_nothing.__name__]
        small, large = (_least(function, given) - _least(nothing, given) for given in self._given.values())
        layer = max(0.0, small / SMALL)
        return Rate(layer, max(0.0, (large - layer) / self._given["large"].shape[-1]))


@functools.cache
def clock_of(jit: bool) -> Clock:
    """This process's."""
    return Clock(jit)


def _least(function: Callable[[Any], Any], given: Any) -> float:
    """Seconds: what else runs on the machine only adds."""
    taken = []
    for _ in range(TURNS):
        begin = time.perf_counter()
        ops.convert_to_numpy(function(given))
        taken.append(time.perf_counter() - begin)
    return min(taken)


def _layers(packed: Any) -> list[tuple[Any, Any, Any]]:
    """Weight, gradient and update of each."""
    rows = ops.unstack(packed, axis=0)
    return list(zip(rows[0::3], rows[1::3], rows[2::3], strict=True))


def _nothing(packed: Any) -> Any:
    return _layers(packed)[0][0][:1]


def _cheap(packed: Any) -> Any:
    return measure.norms([gradient for _, gradient, _ in _layers(packed)])


def _rest(packed: Any) -> Any:
    layers = _layers(packed)
    limits = measure.LAMBDA_REL, measure.LAMBDA_ABS
    looks = [measure.extremes(weight, gradient, update, *limits) for weight, gradient, update in layers]
    norms = measure.norms([tensor for weight, _, update in layers for tensor in (weight, update)])
    return ops.concatenate([norms, ops.stack([value for look in looks for value in look.values()])], 0)
