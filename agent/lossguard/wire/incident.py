"""Incidents: one episode each, as detectors find it, the service stores it and people read it.

The JSON form is the one in `lossguard replay --format json`; NaN and the infinities are strings in it
(`lossguard.wire.numbers`).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

from lossguard.wire.numbers import from_json_number, to_json

IncidentKind = Literal[
    "micro_divergence",
    "full_divergence",
    "nonfinite",
    "no_update",
    "stalled",
    "loss_spike",
    "periodic_loss",
    "unconverged_layer",
    "dead_units",
    "learning_rate_not_decayed",
    "distribution_shift",
    "overclipped",
    "regime_change",
]
Severity = Literal["critical", "warning", "info"]
RunStatus = Literal["healthy", "recovered", "diverged"]

KINDS: tuple[str, ...] = get_args(IncidentKind)
BREAKING = ("full_divergence", "nonfinite", "no_update")
"""Kinds after which the weights cannot be trusted while the incident is open."""

SEVERITY: dict[str, Severity] = {
    "full_divergence": "critical",
    "nonfinite": "critical",
    "no_update": "critical",
    "stalled": "warning",
    "micro_divergence": "warning",
    "unconverged_layer": "info",
    "periodic_loss": "info",
    "dead_units": "info",
    "learning_rate_not_decayed": "info",
    "distribution_shift": "info",
    "overclipped": "warning",
    "loss_spike": "info",
    "regime_change": "info",
}


@dataclass(frozen=True, slots=True)
class Mover:
    """A layer or a task that left its own baseline in an episode.

    Attributes:
        what: `layer` or `task`.
        name: its name; a run's total loss is the task "".
        step: the step at which it left.
        height: how far it went, in scales of its own baseline.
    """

    what: Literal["layer", "task"]
    name: str
    step: int
    height: float

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The inverse of what `Incident.to_json` holds of it."""
        return cls(document["what"], document["name"], document["step"], from_json_number(document["height"]))


@dataclass(frozen=True, slots=True)
class Incident:
    """One episode of one run.

    Attributes:
        number: 0, 1, 2, ... in the order in which the run's episodes were flagged; the identity of the episode within
            the run's lineage. An episode keeps its number while its kind changes (micro to full and back).
        kind: what it is now.
        onset_step: the first step of the episode.
        detected_step: the step at which it was flagged.
        declared_full_step: the step at which it was first called full; stays set if recovery later made it micro.
        end_step: the first step after it; None while it is open.
        peak_step: the step of its worst value.
        peak: that value, in robust deviations of the voice that was hit (scale-free).
        residual: where the voice settled, relative to the baseline frozen at onset (0.03 is 3 % worse).
        first_signal_step: the first step at which a layer's stat or a scalar left its own baseline before the onset.
        first_layer: the layer that moved first.
        tasks: the tasks hit, the first one first; empty if only the total was.
        confidence: 0 to 1.
        explanation: one sentence for the person who is paged.
        advice: what to do, one or two sentences.
        movers: the layers and tasks by who moved first, and of those that moved in the same step by how far.
    """

    number: int
    kind: IncidentKind
    onset_step: int
    detected_step: int
    declared_full_step: int | None
    end_step: int | None
    peak_step: int
    peak: float
    residual: float
    first_signal_step: int | None
    first_layer: str | None
    tasks: tuple[str, ...]
    confidence: float
    explanation: str
    advice: str
    movers: tuple[Mover, ...] = ()

    @property
    def severity(self) -> Severity:
        """How loud to be."""
        return SEVERITY[self.kind]

    def to_json(self) -> dict[str, Any]:
        """The fields and the severity, ready for `json.dumps`."""
        document = to_json(asdict(self)) | {"severity": self.severity}
        return dict(document)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """The inverse of `to_json`; keys that are not fields are passed over."""
        values = {field.name: document[field.name] for field in fields(cls) if field.name != "movers"}
        for name in ("peak", "residual", "confidence"):
            values[name] = from_json_number(values[name])
        values["tasks"] = tuple(values["tasks"])
        # Older services and older documents know none.
        values["movers"] = tuple(Mover.from_json(one) for one in document.get("movers") or ())
        return cls(**values)


@dataclass(frozen=True, slots=True)
class RunReport:
    """A run as its detectors see it: the document of `lossguard replay --format json`.

    Attributes:
        run: its name.
        steps: first and last step seen; None before the first frame.
        status: `diverged` while an incident of a breaking kind is open, `recovered` if any divergence ended,
            `healthy` otherwise.
        incidents: in order of their numbers.
    """

    run: str
    steps: tuple[int, int] | None
    status: RunStatus
    incidents: tuple[Incident, ...]

    def to_json(self) -> dict[str, Any]:
        """The document, ready for `json.dumps`."""
        return {
            "run": self.run,
            "steps": list(self.steps) if self.steps else None,
            "status": self.status,
            "incidents": [incident.to_json() for incident in self.incidents],
        }
