"""Facts: all that a decision about one export looks at, as one value.

Guarantees. Pure: nothing here does I/O or reads a clock; how long a run was silent comes in as a number. What is not
known is None or absent, never a default that would pass. Steps count from 1 and a range of steps names its first and
its last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lossguard.wire.incident import Incident
from lossguard_service.gate.window import Window
from lossguard_service.store.coverage import Drops, Span

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt as the service knows it.

    Attributes:
        number: 1, 2, ... in the order of arrival.
        key: its 32 hex digits.
        start_step: the step of the checkpoint it started from; None while its first chunk is missing.
        last_step: the last step whose frame arrived; None before the first.
        stop_reason: "finished", "interrupted", "failed", or None while nothing said that it ended.
    """

    number: int
    key: str
    start_step: int | None
    last_step: int | None
    stop_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """Steps `first` to `last` of one attempt, on the lineage."""

    attempt: int
    first: int
    last: int


class Norm(NamedTuple):
    """A tensor of the artifact.

    Attributes:
        norm: its L2 norm.
        values: how many numbers it holds.
        bits: of each number.
    """

    norm: float
    values: int
    bits: int


@dataclass(frozen=True, slots=True)
class Weights:
    """What the training said of its weights' norms around the export's step.

    Attributes:
        before: by layer, the norm before the update of the export's step, and how far that update can have moved it; or
            the norm behind it, where the trainer measured that, and 0.
        after: by layer, the norm before the next step's update: that of the exported weights.
        averaged: True if the run says that its weights are averages, which no frame measured.
        parameters: how many the model trains; None if the trainer did not say.
    """

    before: Mapping[str, tuple[float, float]]
    after: Mapping[str, float]
    averaged: bool = False
    parameters: float | None = None


@dataclass(frozen=True, slots=True)
class Scan:
    """What the agent found in the artifact's tensors.

    Attributes:
        kind: "savedmodel", "keras", "weights" or "orbax".
        tensors: how many tensors of floats were read to the end.
        values: how many numbers they hold.
        nonfinite: the tensors with NaN or Inf in them, by name, and how many entries; the first ones.
        slots: how many of the tensors are the optimizer's: its slots, and its averages of the weights.
        nonfinite_slots: as `nonfinite`, of those.
        complete: False if a part of the artifact could not be read as tensors; then nothing is known about it.
        note: why it is not complete.
        norms: the tensors' norms, by name, without the optimizer's; empty if the agent sent none.
    """

    kind: str
    tensors: int
    values: int
    nonfinite: Mapping[str, int]
    complete: bool
    note: str = ""
    slots: int = 0
    nonfinite_slots: Mapping[str, int] = field(default_factory=dict)
    norms: Mapping[str, Norm] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Canary:
    """What the exported model answered on the user's canary rows.

    Attributes:
        rows: how many rows it was asked.
        nonfinite: how many outputs were NaN or Inf.
        spread: the smallest standard deviation over the rows of any output; 0 is a constant.
        error: why it did not answer, or None.
    """

    rows: int
    nonfinite: int
    spread: float
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Previous:
    """A metric of a version that passed.

    Attributes:
        value: what it reached.
        verdict: the id of its verdict.
        run, step: whose export it was.
    """

    value: float
    verdict: str
    run: str
    step: int


@dataclass(frozen=True, slots=True)
class Blocked:
    """A verdict that blocked the same bytes as another export.

    Attributes:
        run, step: whose it was said to be.
        verdict: its id.
    """

    run: str
    step: int
    verdict: str


