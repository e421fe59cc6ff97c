"""Runs of a comparison by configuration: trials of one are a group, and a group has a divergence ratio. Pure.

Trials of one configuration should end close together; how often they diverge says more about it than its best run. With
few trials a ratio means little, so it comes with Wilson's 95 % interval.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lossguard.trace.compare import wilson
from lossguard.wire.numbers import to_json
from lossguard_service.store.runs import Run
from lossguard_service.web.words import share

MOST_KEYS: Final = 3
REPETITION: Final = frozenset({"seed", "trial", "versions", "rollbacks"})
"""What trials of one configuration may differ in."""


@dataclass(frozen=True, slots=True)
class Group:
    """Runs of one configuration.

    Attributes:
        name: "A", "B", ... in the order in which their first runs were chosen.
        differs: what sets it apart from the other groups, in words; empty if there is only one.
        places: the runs' places among all that are compared.
        diverged: how many of them diverged.
        ratio: how often, and within which interval, in words.
    """

    name: str
    differs: str
    places: tuple[int, ...]
    diverged: int
    ratio: str


def groups(runs: Sequence[Run]) -> tuple[Group, ...]:
    """The runs by configuration; one whose config says too little stands alone."""
    found: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        found.setdefault(_configuration(run.config) or f"run {place}", []).append(place)
    firsts = [flat(runs[places[0]].config) for places in found.values()]
    keys = [key for key in dict.fromkeys(key for one in firsts for key in one) if _differs(key, firsts)]
    result = []
    for number, (places, config) in enumerate(zip(found.values(), firsts, strict=True)):
        diverged = sum(runs[place].status == "diverged" for place in places)
        low, high = wilson(diverged, len(places))
        words = [f"{key} {config.get(key, 'not said')}" for key in keys[:MOST_KEYS]]
        more = [f"{len(keys) - MOST_KEYS} more"] if len(keys) > MOST_KEYS else []
        result.append(
            Group(
                chr(ord("A") + number),
                ", ".join(words + more),
                tuple(places),
                diverged,
                f"{diverged} of {len(places)}, {share(diverged / len(places))} (95 % interval {low:.0%} to {high:.0%})",
            )
        )
    return tuple(result)


def flat(config: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """A config's values by their path, without what says nothing.

    >>> flat({"optimizer": {"class": "Adam", "clipnorm": None}, "layers": []})
    {'optimizer.class': 'Adam'}
    """
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{key}.")
        elif value is not None and value != []:
            found[f"{above}{key}"] = value if isinstance(value, str) else json.dumps(to_json(value), ensure_ascii=False)
    return found


def _differs(key: str, configs: Sequence[Mapping[str, str]]) -> bool:
    return key.split(".")[0] not in REPETITION and len({one.get(key) for one in configs}) > 1


def _configuration(config: Mapping[str, Any]) -> str:
    """What runs of one group have in common; empty for a config that does not even name its optimizer."""
    if not config.get("optimizer"):
        return ""
    return json.dumps({key: to_json(config[key]) for key in sorted(config) if key not in REPETITION}, sort_keys=True)
