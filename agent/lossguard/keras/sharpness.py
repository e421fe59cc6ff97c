"""`Sharpness`: how near the training is to the edge of stability, measured now and then on a batch that is held.

Guarantees. `sharpness_ratio` is the top eigenvalue of the preconditioned Hessian over the largest that the optimizer
bears, which is 2 / eta without momentum (`lossguard.keras.preconditioner`): above 1 a quadratic loss would grow. It is
the paper's root cause of instability as a number (arXiv 2302.09178, section 3.2). Weights, slots, metrics and random
state of the training stay as they are; an error ends the probe, never the training.

How. Power iteration, begun where the last one ended: weights move little between two probes, so a few products with the
Hessian are enough (decision 0211). `sharpness_cost` says what a probe took, in evaluations of the batch's gradient.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import keras
import numpy as np

from lossguard.guard import guarded
from lossguard.keras.backends import backend
from lossguard.keras.held import compiled_loss
from lossguard.keras.preconditioner import preconditioner
from lossguard.keras.treatments.base import checked_patterns, is_number


class Curvature(Protocol):
    """The preconditioned Hessian, a module for each backend: `curvature`, `curvature_jax`, `curvature_torch`."""

    def turn(self, vectors: list[Any], shift: Any) -> tuple[list[Any], Any]:
        """One power step: the unit vectors (A + shift) v / |(A + shift) v| and the quotient v A v, for |v| = 1."""

    def gradient_norm(self) -> Any:
        """The norm of the loss's gradient."""


RATIO: Final = "sharpness_ratio"
COST: Final = "sharpness_cost"
SCALARS: Final = (RATIO, COST)

_NOTHING: Final[dict[str, float]] = {}


@dataclass(frozen=True, slots=True)
class _Probed:
    optimizer: Any
    curvature: Curvature
    limit: float
    shapes: list[tuple[int, ...]]
    gradient_seconds: float


