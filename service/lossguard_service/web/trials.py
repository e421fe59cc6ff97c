"""Runs of a comparison by configuration: trials of one are a group, and a group has a divergence ratio. Pure.

What a configuration is, the store says, so that the gate counts the same trials. Trials of one should end close
together; how often they diverge says more about it than its best run. With few trials a ratio means little, so it comes
with Wilson's 95% interval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from lossguard.trace.compare import wilson
from lossguard_service.store.trials import configuration
from lossguard_service.web.words import said, share

MOST_KEYS: Final = 3


class Trial(Protocol):
    """A run, as far as grouping looks at it."""

    @property
    def config(self) -> Mapping[str, Any]:
        """What its first attempt said about itself: a rollback that changes the rate is part of the trial."""
        ...

    @property
    def status(self) -> str:
        """`healthy`, `recovered` or `diverged`."""
        ...


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


def groups(runs: Sequence[Trial]) -> tuple[Group, ...]:
    """The runs by configuration; one whose config says too little stands alone."""
    found: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        found.setdefault(configuration(run.config) or f"run {place}", []).append(place)
    firsts = [flat(runs[places[0]].config) for places in found.values()]
    keys = [key for key in dict.fromkeys(key for one in firsts for key in one) if _differs(key, firsts)]
    result = []
    for number, (places, config) in enumerate(zip(found.values(), firsts, strict=True)):
        diverged = sum(runs[place].status == "diverged" for place in places)
        low, high = wilson(diverged, len(places))
        words = [f"{key} {config[key]}" if key in config else f"no {key}" for key in keys[:MOST_KEYS]]
        more = [f"{len(keys) - MOST_KEYS} more"] if len(keys) > MOST_KEYS else []
        result.append(
            Group(
                chr(ord("A") + number),
                ", ".join(words + more),
                tuple(places),
                diverged,
                f"{diverged} of {len(places)}, {share(diverged / len(places), 2)} "
                f"(95% interval {share(low, 2)} to {share(high, 2)})",
            )
        )
    return tuple(result)


def flat(config: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """A config's values by their path, in words, without what says nothing.

    >>> flat({"optimizer": {"class": "Adam", "clipnorm": None}, "layers": [], "jit": True})
    {'optimizer.class': 'Adam', 'jit': 'yes'}
    """
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{key}.")
        elif value is not None and value != []:
            found[f"{above}{key}"] = said(value)
    return found


def _differs(key: str, configs: Sequence[Mapping[str, str]]) -> bool:
    return len({one.get(key) for one in configs}) > 1 and _counts(key)


def _counts(key: str) -> bool:
    """Whether another value at this path makes another configuration: that of a seed or a version does not."""

    def config(value: Any) -> dict[str, Any]:
        for part in reversed(key.split(".")):
            value = {part: value}
        return {"optimizer": "any", **value}

    return configuration(config("one")) != configuration(config("other"))
