"""Hugging Face `trainer_state.json`: its `log_history`, a list of {"step", "loss", "learning_rate", "grad_norm", ...}.

Evaluation entries ride along under their own names. Python's JSON writes NaN and Infinity bare, and so they are read.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from lossguard.trace.trace import Trace, TraceError, of_rows


def read(path: Path, given: Mapping[str, str]) -> Trace:
    """Read the log history.

    Raises:
        TraceError: not such a file.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        history = document["log_history"]
        rows = [
            (int(entry["step"]), {k: float(v) for k, v in entry.items() if k != "step" and _is_number(v)})
            for entry in history
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise TraceError(f"{path}: not a trainer_state.json with a log_history of steps ({error!r})") from None
    name = path.parent.name if path.stem == "trainer_state" and path.parent.name else path.stem
    try:
        return of_rows(name, rows, given, {k: v for k, v in document.items() if _is_number(v)})
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
