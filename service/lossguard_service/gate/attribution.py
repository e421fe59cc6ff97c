"""Is the export the run's checkpoint of that step? The norms of its tensors against those that the training reported.

Guarantees. Pure. A layer's `weight_norm` at step s is that of its weights before the update of s, so the exported
tensor's norm lies within the length of that update of it (the triangle inequality), and is the `weight_norm` of step
s + 1 where that was measured. Tensors are found by their norms alone, each for one layer: their names differ between
formats. What cannot be compared is never a contradiction: it says why, and a policy with `weights_required` wants more.

What it cannot see: steps and runs whose norms are alike, such as those just before and after.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from lossguard.wire.verdict import Check
from lossguard_service.gate.facts import Facts, Norm, Scan, Weights
from lossguard_service.gate.policy import Policy

_NAME: Final = "attribution"
STORED: Final = 2.0**-11
"""How far a stored norm may lie from the measured one, as a share: chunks keep 10 bits of a stat's mantissa."""
ROUNDING: Final = {64: 1e-4, 32: 1e-4, 16: 1e-2}
"""How far the norm of an unchanged tensor may differ, by the bits of its numbers: both sums are of rounded numbers."""
TELLING: Final = 0.1
"""A layer that the step moves by more than this share of its norm tells nothing about whose it is."""
WHOLE: Final = 0.9
"""An export with a smaller share of the parameters is a part of the model: what is missing contradicts nothing."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a layer's norm must lie."""

    layer: str
    low: float
    high: float


def attribution_checks(policy: Policy, facts: Facts) -> tuple[Check, ...]:
    """Whether the bytes were blocked as another export, and whether the weights are those of the run at that step."""
    if policy.attribution_required and facts.blocked_as:
        before = facts.blocked_as[0]
        return (
            Check(
                _NAME, "block", f"{before.run} step {before.step}", "not blocked as another export",
                f"The same bytes were blocked as the export of step {before.step} of run {before.run} (verdict "
                f"{before.verdict}), and an export is of one run and one step. If that was asked by mistake, whoever "
                "knows which run made it may waive this check.",
            ),
        )  # fmt: skip
    if policy.weights_compared or policy.weights_required:
        return (_compared(policy, facts),)
    if not policy.attribution_required:
        return ()
    limit = "not blocked as another export"
    return (Check(_NAME, "pass", None, limit, "The same bytes were not blocked as another run's or step's export."),)


def _compared(policy: Policy, facts: Facts) -> Check:
    places = [] if facts.weights is None else _places(facts.weights)
    why = _incomparable(facts, places)
    if why:
        return _not_judged(policy, why)
    assert facts.scan is not None
    norms = facts.scan.norms
    lost = _lost(places, list(norms.values()))
    found, limit = len(places) - len(lost), f"most of {len(places)} layers"
    if 2 * found >= len(places):
        rest = f" Not found: {', '.join(place.layer for place in lost[:3])}." if lost else ""
        return Check(
            _NAME, "pass", found, limit,
            f"The export's weights are those of run {facts.run} at step {facts.step}, as far as norms tell: "
            f"{found} of {len(places)} layers were found.{rest}",
        )  # fmt: skip
    part = _part(facts.weights, facts.scan, len(places))
    if part:
        return _not_judged(policy, part)
    worst, nearest = _worst(lost, norms)
    return Check(
        _NAME, "block", found, limit,
        f"The export's weights are not those of run {facts.run} at step {facts.step}: the norms of {len(lost)} of "
        f"{len(places)} layers are of none of its tensors. Layer {worst.layer} had a norm of {worst.low:.6g} to "
        f"{worst.high:.6g}, and the nearest that the export holds is {nearest:.6g}. Correct --run and --step. If the "
        "weights were averaged, or changed after the training, say so in the run's config: averaged_weights: true.",
    )  # fmt: skip


