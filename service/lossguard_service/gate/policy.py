"""Policies: the named, versioned rules of the gate, as frozen values.

Guarantees. A policy says everything that `decide` compares with; no limit hides in code. Its limits are validated when
it is made. A (name, version) pair never changes its meaning: verdicts name both.

The defaults of the quality limits come from 220 recorded runs of a ranker (docs/decisions/0502-quality-limits.md).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, Self

from lossguard.wire.incident import BREAKING, KINDS


class PolicyError(ValueError):
    """A policy that cannot be: the sentence names the field and what it must be."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What an export must show to pass.

    Attributes:
        name: how requests name it.
        version: 1, 2, ...; every change of a rule is a new version.
        description: one sentence for people.
        minimum_coverage: share of the trained parameters whose layers were watched, 0 to 1.
        fresh_seconds: how long an unfinished run may have been silent.
        settle_steps: steps that must follow the export's step before it is judged, unless the training ended there.
        blocking_kinds: incident kinds that block while they are open at the step.
        signal_blocks: True if a checkpoint between an incident's first signal and its onset is blocked too.
        recovered_budget: how many recovered divergences the lineage may hold up to the step.
        residual_limit: how much worse than the frozen baseline a recovered divergence may have left its task.
        quiet_steps: steps since the end of the last recovered divergence.
        quality_steps: the last steps of the lineage, over which each task's quality is judged.
        batch_auc_floor: what the mean batch AUC of each binary task must reach.
        normalized_entropy_limit: loss over the loss of the constant predictor, for each binary task.
        error_ratio_limit: mean squared error over that of the constant predictor, for each regression task.
        baseline_required: True if a regression task must come with `label_std/<task>`, so that it can be compared.
        calibration_limit: how far the mean prediction of a binary task may lie from its mean label, as a share of it.
        spread_floor: standard deviation of the predictions, as a share of what the task's labels (or level) suggest.
        certainty: how many standard errors make "clearly".
        metric_auc_floor: what each supplied `auc/<task>` must reach.
        metrics_required: True if every binary task needs a supplied `auc/<task>` from held-out data.
        slots_required: True if it must be known that the optimizer's slots are finite, by the updates or the artifact.
        scan_required: True if every tensor of the artifact must have been scanned for NaN and Inf.
        regression_tolerance: by how much a supplied `auc/<task>` may fall below that of the last version that passed.
        error_tolerance: the share by which a supplied `rmse`, `mae`, `loss` or `normalized_entropy` may exceed it.
        trials_minimum: how many trainings of one configuration say something about its stability; 0: do not ask.
        trial_divergence_limit: what share of them may diverge, for all that their number lets one say (95 %).
        trial_spread_limit: how far their final values may spread, likewise: the standard deviation of a batch AUC, or
            of an RMSE as a share of its mean.
        canary_required: True if the exported model must have answered on canary rows.
        weights_compared: True if weights whose norms are not those that the run had at that step block.
        weights_required: True if it must be known that they are; where they cannot be compared, it is not.
        attribution_required: True if the same bytes must not have been blocked as another run's or step's export.
    """

    name: str
    version: int
    description: str = ""
    minimum_coverage: float = 0.9
    fresh_seconds: float = 900.0
    settle_steps: int = 0
    blocking_kinds: tuple[str, ...] = (*BREAKING, "micro_divergence")
    signal_blocks: bool = False
    recovered_budget: int = 5
    residual_limit: float = 0.3
    quiet_steps: int = 50
    quality_steps: int = 50
    batch_auc_floor: float = 0.52
    normalized_entropy_limit: float = 1.0
    error_ratio_limit: float = 1.0
    baseline_required: bool = False
    calibration_limit: float = 0.5
    spread_floor: float = 0.001
    certainty: float = 3.0
    metric_auc_floor: float = 0.52
    metrics_required: bool = False
    scan_required: bool = True
    slots_required: bool = False
    regression_tolerance: float = 0.02
    error_tolerance: float = 0.05
    trials_minimum: int = 3
    trial_divergence_limit: float = 0.3
    trial_spread_limit: float = 0.02
    canary_required: bool = False
    weights_compared: bool = True
    weights_required: bool = False
    attribution_required: bool = False

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 100 or not all(c.isalnum() or c in "-_." for c in self.name):
            raise PolicyError(f"name: letters, digits, '-', '_' and '.', at most 100 of them, got {self.name!r}")
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise PolicyError(f"{name}: must be a number from {low:g} to {high:g}, got {value!r}")
        for name in _COUNTS:
            if not isinstance(getattr(self, name), int):
                raise PolicyError(f"{name}: must be a whole number, got {getattr(self, name)!r}")
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise PolicyError(f"{name}: must be true or false, got {getattr(self, name)!r}")
        unknown = sorted(set(self.blocking_kinds) - set(KINDS))
        if unknown:
            raise PolicyError(f"blocking_kinds: unknown kind {unknown[0]!r}; the kinds are {', '.join(KINDS)}")
        missing = sorted(set(BREAKING) - set(self.blocking_kinds))
        if missing:
            raise PolicyError(f"blocking_kinds: {missing[0]} must be among them: after it the weights are broken")

    def to_json(self) -> dict[str, Any]:
        """The policy, ready for `json.dumps`."""
        return asdict(self) | {"blocking_kinds": list(self.blocking_kinds)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """A policy from outside: fields that are not given keep their defaults, unknown ones are refused.

        Raises:
            PolicyError: a field is unknown or out of its range.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(document) - known)
        if unknown:
            raise PolicyError(f"{unknown[0]}: no such rule; the rules are {', '.join(sorted(known))}")
        values = dict(document)
        if "blocking_kinds" in values:
            kinds = values["blocking_kinds"]
            if not isinstance(kinds, list | tuple) or not all(isinstance(kind, str) for kind in kinds):
                raise PolicyError("blocking_kinds: must be a list of incident kinds")
            values["blocking_kinds"] = tuple(kinds)
        try:
            return cls(**values)
        except TypeError:
            raise PolicyError("a policy needs at least a name and a version") from None

    def dumps(self) -> str:
        """The policy as text that compares equal exactly if the rules are equal."""
        return json.dumps(self.to_json(), sort_keys=True)


