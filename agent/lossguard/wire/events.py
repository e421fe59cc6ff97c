"""What happens to an attempt beside its frames: it starts, stops, saves a checkpoint.

Events travel in a chunk's header as JSON; reading them ends in an event or in `CorruptChunk`.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from lossguard.wire.errors import MAX_INTEGER, MAX_PATH_LENGTH, CorruptChunk, check_config, natural, text

AttemptEnd = Literal["finished", "interrupted", "failed"]
_ENDS: Final = get_args(AttemptEnd)


@dataclass(frozen=True, slots=True)
class AttemptStart:
    """The first event of an attempt's chunk 0.

    Attributes:
        step: the step of the checkpoint it started from; 0 for a fresh start. Its first frame is `step + 1`.
        time: Unix seconds.
        config: whatever describes the run: `tasks` (name to "binary" or "regression"), `parameters_watched` (share),
            `optimizer`, `treatment`, `versions`, free keys.
    """

    step: int
    time: float
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AttemptStop:
    """The last event of an attempt that ended in good order; a killed trainer writes none.

    Attributes:
        step: the last step trained.
        time: Unix seconds.
        reason: "finished", "interrupted" (by the user) or "failed" (an exception in training).
        skipped_steps: steps after the last one trained that loss scaling left out, of which no frame tells. In JSON it
            stands only where there are some; readers of before pass it over.
    """

    step: int
    time: float
    reason: AttemptEnd
    skipped_steps: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The trainer saved the model after `step`.

    Attributes:
        step: the last step in it.
        time: Unix seconds.
        path: where, as the trainer names it.
        has_slots: True if the optimizer's slots are in it, without which it is no rollback target.
    """

    step: int
    time: float
    path: str
    has_slots: bool


Event = AttemptStart | AttemptStop | Checkpoint
_EVENTS: Final[dict[str, type[Event]]] = {
    "attempt_start": AttemptStart,
    "attempt_stop": AttemptStop,
    "checkpoint": Checkpoint,
}
_EVENT_NAMES: Final = {kind: name for name, kind in _EVENTS.items()}


def event_to_json(event: Event) -> dict[str, Any]:
    """The event, ready for `json.dumps`."""
    fields = {name: getattr(event, name) for name in type(event).__slots__}
    if not fields.get("skipped_steps", True):
        del fields["skipped_steps"]
    return {"type": _EVENT_NAMES[type(event)], **fields}


def check_event(event: Event) -> None:
    """Refuse an event that no chunk can carry.

    Raises:
        CorruptChunk: says why.
    """
    event_from_json(event_to_json(event))


def event_from_json(event: Any) -> Event:
    """The inverse of `event_to_json`.

    Raises:
        CorruptChunk: it is no event that this version knows; says why.
    """
    if not isinstance(event, dict):
        raise CorruptChunk("an event must be an object")
    kind, step, time = event.get("type"), natural(event.get("step"), "event step"), event.get("time")
    if isinstance(time, bool) or not isinstance(time, (int, float)) or not abs(time) < MAX_INTEGER:
        raise CorruptChunk("an event's time must be a finite number of seconds")
    if kind == "attempt_start" and isinstance(event.get("config"), dict):
        check_config(event["config"])
        return AttemptStart(step=step, time=float(time), config=event["config"])
    if kind == "attempt_stop" and event.get("reason") in _ENDS:
        skipped = natural(event.get("skipped_steps", 0), "skipped_steps")
        return AttemptStop(step=step, time=float(time), reason=event["reason"], skipped_steps=skipped)
    if kind == "checkpoint" and isinstance(event.get("has_slots"), bool):
        return Checkpoint(
            step=step,
            time=float(time),
            path=text(event.get("path"), "path", MAX_PATH_LENGTH),
            has_slots=event["has_slots"],
        )
    raise CorruptChunk(f"an event of type {str(kind)[:80]!r} is not one this version knows, or it lacks a field")
