"""The detectors' report into stored incidents: each episode once, in place while it lives.

Called under the run's lock with the whole report, so any replica may do it and doing it twice changes nothing. An
episode is recognized by where it began and where it was flagged; what a new attempt or a late chunk took away is
marked superseded, never deleted.
"""

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy.engine import Connection

from lossguard.wire.incident import Incident
from lossguard_service.store import incidents as store
from lossguard_service.store.incidents import StoredIncident


def reconcile(
    connection: Connection, run_id: int, stored: Sequence[StoredIncident], found: Sequence[Incident], now: float
) -> bool:
    """Make the run's detected incidents those of `found`; True if anything had to be written.

    Args:
        connection: inside the transaction that holds the run's lock.
        run_id: which run.
        stored: its incidents as they are, without the superseded ones.
        found: the detectors' report.
        now: Unix seconds.
    """
    left = [one for one in stored if one.incident.number >= 0]
    new, changed = [], False
    for incident in found:
        match = min(
            (one for one in left if _episode(one.incident) == _episode(incident)),
            key=lambda one: one.incident.number != incident.number,
            default=None,
        )
        if match is None:
            new.append(incident)
            continue
        left.remove(match)
        if match.incident != incident:
            store.update(connection, run_id, match.sequence, incident, now)
            changed = True
    store.supersede(connection, run_id, [one.sequence for one in left], now)
    store.insert(connection, run_id, new, now)
    return changed or bool(left or new)


def stall(
    connection: Connection, run_id: int, stored: Sequence[StoredIncident], step: int, silent_seconds: float, now: float
) -> None:
    """Open a `stalled` incident unless one is open; the service numbers its own from -1 downwards."""
    own = [one for one in stored if one.incident.number < 0]
    if any(one.is_open for one in own):
        return
    incident = Incident(
        number=min((one.incident.number for one in own), default=0) - 1,
        kind="stalled",
        onset_step=step,
        detected_step=step,
        declared_full_step=None,
        end_step=None,
        peak_step=step,
        peak=silent_seconds,
        residual=0.0,
        first_signal_step=None,
        first_layer=None,
        tasks=(),
        confidence=1.0,
        explanation=f"No new step for {silent_seconds:.0f} seconds after step {step}, and no word that training ended.",
        advice="See whether the trainer lives and whether its sidecar reaches the service.",
    )
    store.insert(connection, run_id, [incident], now)


def resume(connection: Connection, run_id: int, stored: Sequence[StoredIncident], step: int, now: float) -> bool:
    """Close the `stalled` incident, if one is open: the run goes on at `step`, or it ended there in good order."""
    found = [one for one in stored if one.incident.number < 0 and one.is_open]
    for one in found:
        store.update(connection, run_id, one.sequence, replace(one.incident, end_step=step), now)
    return bool(found)


def _episode(incident: Incident) -> tuple[int, int]:
    return incident.onset_step, incident.detected_step
