"""Markdown of the results: tables, and numbers as people read them."""

from collections.abc import Mapping, Sequence
from typing import Any

from lossguard.wire.numbers import from_json_number


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def percent(spread: Mapping[str, Any]) -> str:
    """A mean with its deviation, times 100."""
    return plus_minus(spread, 2, 100.0)


def plus_minus(spread: Mapping[str, Any], digits: int, scale: float = 1.0) -> str:
    """A mean with its deviation."""
    mean, deviation = (scale * from_json_number(spread[name]) for name in ("mean", "sd"))
    if mean != mean:
        return "n/a"
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}" if deviation == deviation else f"{mean:.{digits}f}"


def interval(ratio: Mapping[str, Any]) -> str:
    """A ratio with its interval."""
    return f"{ratio['hits']}/{ratio['trials']} ({100 * ratio['low']:.0f} - {100 * ratio['high']:.0f} %)"


def number(value: Any, digits: int = 3) -> str:
    """A number, in powers of ten where it is far from one."""
    value = from_json_number(value)
    return f"{value:.{digits}g}"


def counts(found: Mapping[str, int]) -> str:
    """Labels with their counts."""
    return ", ".join(f"{name} {count}" for name, count in found.items())
