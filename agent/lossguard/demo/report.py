"""What the demo says at its end: one table for people, one document for programs."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lossguard.demo.features import TASKS
from lossguard.demo.run import Outcome
from lossguard.wire.numbers import to_json

_COLORS = {
    "healthy": "green",
    "recovered": "yellow",
    "diverged": "red",
    "pass": "green",
    "block": "red",
    "insufficient_data": "yellow",
}


def document(outcomes: Sequence[Outcome], service: str) -> dict[str, Any]:
    """The result for programs; NaN and the infinities by name."""
    runs = []
    for outcome in outcomes:
        incident = outcome.view.incident if outcome.view is not None else None
        runs.append(
            {
                "name": outcome.run,
                "status": outcome.view.status if outcome.view is not None else None,
                "onset_step": incident.onset_step if incident is not None else None,
                "detected_step": incident.detected_step if incident is not None else None,
                "metrics": outcome.metrics,
                "verdict": outcome.verdict,
                "reasons": list(outcome.reasons),
                "published": None if outcome.published is None else str(outcome.published),
                "treatment": outcome.treatment,
                "first_layer": incident.first_layer if incident is not None else None,
                "missing_steps": outcome.view.missing if outcome.view is not None else None,
                "judged_step": outcome.view.judged_step if outcome.view is not None else None,
                "seconds": round(outcome.seconds, 1),
                "page": outcome.page,
            }
        )
    return dict(to_json({"runs": runs, "service": service}))


def write(path: Path, outcomes: Sequence[Outcome], service: str) -> None:
    """Write the document, whole or not at all."""
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(document(outcomes, service), indent=1) + "\n")
    os.replace(draft, path)


def table(outcomes: Sequence[Outcome]) -> Table:
    """One row per run."""
    tasks = [task for task, kind in TASKS.items() if kind == "binary"]
    found = Table(title="Two trainings of one ranker", title_justify="left", box=SIMPLE_HEAD, padding=0)
    for name in ("run", "status", "onset"):
        found.add_column(name, no_wrap=True)
    found.add_column("first layer", overflow="fold")
    for task in tasks:
        found.add_column(f"AUC {task.replace('_', ' ')}", justify="right", max_width=6)
    found.add_column("verdict")
    for outcome in outcomes:
        incident = outcome.view.incident if outcome.view is not None else None
        status = outcome.view.status if outcome.view is not None else "unknown"
        found.add_row(
            outcome.run,
            Text(status, style=_COLORS.get(status, "")),
            str(incident.onset_step) if incident is not None else "–",
            (incident.first_layer or "–") if incident is not None else "–",
            *(f"{outcome.metrics[f'auc/{task}']:.3f}" for task in tasks),
            Text(outcome.verdict.replace("_", " "), style=_COLORS[outcome.verdict]),
        )
    return found
