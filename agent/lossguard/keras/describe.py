"""What an attempt's config says about its training, and the checks of `Watch`'s arguments."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import keras

import lossguard
from lossguard.keras.backends import backend
from lossguard.keras.coverage import MEASURED, Coverage
from lossguard.keras.treatments.base import Treatment


def describe(optimizer: Any, coverage: Coverage) -> dict[str, Any]:
    """Coverage, optimizer and versions, JSON-like.

    Args:
        optimizer: the first that is watched.
        coverage: what the watch covers.
    """
    return {
        "parameters": coverage.parameters,
        "parameters_watched": coverage.watched,
        "layers_watched": sum(one.how == MEASURED for one in coverage.weights),
        "layers_unwatched": sorted(coverage.unwatched),
        "optimizer": {"class": type(optimizer).__name__, **_plain(optimizer.get_config())},
        "versions": {
            "lossguard": lossguard.__version__,
            "keras": keras.__version__,
            keras.backend.backend(): backend.version(),
            "python": platform.python_version(),
        },
    }


def _plain(value: Any) -> Any:
    """A config as JSON takes it; what it does not know becomes text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return float(value) if hasattr(value, "dtype") and getattr(value, "shape", None) == () else str(value)


def checked_journal(journal: str | os.PathLike[str]) -> Path:
    """The journal's folder, if it is one that can be written or made.

    Raises:
        ValueError: it is not.
    """
    try:
        folder = Path(journal)
    except TypeError:
        raise ValueError(f"journal: must be a folder, got {journal!r}") from None
    if "\0" in str(folder) or not os.fspath(journal):
        raise ValueError(f"journal: must be a folder, got {journal!r}")
    nearest = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not nearest.is_dir():
        raise ValueError(f"journal: {nearest} is not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"journal: {nearest} is not writable")
    return folder


def checked_service(service: str | None) -> str | None:
    """The service's URL, or None.

    Raises:
        ValueError: it is no URL.
    """
    parts = urlsplit(service) if isinstance(service, str) else None
    if service is not None and (parts is None or parts.scheme not in ("http", "https") or not parts.hostname):
        raise ValueError(f"service: must be a URL like http://host:port, got {service!r}")
    return service


def checked_counts(**counts: int) -> None:
    """Check whole numbers of at least 1, by their names.

    Raises:
        ValueError: one is none.
    """
    for name, number in counts.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name}: must be a whole number of at least 1, got {number!r}")


def checked_treatments(treatment: Treatment | Sequence[Treatment] | None) -> tuple[Treatment, ...]:
    """None, one or several treatments as a tuple.

    Raises:
        ValueError: something in it is no treatment.
    """
    given: Any = treatment
    are_several = isinstance(given, Sequence) and not isinstance(given, str)
    several = [] if given is None else list(given) if are_several else [given]
    for one in several:
        known = all(hasattr(one, name) for name in ("applies_to", "describe"))
        if isinstance(one, type) or not known or not (hasattr(one, "factor") or hasattr(one, "step_factors")):
            raise ValueError(f"treatment: {one!r} is not a treatment; did you mean Clippy()?")
    return tuple(several)
