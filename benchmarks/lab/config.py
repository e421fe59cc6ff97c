"""One training, as a frozen value: everything that decides its numbers but the data."""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Self

from lossguard.demo.features import TASKS

Bottom = Literal["wide", "wide&deep", "small", "large", "large+dcn", "small+dcn", "mmoe"]
Order = Literal["window", "sequential", "dated", "shuffled"]
Optimizer = Literal["adagrad", "adam", "rmsprop", "sgd"]

STEPS, BATCH = 420, 512
"""One pass over the 13 days of KuaiRand-Pure (B1 of the feasibility study used the same)."""
CLICK = "click"


@dataclass(frozen=True, slots=True)
class Config:
    """One training.

    Attributes:
        bottom: what the tasks share (`lab.model`).
        optimizer: of Keras; Adagrad begins with accumulators of 0.1.
        treatment: a name of `lab.treatments`, `naive` for none.
        settings: its numbers by name, for example (("threshold", 0.01),).
        learning_rate: the peak.
        warm_up: steps of linear warm-up.
        decay_to: share of the rate that is left at the last step, reached exponentially; 1 for a constant rate.
        steps, batch: updates, and examples in each.
        order: `window` draws each batch from a window that moves through the days once; `sequential` takes the rows
            as they came, once; `dated` repeats that, epoch after epoch; `shuffled` draws each epoch's order anew.
        window_days: of the window.
        tasks: what is learned; the total loss is the plain sum.
        sparse: whether the deprecated sparse columns are there.
        raw: whether the follower count is there as it is, not normalised.
        judged_day: days between the judged one and the last; what lies after the judged one is not touched.
        seed: of weights and batches.
        batch_seed: of the batches alone; None for `seed`.
        repeat: changes nothing but that this is a run of its own, on a step compiled anew.
        evaluations: how often the held-out day is looked at, on a sample of it; at the end on all of it.
        sharpness_every: steps between two probes of sharpness; 0 for none.
        full_every: steps between two full measurements of the layers.
        threads: that TensorFlow may use; more than one gives no reproducible sums.
    """

    bottom: Bottom = "large"
    optimizer: Optimizer = "adagrad"
    treatment: str = "naive"
    settings: tuple[tuple[str, float], ...] = ()
    learning_rate: float = 0.05
    warm_up: int = 0
    decay_to: float = 1.0
    steps: int = STEPS
    batch: int = BATCH
    order: Order = "window"
    window_days: float = 1.0
    tasks: tuple[str, ...] = tuple(TASKS)
    sparse: bool = True
    raw: bool = False
    judged_day: int = 0
    seed: int = 0
    batch_seed: int | None = None
    repeat: int = 0
    evaluations: int = 6
    sharpness_every: int = 0
    full_every: int = 4
    threads: int = 1

    @property
    def compiled(self) -> tuple[Any, ...]:
        """What a compiled step depends on: runs that agree here share one."""
        names = ("threads", "bottom", "tasks", "sparse", "raw", "batch", "optimizer", "treatment", "settings")
        return tuple(getattr(self, name) for name in (*names, "full_every", "repeat"))

    @property
    def method(self) -> str:
        """The treatment with its numbers, for people."""
        numbers = ", ".join(f"{name} {value:g}" for name, value in self.settings)
        return f"{self.treatment} ({numbers})" if numbers else self.treatment

    def but(self, **changes: Any) -> Self:
        """The same with changes."""
        return replace(self, **changes)

    def document(self) -> dict[str, Any]:
        """JSON-like; `of` is the inverse."""
        return dict(json.loads(json.dumps(asdict(self))))

    @classmethod
    def of(cls, document: dict[str, Any]) -> Self:
        """From a document."""
        values = {one.name: document[one.name] for one in fields(cls) if one.name in document}
        values["settings"] = tuple((str(name), float(number)) for name, number in values.get("settings", ()))
        values["tasks"] = tuple(values["tasks"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one training; JSON-like but for the config.

    Attributes:
        config: what was trained.
        status: what Lossguard's detectors say: `healthy`, `recovered` or `diverged`.
        incidents: theirs: kind, onset, end, first layer, tasks, residual.
        hindsight: what the rule says that knows the end (`lab.hindsight`).
        onset: of the divergence by that rule, if any.
        final: held-out metrics after the last step, `auc/<task>` and `rmse/<task>`.
        curve: [step, auc/click, rmse/play_time] on a sample of the held-out day.
        judged: version of the code that gave the four above.
        digest: SHA-256 of the final weights.
        cpu_seconds, wall_seconds: of the training with its evaluations; what is paused costs wall only.
        sharpness: [step, sharpness_ratio], where it was probed.
        compile_seconds: CPU seconds for tracing, in the first run of a compiled step; else 0.
    """

    config: Config
    status: str
    incidents: list[dict[str, Any]]
    hindsight: str
    onset: int | None
    judged: str
    final: dict[str, float]
    curve: list[list[float]]
    digest: str
    cpu_seconds: float
    wall_seconds: float
    compile_seconds: float = 0.0
    sharpness: list[list[float]] = field(default_factory=list)

    @property
    def diverged(self) -> bool:
        """By the rule that knows the end."""
        return self.hindsight in ("full", "nan")