@dataclass(frozen=True, slots=True)
class Trial:
    """A training of the same configuration.

    Attributes:
        run: its name.
        diverged: True if it ended in a divergence, or is in one.
        ended: False while it goes on.
        last_step: the last step the detectors have seen.
        finals: the median of its last steps for each task's `batch_auc` and `rmse`; empty if they are not stored.
    """

    run: str
    diverged: bool
    ended: bool
    last_step: int
    finals: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """Everything the gate knows about one export.

    Attributes:
        project, run, step: what the request says about the export.
        artifact_digest: as the request says.
        attempt: the attempt that the request names (32 hex digits), or None if it names none.
        run_known: False if the service never heard of the run; then all that follows is empty.
        attempts: in the order of their numbers.
        spans: what is stored of every attempt.
        drops: every report of dropped frames.
        judged_step: the last step of the lineage that the detectors have seen.
        silent_seconds: since anything arrived from the run, or until then if clocks differ; None if nothing ever did.
        parameters_watched: share of the trained parameters, as the trainer said; None if it did not.
        tasks: name to "binary" or "regression"; empty if the trainer named none.
        incidents: those of the lineage that are not superseded.
        window: the last steps up to `step`, or None if they are not stored.
        weights: see `Weights`; None if no frame of the step or of the next one is stored.
        before: the steps before the onset, by the incident's number, of those that ended with their task far off.
        model: what the run's config calls its model; empty if it names none.
        metrics: supplied by the release pipeline from held-out data.
        previous: for each metric, the newest version of the model that passed with it.
        blocked_as: verdicts of the project that blocked the same bytes as another run's or step's, the newest first.
        trials: the runs of the project that trained this configuration, this run among them; empty if there is none.
        scan: see `Scan`; None if the agent sent none.
        canary: see `Canary`; None if the agent sent none.
        good_checkpoint: the newest checkpoint to go back to, as (step, path), or None.
    """

    project: str
    run: str
    step: int
    artifact_digest: str
    attempt: str | None = None
    run_known: bool = False
    attempts: tuple[Attempt, ...] = ()
    spans: tuple[Span, ...] = ()
    drops: tuple[Drops, ...] = ()
    judged_step: int | None = None
    silent_seconds: float | None = None
    parameters_watched: float | None = None
    tasks: Mapping[str, str] = field(default_factory=dict)
    incidents: tuple[Incident, ...] = ()
    window: Window | None = None
    weights: Weights | None = None
    before: Mapping[int, Window] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    model: str = ""
    previous: Mapping[str, Previous] = field(default_factory=dict)
    blocked_as: tuple[Blocked, ...] = ()
    trials: tuple[Trial, ...] = ()
    scan: Scan | None = None
    canary: Canary | None = None
    good_checkpoint: tuple[int, str] | None = None

    @property
    def target(self) -> str:
        """What to go back to, in words."""
        if self.good_checkpoint is None:
            return "a checkpoint from before it"
        return f"the checkpoint of step {self.good_checkpoint[0]} ({self.good_checkpoint[1]})"


def lineage(attempts: Sequence[Attempt]) -> tuple[Segment, ...]:
    """The steps that count, in order: each attempt up to where the next one took over.

    An attempt whose start is not known yet takes no part; `decide` sees that it is there.

    >>> first, second = Attempt(1, "a", 0, 600), Attempt(2, "b", 300, 400)
    >>> lineage([first, second])
    (Segment(attempt=1, first=1, last=300), Segment(attempt=2, first=301, last=400))
    """
    kept: list[Segment] = []
    for attempt in sorted(attempts, key=lambda attempt: attempt.number):
        start = attempt.start_step
        if start is None:
            continue
        kept = [Segment(part.attempt, part.first, min(part.last, start)) for part in kept if part.first <= start]
        if attempt.last_step is not None and attempt.last_step > start:
            kept.append(Segment(attempt.number, start + 1, attempt.last_step))
    return tuple(kept)


def missing_steps(segments: Sequence[Segment], spans: Sequence[Span], step: int) -> tuple[Range, ...]:
    """The steps 1 to `step` of the lineage for which no frame is stored.

    >>> missing_steps([Segment(1, 1, 10)], [Span(1, 1, 4), Span(1, 7, 10)], 12)
    ((5, 6), (11, 12))
    """
    covered: list[Range] = []
    for segment in segments:
        for span in spans:
            first, last = max(span.first, segment.first), min(span.last, segment.last)
            if span.attempt == segment.attempt and first <= last:
                covered.append((first, last))
    gaps: list[Range] = []
    expected = 1
    for first, last in sorted(covered):
        if first > step:
            break
        if first > expected:
            gaps.append((expected, first - 1))
        expected = max(expected, last + 1)
    if expected <= step:
        gaps.append((expected, step))
    return tuple(gaps)


def repeated_steps(spans: Sequence[Span]) -> Range | None:
    """Steps that one attempt sent twice: two trainings under one name, or a trainer that counts wrongly.

    >>> repeated_steps([Span(1, 1, 8), Span(1, 5, 12), Span(2, 5, 9)])
    (5, 8)
    """
    before: Span | None = None
    for span in sorted(spans, key=lambda span: (span.attempt, span.first, span.last)):
        if before is not None and before.attempt == span.attempt and span.first <= before.last:
            return span.first, min(span.last, before.last)
        before = span
    return None


def dropped(segments: Sequence[Segment], reports: Sequence[Drops], step: int) -> dict[str, int]:
    """Frames that the trainer dropped within the lineage up to `step`, by reason."""
    counts: dict[str, int] = {}
    for segment in segments:
        for report in reports:
            after = report.first_step is not None and report.first_step > min(step, segment.last)
            if report.attempt != segment.attempt or after:
                continue
            for reason, count in report.counts.items():
                counts[reason] = counts.get(reason, 0) + count
    return counts
