"""Everything the detectors remember about one run, as one value.

Nothing in it grows with the number of steps but the list of incidents, and that is capped. `pack` turns it into bytes;
a field that is added, dropped or given another meaning needs a new `STATE_VERSION`.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from lossguard.detect import baseline, layers, nonfinite, pack, slide, trigger
from lossguard.detect.baseline import Baseline
from lossguard.detect.drift import Drift
from lossguard.detect.episode import Episode, Judge
from lossguard.detect.habits import Habits
from lossguard.detect.layers import Layers, Memory
from lossguard.detect.nonfinite import Nonfinite
from lossguard.detect.period import Period
from lossguard.detect.record import Record
from lossguard.detect.regime import Regime
from lossguard.detect.slide import Slide
from lossguard.detect.spread import Spread
from lossguard.detect.trigger import Trigger
from lossguard.detect.waiting import Waiting
from lossguard.wire.frame import Floats64

STATE_VERSION = 12
RATE_FRAMES = 30
"""A rise of the learning rate is named as the likely cause for 30 frames."""


@dataclass(slots=True)
class Probation:
    """A blow-up before the model had learned anything, which may turn out to have ruined it."""

    number: int
    frame: int
    ratio: float


@dataclass(slots=True)
class MonitorState:
    """Everything the detectors remember about one run.

    Attributes:
        tasks: task name to kind (`binary` or `regression`), as told or inferred.
        caution: factor on the losses' scales: above 1 fewer alarms, below 1 more.
        first_step: the first step seen; None before the first frame.
        last_step: the last step judged; None before the first frame.
        attempts: how many attempts were opened so far.
        records: all incidents' facts, in the order of their numbers.
        frame: frames of this attempt so far.
        steps: the last 64 steps, newest last.
        names: the voices, in the order of the arrays.
        first: each voice's first finite value of the attempt; NaN before it [V].
        base: the voices' baselines.
        trigger: the voices' tests.
        judges: values per judge (an AUC, or a regression's skill on its scale), newest last, at most 60; none from an
            episode.
        recent: the same, at most 30, whatever they are.
        labels: mean label per task, as of the last frame that had one.
        open: the open episode.
        probations: see `Probation`.
        ruined: numbers of full divergences that began before anything was learned.
        slide: the slow watch over losses without metrics.
        nonfinite: the watch over NaN and Inf.
        layers: the layers' baselines and signals.
        habits: the watch over what goes on all the time.
        period: the search for the period of an epoch.
        drifts: the watch over each task's label mean.
        spreads: the watch over each task's predictions' deviation.
        time: when the last frame was handed over, Unix seconds; NaN where unknown.
        regime: what the learning rate does.
        told_rate: whether its not falling was reported.
        rate_rise: the factor of its last rise.
        rate_frame: the frame of its last rise.
        waiting: frames that follow, and that are taken in before the state is written or judged again; not packed.
    """

    tasks: dict[str, str]
    caution: float = 1.0
    first_step: int | None = None
    last_step: int | None = None
    attempts: int = 1
    records: list[Record] = field(default_factory=list)
    frame: int = 0
    steps: list[int] = field(default_factory=list)
    names: tuple[str, ...] = ()
    first: Floats64 = field(default_factory=lambda: np.empty(0))
    base: Baseline = field(default_factory=lambda: baseline.init(0))
    trigger: Trigger = field(default_factory=lambda: trigger.init(0))
    judges: dict[str, list[float]] = field(default_factory=dict)
    recent: dict[str, list[float]] = field(default_factory=dict)
    labels: dict[str, float] = field(default_factory=dict)
    open: Episode | None = None
    probations: list[Probation] = field(default_factory=list)
    ruined: list[int] = field(default_factory=list)
    slide: Slide = field(default_factory=slide.init)
    nonfinite: Nonfinite = field(default_factory=nonfinite.init)
    layers: Layers = field(default_factory=layers.init)
    habits: Habits = field(default_factory=Habits)
    period: Period = field(default_factory=Period)
    drifts: dict[str, Drift] = field(default_factory=dict)
    spreads: dict[str, Spread] = field(default_factory=dict)
    time: float = math.nan
    regime: Regime = field(default_factory=Regime)
    told_rate: bool = False
    rate_rise: float = 1.0
    rate_frame: int = -RATE_FRAMES
    waiting: Waiting | None = field(default=None, metadata=pack.NOT_PACKED)


CLASSES = (
    MonitorState,
    Record,
    Baseline,
    Trigger,
    Judge,
    Episode,
    Probation,
    Slide,
    Nonfinite,
    Layers,
    Memory,
    Habits,
    Period,
    Drift,
    Spread,
    Regime,
)
