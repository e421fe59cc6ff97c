"""Both verdicts about a recorded run: that of the detectors and that of hindsight."""

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import lossguard
from lab import hindsight
from lab.config import CLICK, Config
from lossguard.demo.features import TASKS
from lossguard.detect import monitor
from lossguard.wire.frame import Floats64, Frames

KEPT = ("kind", "onset_step", "detected_step", "end_step", "first_layer", "tasks", "residual")


@cache
def version() -> str:
    """SHA-256 of the code that judges."""
    found = hashlib.sha256()
    here = Path(__file__).parent
    rooms = sorted((Path(lossguard.__file__).parent / "detect").glob("*.py"))
    for path in (here / "judge.py", here / "hindsight.py", *rooms):
        found.update(path.read_bytes())
    return found.hexdigest()


def kinds(config: Config) -> Mapping[str, str]:
    """The tasks that were learned, with their kinds."""
    return {task: TASKS[task] for task in config.tasks}


def column(frames: Frames, name: str) -> Floats64:
    """One scalar of every step."""
    return frames.scalars[:, frames.schema.scalars.index(name)]


def verdicts(config: Config, frames: Frames, final: Mapping[str, float], reference: float) -> dict[str, Any]:
    """The fields of an `Outcome` that judge it.

    Args:
        config: what was trained.
        frames: of every step.
        final: held-out metrics.
        reference: click AUC of a healthy training on these data.
    """
    report = monitor.report(monitor.update(monitor.init(kinds(config)), frames), "lab")
    label, onset = hindsight.judge(
        column(frames, "loss"), column(frames, f"batch_auc/{CLICK}"), final[f"auc/{CLICK}"], reference
    )
    incidents = [{name: one.to_json()[name] for name in KEPT} for one in report.incidents]
    return {"status": report.status, "incidents": incidents, "hindsight": label, "onset": onset, "judged": version()}
