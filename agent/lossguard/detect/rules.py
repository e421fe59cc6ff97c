"""Detectors of one's own: the same shape as ours, a pure pair `init`, `update` over a state that is a value.

A rule sees blocks of frames in step order and answers with findings; it must not care where blocks are cut, and it
reads no clock and no file. `lossguard replay --rule package.module:rule` runs one beside the built-in detectors.

>>> import numpy as np
>>> from lossguard.wire.frame import Frames, Schema
>>> class TooHot:
...     "The loss must stay below 10."
...     def init(self):
...         return False
...     def update(self, told, frames):
...         loss = frames.scalars[:, frames.schema.scalars.index("loss")]
...         if told or not (loss > 10).any():
...             return told, ()
...         step = int(frames.steps[int(np.argmax(loss > 10))])
...         return True, (Finding("loss_spike", step, step, f"The loss passed 10 at step {step}.", "Look."),)
>>> frames = Frames.of(Schema(("loss",)), [1, 2, 3], [[1.0], [12.0], [3.0]])
>>> [incident.explanation for incident in apply(TooHot(), [frames], 0)]
['The loss passed 10 at step 2.']
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from lossguard.wire.frame import Frames
from lossguard.wire.incident import KINDS, Incident, IncidentKind


class RuleError(ValueError):
    """A rule of one's own failed: it raised, or named a kind that does not exist; its own error is the cause."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule found.

    Attributes:
        kind: one of the incident kinds; it decides how loud the incident is.
        onset_step: the first step of it.
        detected_step: the step at which the rule knew.
        explanation: one sentence.
        advice: what to do.
        end_step: the first step after it; None while it lasts.
        first_layer: the layer it is about.
        tasks: the tasks it is about.
        confidence: 0 to 1.
    """

    kind: IncidentKind
    onset_step: int
    detected_step: int
    explanation: str
    advice: str
    end_step: int | None = None
    first_layer: str | None = None
    tasks: tuple[str, ...] = ()
    confidence: float = 1.0


class Rule(Protocol):
    """A detector: `update` returns the state after a block, and what was found in it."""

    def init(self) -> Any:
        """The state before the first frame of an attempt."""

    def update(self, state: Any, frames: Frames, /) -> tuple[Any, tuple[Finding, ...]]:
        """The state after a block of consecutive frames, and its findings; neither depends on how blocks are cut."""


def apply(rule: Rule, blocks: Iterable[Frames], number: int) -> list[Incident]:
    """Run a rule over the blocks of one attempt; its incidents are numbered from `number`.

    Raises:
        RuleError: the rule raised, or names a kind that does not exist.
    """
    incidents: list[Incident] = []
    name = type(rule).__name__
    try:
        state = rule.init()
    except Exception as error:
        raise RuleError(f"rule {name}: init raised {error!r}") from error
    for frames in blocks:
        try:
            state, findings = rule.update(state, frames)
        except Exception as error:
            raise RuleError(f"rule {name}: update raised {error!r}") from error
        for found in findings:
            if found.kind not in KINDS:
                raise RuleError(f"rule {name}: no incident kind {found.kind!r}; there are {KINDS}")
            incidents.append(
                Incident(
                    number=number + len(incidents),
                    kind=found.kind,
                    onset_step=found.onset_step,
                    detected_step=found.detected_step,
                    declared_full_step=found.detected_step if found.kind == "full_divergence" else None,
                    end_step=found.end_step,
                    peak_step=found.detected_step,
                    peak=0.0,
                    residual=0.0,
                    first_signal_step=None,
                    first_layer=found.first_layer,
                    tasks=found.tasks,
                    confidence=found.confidence,
                    explanation=found.explanation,
                    advice=found.advice,
                )
            )
    return incidents