_COUNTS = ("version", "settle_steps", "recovered_budget", "quiet_steps", "quality_steps", "trials_minimum")
_FLAGS = (
    "signal_blocks",
    "baseline_required",
    "metrics_required",
    "scan_required",
    "slots_required",
    "canary_required",
    "weights_compared",
    "weights_required",
    "attribution_required",
)
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("version", 1, 1_000_000_000),
    ("minimum_coverage", 0, 1),
    ("fresh_seconds", 1, 30 * 86_400),
    ("settle_steps", 0, 1_000_000_000),
    ("recovered_budget", 0, 1_000_000),
    ("residual_limit", 0, math.inf),
    ("quiet_steps", 0, 1_000_000_000),
    ("quality_steps", 10, 1_000),
    ("batch_auc_floor", 0.5, 1),
    ("normalized_entropy_limit", 0, 1),
    ("error_ratio_limit", 0, 1),
    ("calibration_limit", 0, math.inf),
    ("spread_floor", 1e-9, 1),
    ("certainty", 0, 10),
    ("metric_auc_floor", 0.5, 1),
    ("regression_tolerance", 0, 1),
    ("error_tolerance", 0, math.inf),
    ("trials_minimum", 0, 200),
    ("trial_divergence_limit", 0, 1),
    ("trial_spread_limit", 0, math.inf),
)

DEFAULT = Policy(
    name="default",
    version=3,
    description="Blocks what is broken or was shortly before; accepts a few recovered divergences.",
)
STRICT = Policy(
    name="strict",
    version=4,
    description="For exports that nobody looks at: no recovered divergence, held-out metrics, a settled end.",
    minimum_coverage=0.99,
    fresh_seconds=300.0,
    settle_steps=10,
    blocking_kinds=(*BREAKING, "micro_divergence", "stalled"),
    signal_blocks=True,
    recovered_budget=0,
    residual_limit=0.1,
    quiet_steps=500,
    quality_steps=100,
    batch_auc_floor=0.55,
    baseline_required=True,
    calibration_limit=0.2,
    metric_auc_floor=0.55,
    metrics_required=True,
    slots_required=True,
    regression_tolerance=0.01,
    error_tolerance=0.02,
    trial_divergence_limit=0.1,
    trial_spread_limit=0.01,
    weights_required=True,
    attribution_required=True,
)

BUILT_IN: Mapping[str, Policy] = MappingProxyType({policy.name: policy for policy in (DEFAULT, STRICT)})
"""The policies that every service has; a stored policy may not take their names."""