def _not_judged(policy: Policy, why: str) -> Check:
    text = f"Whether the export's weights are the run's at that step was not judged: {why}."
    limit = "comparable weights"
    if policy.weights_required:
        return Check(_NAME, "insufficient_data", None, limit, f"{text} Policy {policy.name} wants to know.")
    return Check(_NAME, "pass", None, limit, text)


def _incomparable(facts: Facts, places: Sequence[_Place]) -> str:
    """Why nothing can be compared; empty if something can."""
    scan, weights = facts.scan, facts.weights
    if weights is not None and weights.averaged:
        return "the run says that it averages its weights (use_ema, or averaged_weights in its config)"
    if scan is None or not scan.complete:
        return "the export's tensors were not all read"
    if not scan.norms:
        return "the agent sent no norms of the export's tensors (an older one sends none, nor of more than 4000)"
    if weights is None or not (weights.before or weights.after):
        return (
            f"the norms of the layers were measured neither at step {facts.step} nor at the next. Export at the end of "
            "the training or of an epoch, say watch.checkpoint(path) where you save, or watch with full_every=1"
        )
    if not places:
        return f"step {facts.step} moved every layer so far that their norms tell nothing"
    return ""


def _part(weights: Weights | None, scan: Scan, layers: int) -> str:
    """Why the export is not the whole model in floats; empty if it is."""
    values = sum(norm.values for norm in scan.norms.values())
    if weights is not None and weights.parameters and values < WHOLE * weights.parameters:
        return (
            f"it holds {values} of the {weights.parameters:.0f} parameters as floats: a part of the model, or a "
            "quantized one"
        )
    if len(scan.norms) < layers:
        return f"it holds {len(scan.norms)} tensors of floats and the run {layers} layers, so it is another form of it"
    return ""


def _places(weights: Weights) -> list[_Place]:
    """The layers whose norms tell something, and where they must lie."""
    places = []
    for layer in {**weights.before, **weights.after}:
        norm, moved = weights.before.get(layer, (math.nan, math.nan))
        if not (norm > 0 and moved <= TELLING * norm):
            norm, moved = weights.after.get(layer, math.nan), 0.0
        if math.isfinite(norm) and norm > 0:
            slack = moved + STORED * (norm + moved)
            places.append(_Place(layer, norm - slack, norm + slack))
    return places


def _lost(places: Sequence[_Place], norms: Sequence[Norm]) -> list[_Place]:
    """The layers that are left when as many as possible have a tensor of their own.

    Of the layers whose place begins below a tensor's norm, the one whose place ends first takes it, which is the best
    that can be done with points and intervals. What a tensor's rounding allows widens the tensor, so both ends are
    compared with what it may have been.
    """
    waiting = sorted(places, key=lambda place: place.low)
    open_places: list[tuple[float, int, _Place]] = []
    lost: list[_Place] = []
    at = 0
    for norm in sorted(norms, key=lambda one: one.norm):
        slack = ROUNDING.get(norm.bits, ROUNDING[16]) * norm.norm
        while at < len(waiting) and waiting[at].low <= norm.norm + slack:
            heapq.heappush(open_places, (waiting[at].high, at, waiting[at]))
            at += 1
        while open_places and open_places[0][0] < norm.norm - slack:
            lost.append(heapq.heappop(open_places)[2])
        if open_places:
            heapq.heappop(open_places)
    return [*lost, *(one[2] for one in open_places), *waiting[at:]]


def _worst(lost: Sequence[_Place], norms: Mapping[str, Norm]) -> tuple[_Place, float]:
    """The layer whose nearest tensor is the farthest, in shares of its norm, and that tensor's norm."""

    def distance(place: _Place, norm: float) -> float:
        return max(place.low - norm, norm - place.high, 0.0) / place.high

    def nearest(place: _Place) -> float:
        return min((norm.norm for norm in norms.values()), key=lambda norm: distance(place, norm))

    worst = max(lost, key=lambda place: distance(place, nearest(place)))
    return worst, nearest(worst)
