"""Stability over trials: how often trainings of the same configuration diverge, and how far apart they end.

Guarantees. Pure. Where there are too few trials to say anything, the check says that it does not apply, and passes: one
training is no evidence against itself. With few trials a share or a spread means little, so a limit is broken only if
the lower end of its 95 % interval (Wilson's for the share, the chi-squared one for the spread) lies beyond it. A
training that goes on counts once it diverged, one that was given up early not at all.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from lossguard.trace.compare import wilson
from lossguard.wire.verdict import Check
from lossguard_service.gate.facts import Facts, Trial
from lossguard_service.gate.policy import Policy

_Z: Final = 1.96
_SAME_LENGTH: Final = 0.1
"""Final values are compared over trials whose lengths differ by no more than this share."""


def stability_checks(policy: Policy, facts: Facts) -> tuple[Check, ...]:
    """The share of the trials that diverged, and the spread of what the others ended at."""
    if policy.trials_minimum == 0:
        return ()
    trials = [one for one in facts.trials if one.diverged or (one.ended and one.last_step >= facts.step / 2)]
    if len(trials) < policy.trials_minimum:
        return (
            Check(
                "trials", "pass", len(trials), policy.trials_minimum,
                f"Does not apply: {len(trials)} trainings of this configuration have ended, and it takes "
                f"{policy.trials_minimum} to say how stable it is.",
            ),
        )  # fmt: skip
    return (_divergences(policy, trials), *_spreads(policy, [one for one in trials if not one.diverged]))


def _divergences(policy: Policy, trials: Sequence[Trial]) -> Check:
    name, limit = "trial_divergences", policy.trial_divergence_limit
    bad = [one.run for one in trials if one.diverged]
    low, high = wilson(len(bad), len(trials))
    text = (
        f"{len(bad)} of {len(trials)} trainings of this configuration diverged (95 % interval {low:.0%} to {high:.0%})"
        + (f": {', '.join(bad[:5])}{' and more' if len(bad) > 5 else ''}" if bad else "")
    )
    if low > limit:
        return Check(
            name, "block", len(bad) / len(trials), limit,
            f"{text}. The policy allows {limit:.0%}: that this one did not is luck. Lower the learning rate, lengthen "
            "the warm-up or use Clippy, and train again.",
        )  # fmt: skip
    return Check(name, "pass", len(bad) / len(trials), limit, f"{text}.")


def _spreads(policy: Policy, trials: Sequence[Trial]) -> list[Check]:
    if not trials:
        return []
    length = float(np.median([one.last_step for one in trials]))
    alike = [one for one in trials if abs(one.last_step - length) <= _SAME_LENGTH * length and one.ended]
    checks = []
    for name in sorted({name for one in alike for name in one.finals}):
        values = [one.finals[name] for one in alike if name in one.finals and math.isfinite(one.finals[name])]
        if len(values) >= policy.trials_minimum:
            checks.append(_spread(policy, name, values))
    return checks


def _spread(policy: Policy, name: str, values: Sequence[float]) -> Check:
    check, limit = f"trial_spread/{name}", policy.trial_spread_limit
    scale = 1.0 if name.startswith("batch_auc/") else abs(float(np.mean(values))) or 1.0
    observed = float(np.std(values, ddof=1)) / scale
    low = observed * lower_share(len(values))
    of_mean = "" if scale == 1.0 else " of its mean"
    text = (
        f"Over {len(values)} trainings of this configuration the final {name} runs from {min(values):.4g} to "
        f"{max(values):.4g}, with a standard deviation of {observed:.2g}{of_mean} (at least {low:.2g}, at 95 %)"
    )
    if low > limit:
        return Check(
            check, "block", observed, limit,
            f"{text}; the policy allows {limit:g}. Which model comes out is chance: let the learning rate decay, "
            "shuffle the data, or use Clippy.",
        )  # fmt: skip
    return Check(check, "pass", observed, limit, f"{text}.")


def lower_share(count: int) -> float:
    """The lower end of the 95 % interval of a standard deviation over `count` values, as a share of it.

    From Wilson and Hilferty's approximation of the chi-squared quantile.

    >>> [round(lower_share(n), 2) for n in (3, 5, 10)]  # exactly 0.52, 0.60, 0.69
    [0.52, 0.6, 0.69]
    """
    k = count - 1
    quantile = k * (1 - 2 / (9 * k) + _Z * math.sqrt(2 / (9 * k))) ** 3
    return math.sqrt(k / quantile)
