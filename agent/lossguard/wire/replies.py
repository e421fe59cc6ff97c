"""What the service answers to a chunk, and the advice that rides on it."""

from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from lossguard.wire.incident import RunStatus

Action = Literal["continue", "halt", "rollback", "lower_learning_rate"]
_ACTIONS: tuple[str, ...] = get_args(Action)


@dataclass(frozen=True, slots=True)
class Advice:
    """What the service recommends to the trainer, which acts on it only where its user opted in.

    Attributes:
        action: what to do.
        step: the checkpoint to go back to, with `rollback`.
        reason: one sentence.
    """

    action: Action
    step: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class ChunkReply:
    """The service has the chunk, durably, once.

    Attributes:
        duplicate: it had these bytes before.
        attempt: the number the service gave the attempt.
        next_index: the first chunk index of the attempt that is still missing.
        judged_step: the last step the detectors have seen; None before the first.
        status: the run's status as of that step.
        advice: see `Advice`.
    """

    duplicate: bool
    attempt: int
    next_index: int
    judged_step: int | None
    status: RunStatus
    advice: Advice

    def to_json(self) -> dict[str, Any]:
        """The reply, ready for `json.dumps`."""
        # By hand: `asdict` copies deeply, which took as long as the rest of the answer.
        mine = {name: getattr(self, name) for name in self.__slots__}
        return mine | {"advice": {name: getattr(self.advice, name) for name in self.advice.__slots__}}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            ValueError: the document lacks a field or names an action that this version does not know.
        """
        try:
            advice = Advice(**document["advice"])
            reply = cls(**{**document, "advice": advice})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a chunk reply: {error}") from None
        if advice.action not in _ACTIONS:
            raise ValueError(f"unknown advice {advice.action!r}: update this side")
        return reply
