"""Which batches came where an incident began: the service's pages and `lossguard replay` tell the same ones.

Pure. The scalar `batch_id` names a step's batch (`Watch(batch_id=...)`, or a column of that name), where there is a
scalar `batch_file` together with it: an offset in a file, written 7:4096.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from lossguard.trace.trace import Trace
from lossguard.wire.incident import Incident

BATCH: Final = "batch_id"
FILE: Final = "batch_file"
MOST_BATCHES: Final = 12


@dataclass(frozen=True, slots=True)
class Batch:
    """The batch of one step; `note` says what happened there."""

    step: int
    name: str
    note: str


def span(incident: Incident) -> tuple[int, int]:
    """First and last step whose batches are told: from before the first signal to the flag, 12 at most."""
    signal = incident.onset_step if incident.first_signal_step is None else incident.first_signal_step
    first = max(1, min(signal, incident.onset_step) - 1, incident.onset_step - MOST_BATCHES + 3)
    return first, min(max(incident.detected_step, incident.onset_step + 1), first + MOST_BATCHES - 1)


def batches(
    incident: Incident, ids: Iterable[tuple[int, float]], files: Mapping[int, float] | None = None
) -> tuple[Batch, ...]:
    """The batches of an incident.

    Args:
        incident: whose.
        ids: steps with the numbers of their batches.
        files: the numbers of the files that they come from, by step.
    """
    of_files = {} if files is None else files
    first, last = span(incident)
    notes = {incident.detected_step: "flagged", incident.onset_step: "onset"}
    if incident.first_signal_step is not None and incident.first_signal_step != incident.onset_step:
        notes[incident.first_signal_step] = "first signal"
    told = [(step, _name(value, of_files.get(step))) for step, value in ids if first <= step <= last]
    return tuple(Batch(step, name, notes.get(step, "")) for step, name in told)


def _name(value: float, file: float | None) -> str:
    name = str(int(value)) if math.isfinite(value) else "NaN"
    return name if file is None or not math.isfinite(file) else f"{int(file)}:{name}"


def of_trace(trace: Trace, incident: Incident) -> tuple[Batch, ...]:
    """The batches of a saved run's incident; of attempts that went back, the last one at a step counts."""
    ids, files = (_last_of(trace, name) for name in (BATCH, FILE))
    return batches(incident, sorted(ids.items()), files)


def _last_of(trace: Trace, name: str) -> dict[int, float]:
    """A scalar by step."""
    found: dict[int, float] = {}
    for frames in trace.attempts:
        at = int(frames.steps[0]) if len(frames) else math.inf
        found = {step: value for step, value in found.items() if step < at}
        if name in frames.schema.scalars:
            column = frames.schema.scalars.index(name)
            here = frames.scalars_present[:, column]
            found |= zip(frames.steps[here].tolist(), frames.scalars[here, column].tolist(), strict=True)
    return found


def sentence(found: Sequence[Batch]) -> str:
    """The batches as a line says them.

    >>> sentence([Batch(7, "4412", "onset"), Batch(8, "4413", "")])
    'step 7: 4412 (onset), step 8: 4413'
    """
    return ", ".join(f"step {one.step}: {one.name}{f' ({one.note})' if one.note else ''}" for one in found)
