"""The heat map of a saved run: layers down, steps across, colour for how far a layer was from its own past.

A cell is the largest of the bucket's values of one stat, as the robust deviations of its logarithm from the layer's own
median: what a layer usually does is pale, whatever its size. A cell in which something was not finite is black.
"""

import html
from collections.abc import Callable, Sequence

import numpy as np

from lossguard.wire.frame import Floats64, Frames
from lossguard.wire.incident import Incident
from lossguard.wire.stats import CLIPPY_RATIO, GRADIENT_NORM, NONFINITE_COUNT, UPDATE_NORM, WEIGHT_NORM

COLUMNS = 240
"""Cells across: four screen points each."""
ROWS = 60
"""Layers shown: those that went furthest, in the model's order."""
ROW_HEIGHT = 13
SCALE_FLOOR = 0.05
"""As `lossguard.detect.layers`: below five per cent a change means nothing."""
FULL_SCALES = 24.0
"""The darkest red; the first tint stands at 3."""
STATS = (GRADIENT_NORM, UPDATE_NORM, CLIPPY_RATIO, WEIGHT_NORM)
"""Which stat is drawn: the first of these that the run has."""


def chart(attempts: Sequence[Frames], incidents: Sequence[Incident], width: int, margin: int) -> str:
    """The heat map as SVG; empty where the run has no layers or none of the stats."""
    frames = attempts[-1]
    stat = next((name for name in STATS if name in frames.schema.stats), None)
    if stat is None or not frames.schema.layers or len(frames) < 2:
        return ""
    heights, broken = _cells(frames, stat)
    shown = np.sort(np.argsort(-np.nanmax(np.where(broken, np.inf, heights), axis=0), kind="stable")[:ROWS])
    first, last = float(frames.steps[0]), float(frames.steps[-1])
    left = margin + 120

    def x(step: float) -> float:
        return left + (width - left - 8) * min(max((step - first) / (last - first), 0.0), 1.0)

    tall = 18 + ROW_HEIGHT * len(shown) + 18
    cell = (width - left - 8) / len(heights)
    parts = []
    for row, i in enumerate(shown.tolist()):
        y, name = 18 + ROW_HEIGHT * row, frames.schema.layers[i]
        short = name if len(name) <= 28 else "…" + name[-27:]
        parts.append(
            f"<text x='{left - 6}' y='{y + 10}' text-anchor='end'>{html.escape(short)}"
            f"<title>{html.escape(name)}</title>"
            "</text>"
        )
        parts += _row(heights[:, i], broken[:, i], left, cell, y)
    several = f", the last of {len(attempts)} attempts" if len(attempts) > 1 else ""
    left_out = len(frames.schema.layers) - len(shown)
    rest = f"; {left_out} layers that stayed calmer are left out" if left_out else ""
    return (
        f"<svg viewBox='0 0 {width} {tall}' width='{width}' role='img' aria-label='layers over steps'>"
        f"<text x='{margin}' y='10'>{stat.replace('_', ' ')} of each layer, in deviations from its own median{several}"
        f"{rest}</text>{''.join(parts)}{_marks(incidents, x, tall)}{_axis(first, last, x, tall)}</svg>"
    )


def _cells(frames: Frames, stat: str) -> tuple[Floats64, np.ndarray]:
    """How far each layer was in each bucket of steps, and where something was not finite [B, L]."""
    k = frames.schema.stats.index(stat)
    here = frames.stats_present[:, k]
    values = frames.stats[here, :, k].astype(np.float64)
    edges = np.linspace(0, len(values), min(COLUMNS, len(values)) + 1).astype(int)[:-1]
    bad = ~np.isfinite(values)
    if NONFINITE_COUNT in frames.schema.stats:
        bad |= frames.stats[here, :, frames.schema.stats.index(NONFINITE_COUNT)] > 0
    with np.errstate(all="ignore"):
        logs = np.log(np.maximum(np.where(np.isfinite(values), values, np.nan), 1e-30))
        middle = np.nanmedian(logs, axis=0)
        scale = np.fmax(1.4826 * np.nanmedian(np.abs(logs - middle), axis=0), SCALE_FLOOR)
        heights = np.maximum.reduceat(np.nan_to_num((logs - middle) / scale, nan=0.0), edges, axis=0)
    return heights, np.logical_or.reduceat(bad, edges, axis=0)


def _row(heights: Floats64, broken: np.ndarray, left: float, cell: float, y: int) -> list[str]:
    """One layer's cells; neighbours of one colour are one rectangle, calm ones none."""
    colours = [
        "#111" if bad else _colour(height) for height, bad in zip(heights.tolist(), broken.tolist(), strict=True)
    ]
    parts, start = [], 0
    for at in range(1, len(colours) + 1):
        if at < len(colours) and colours[at] == colours[start]:
            continue
        if colours[start]:
            parts.append(
                f"<rect x='{left + start * cell:.1f}' y='{y}' width='{(at - start) * cell:.1f}' "
                f"height='{ROW_HEIGHT - 1}' fill='{colours[start]}'/>"
            )
        start = at
    return parts


def _colour(height: float) -> str:
    """Pale for what a layer usually does, red for what is far above it, in eight tints."""
    if height < 3:
        return ""
    level = round(7 * min(np.log2(height / 3) / np.log2(FULL_SCALES / 3), 1.0))
    return f"hsl(8 85% {92 - 8 * level}%)"


def _marks(incidents: Sequence[Incident], x: Callable[[float], float], tall: int) -> str:
    """A line at each onset."""
    return "".join(
        f"<line x1='{x(one.onset_step):.1f}' x2='{x(one.onset_step):.1f}' y1='14' y2='{tall - 18}' stroke='#1565c0' "
        f"stroke-dasharray='3 3'><title>{html.escape(one.explanation)}</title></line>"
        for one in incidents
        if one.severity != "info"
    )


def _axis(first: float, last: float, x: Callable[[float], float], tall: int) -> str:
    return "".join(
        f"<text x='{x(step):.0f}' y='{tall - 6}' text-anchor='middle'>{step:.0f}</text>"
        for step in np.linspace(first, last, 6)
    )
