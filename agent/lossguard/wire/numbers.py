"""NaN and the infinities in JSON.

JSON has no words for them, so they travel as the strings "NaN", "Infinity" and "-Infinity": never as null, never
dropped, never replaced by a large number (what that does to users: docs/decisions/0003-nonfinite-is-data.md).
"""

import json
import math
from collections.abc import Mapping
from typing import Any

_AS_IT_IS = frozenset({str, int, bool, type(None)})
_NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def to_json_number(value: float) -> float | str:
    """The value as JSON can carry it.

    >>> to_json_number(float("nan")), to_json_number(1.5)
    ('NaN', 1.5)
    """
    value = float(value)
    if math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def from_json_number(value: float | str) -> float:
    """The inverse of `to_json_number`.

    Raises:
        ValueError: a string that is none of the three names.
    """
    if isinstance(value, str):
        if value not in _NAMES:
            raise ValueError(f'expected a number, "NaN", "Infinity" or "-Infinity", got {value!r}')
        return _NAMES[value]
    return float(value)


def to_json(value: Any) -> Any:
    """A copy of a JSON-like value with every non-finite float as its name."""
    if type(value) in _AS_IT_IS:  # most values; to ask whether one is a Mapping costs ten times as much
        return value
    if isinstance(value, float):
        return to_json_number(value)
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def canonical_json(value: Any) -> bytes:
    """The one byte string of a JSON-like value: sorted keys, no spaces, UTF-8. What digests and signatures cover."""
    return json.dumps(
        to_json(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()