class Sharpness:
    """The probe; give it to `Watch(sharpness=...)`. It needs one device and float32.

    Args:
        batch: the held batch, (x, y) or (x, y, sample_weight) as `fit` takes it; the compiled loss is computed of it. A
            few thousand examples: a product keeps about twice the activations that a training step does.
        loss: in the place of `batch` where no loss is compiled: a function of nothing that computes the scalar loss of
            a held batch, without dropout.
        every: steps between two probes. A probe stands between two executions of the compiled step, which wait for it.
        products: products with the Hessian in a probe at most.
        first_products: ... in the first one, which begins at a random vector.
        tolerance: a probe ends early when a product changes the eigenvalue by less than this share of it.
        exclude: regular expressions; layers whose paths match are no coordinates.

    Raises:
        ValueError: an argument is wrong; the message names it.

    Example:
        watch = Watch("ads", "ranker-7", sharpness=Sharpness((x[:4096], y[:4096]), every=1000))
    """

    def __init__(
        self,
        batch: tuple[Any, ...] | None = None,
        *,
        loss: Callable[[], Any] | None = None,
        every: int = 1000,
        products: int = 4,
        first_products: int = 30,
        tolerance: float = 1e-2,
        exclude: Sequence[str] = (),
    ) -> None:
        if (batch is None) == (loss is None):
            raise ValueError("batch: give either a held batch or a loss of one's own, and not both")
        if batch is not None and not (isinstance(batch, tuple) and len(batch) in (2, 3)):
            raise ValueError(f"batch: must be (x, y) or (x, y, sample_weight), got {type(batch).__name__}")
        if loss is not None and not callable(loss):
            raise ValueError(f"loss: must be a function of nothing, got {loss!r}")
        for name, number in {"every": every, "products": products, "first_products": first_products}.items():
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{name}: must be a whole number of at least 1, got {number!r}")
        if not (is_number(tolerance) and 0 <= tolerance < 1):
            raise ValueError(f"tolerance: must be at least 0 and below 1, got {tolerance!r}")
        self.every = every
        self._batch, self._loss = batch, loss
        self._products, self._first_products, self._tolerance = products, first_products, tolerance
        self._exclude = checked_patterns("exclude", exclude)
        self._probed: _Probed | None = None
        self._vectors: list[Any] | None = None
        self._shift = 0.0
        self._waiting = 0
        self._model: keras.Model | None = None
        self._optimizers: tuple[Any, ...] = ()
        self._ended = False

    def check(self, optimizers: Sequence[Any], model: keras.Model | None) -> None:
        """Refuse what cannot be probed, before training begins.

        Args:
            optimizers: the watched ones that update variables themselves.
            model: the attached one; None in a loop of one's own.

        Raises:
            ValueError: says what is in the way.
        """
        if len(optimizers) != 1:
            raise ValueError(f"sharpness: needs one optimizer, this training has {len(optimizers)}")
        preconditioner(optimizers[0])
        if self._batch is not None and model is None:
            raise ValueError("sharpness: without a compiled model give Sharpness a loss= in the place of a batch")
        if model is None and keras.backend.backend() == "jax":
            raise ValueError("sharpness: on JAX a loop of one's own keeps its weights to itself; it needs fit")
        if model is not None:
            strategy = getattr(model, "distribute_strategy", None)
            spread = strategy is not None and strategy.num_replicas_in_sync > 1
            if spread or keras.distribution.distribution() is not None:
                raise ValueError("sharpness: needs a training on one device; this one is replicated")
            rough = sorted({one.compute_dtype for one in model.layers} & {"float16", "bfloat16"})
            if rough:
                raise ValueError(f"sharpness: needs a model that computes in float32; this one does in {rough[0]}")
        self._model, self._optimizers = model, tuple(optimizers)

    def due(self, steps: int) -> bool:
        """Whether it is time for a probe.

        Args:
            steps: updates since the last question.
        """
        self._waiting += steps
        if self._ended or self._waiting < self.every:
            return False
        self._waiting = 0
        return True

    def probe(self) -> Mapping[str, float]:
        """The scalars of the step that was the last one; nothing if the probe fails, which then is never due again."""
        self._ended = True
        found = self._measure()
        self._ended = not found
        return found

    @guarded("Sharpness.probe", _NOTHING)
    def _measure(self) -> dict[str, float]:
        backend.sync(self._model)
        if self._probed is None:
            self._probed = self._prepare()
        probed = self._probed
        begin = time.perf_counter()
        eigenvalue = self._top(probed)
        cost = (time.perf_counter() - begin) / probed.gradient_seconds
        eta = float(keras.ops.convert_to_numpy(probed.optimizer._get_current_learning_rate()))
        return {RATIO: eta * eigenvalue / probed.limit, COST: cost}

    def _prepare(self) -> _Probed:
        (optimizer,) = self._optimizers
        variables = [
            variable
            for variable in optimizer._trainable_variables
            if not any(re.search(pattern, variable.path) for pattern in self._exclude)
        ]
        loss = self._loss
        if loss is None and self._model is not None and self._batch is not None:
            loss = compiled_loss(self._model, self._batch)
        if loss is None:
            raise RuntimeError("probe was called before check")
        known = preconditioner(optimizer)
        curvature = self._curvature(loss, variables, known.diagonal)
        shapes = [tuple(variable.shape) for variable in variables]
        # The first calls compile, and are not what a probe costs.
        curvature.turn(_random(shapes), np.float32(0.0))
        seconds = min(_seconds(curvature.gradient_norm) for _ in range(4))
        return _Probed(optimizer, curvature, known.limit, shapes, seconds)

    def _curvature(
        self, loss: Callable[[], Any], variables: Sequence[Any], diagonal: Callable[[Any], Any] | None
    ) -> Curvature:
        if keras.backend.backend() == "jax":
            from lossguard.keras import curvature_jax

            read = [] if self._model is None else [*self._model.variables, *backend.variables(self._optimizers[0])]
            return curvature_jax.Curvature(loss, variables, diagonal, read)
        if keras.backend.backend() == "torch":
            from lossguard.keras import curvature_torch

            return curvature_torch.Curvature(loss, variables, diagonal)
        from lossguard.keras import curvature

        return curvature.Curvature(loss, variables, diagonal)

    def _top(self, probed: _Probed) -> float:
        limit = self._products if self._vectors is not None else self._first_products
        vectors = self._vectors if self._vectors is not None else _random(probed.shapes)
        # Power iteration finds what is largest in size. Where that is negative, adding `shift` to all eigenvalues makes
        # the top one the largest.
        self._shift /= 2.0
        quotient = np.nan
        for _ in range(limit):
            before = quotient
            vectors, found = probed.curvature.turn(vectors, np.float32(self._shift))
            quotient = float(found)
            if quotient < -self._shift:
                self._shift = -quotient
            elif abs(quotient - before) <= self._tolerance * abs(quotient):
                break
        # A direction with a NaN in it would stay one for ever.
        self._vectors = vectors if np.isfinite(quotient) else None
        return quotient


def _random(shapes: list[tuple[int, ...]]) -> list[Any]:
    """A random unit vector, the same every time, and from no generator that the training draws from."""
    generator = np.random.default_rng(0)
    parts = [generator.standard_normal(shape, np.float32) for shape in shapes]
    length = np.sqrt(sum(float(np.vdot(part, part)) for part in parts))
    return [keras.ops.convert_to_tensor(part / np.float32(length)) for part in parts]


def _seconds(function: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    float(function())
    return time.perf_counter() - begin
