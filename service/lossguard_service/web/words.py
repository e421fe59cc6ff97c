"""How the pages say numbers, times, states and names: pure, and the only place that does.

NaN and the infinities are words here too, never blanks. Every label stands beside a colour and a shape, so that no
state is told by colour alone.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from lossguard.wire.numbers import from_json_number

KINDS: Final = {
    "full_divergence": "Full divergence",
    "micro_divergence": "Micro-divergence",
    "nonfinite": "NaN or Inf",
    "no_update": "Weights stopped moving",
    "stalled": "Stalled",
    "loss_spike": "Loss spike",
    "periodic_loss": "Periodic loss",
    "unconverged_layer": "Unconverged layer",
    "dead_units": "Dead units",
    "learning_rate_not_decayed": "Learning rate not decayed",
    "distribution_shift": "Distribution shift",
    "overclipped": "Overclipped",
    "regime_change": "Regime change",
}
"""Incident kinds as headings."""

STATES: Final = {
    "diverged": "Diverged",
    "recovered": "Recovered",
    "healthy": "Healthy",
}

PHASES: Final = {
    "running": "Training",
    "stalled": "Silent",
    "finished": "Finished",
    "interrupted": "Interrupted",
    "failed": "Failed",
}

OUTCOMES: Final = {
    "pass": "Pass",
    "block": "Block",
    "insufficient_data": "Insufficient data",
}


def number(value: float | str | None, digits: int = 4) -> str:
    """A value for reading, with so many significant digits.

    >>> number(0.66789), number(1234567.0), number(float("nan")), number("-Infinity"), number(None), number(2.5e-7)
    ('0.6679', '1.235e6', 'NaN', '-∞', 'none', '2.5e-7')
    """
    if value is None:
        return "none"
    if isinstance(value, str):
        value = from_json_number(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10**6 or size < 10**-4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        if "." in mantissa:
            mantissa = mantissa.rstrip("0").rstrip(".")
        return f"{mantissa}e{int(exponent)}"
    places = max(0, digits - 1 - math.floor(math.log10(size)))
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def whole(value: int | None) -> str:
    """A count or a step.

    >>> whole(1234567), whole(None)
    ('1,234,567', 'none')
    """
    return "none" if value is None else f"{value:,}"


def count(value: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun.

    >>> count(1, "step"), count(1200, "step"), count(0, "entry", "entries")
    ('1 step', '1,200 steps', '0 entries')
    """
    return f"{value:,} {noun if value == 1 else plural or noun + 's'}"


def share(value: float, digits: int = 3) -> str:
    """A ratio as a percentage, spelled as the detectors and the gate spell it.

    >>> share(0.034), share(12.5), share(0.5615, 2), share(float("inf"))
    ('3.4%', '1,250%', '56%', '∞')
    """
    return f"{number(value * 100, digits)}%" if math.isfinite(value) else number(value)


def said(value: Any) -> str:
    """What a trainer said about itself, in words and not as JSON.

    >>> said([{"name": "Clippy", "lambda_rel": 0.5, "exclude": ["embed"]}]), said([]), said(0.1), said(True)
    ('Clippy (lambda_rel 0.5, exclude embed)', 'none', '0.1', 'yes')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping):
        rest = ", ".join(f"{key} {said(one)}" for key, one in value.items() if key != "name")
        name = value.get("name")
        return f"{name} ({rest})" if name and rest else str(name or rest or "none")
    if isinstance(value, list | tuple):
        return ", ".join(map(said, value)) or "none"
    return str(value)


def duration(seconds: float) -> str:
    """A stretch of time, in its one or two largest units.

    >>> duration(4), duration(75), duration(3700), duration(200000)
    ('4 s', '1 min', '1 h 1 min', '2 d 7 h')
    """
    total = max(0, round(seconds))
    if total < 60:
        return f"{total} s"
    minutes = total // 60
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    days, rest = divmod(hours, 24)
    return f"{days} d {rest} h" if rest else f"{days} d"


def listing(names: Sequence[str], most: int = 3) -> str:
    """Names as a sentence says them.

    >>> listing(["a"]), listing(["a", "b"]), listing(["a", "b", "c", "d", "e"])
    ('a', 'a and b', 'a, b, c and 2 more')
    """
    if len(names) <= most:
        return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
    return f"{', '.join(names[:most])} and {len(names) - most} more"


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence.

    >>> first_sentence("AUC fell to 0.5. Do not serve it.")
    'AUC fell to 0.5.'
    """
    head, stop, _ = text.partition(". ")
    return head + stop.strip()


def run_path(project: str, run: str) -> str:
    """The run's page."""
    return f"/runs/{quote(project, safe='')}/{quote(run, safe='')}"


def incident_path(project: str, run: str, sequence: int) -> str:
    """The incident's page."""
    return f"{run_path(project, run)}/incidents/{sequence}"
