"""The metrics that the release pipeline supplies from held-out data, and those of the last version that passed.

Guarantees. Pure. A metric that is no finite number blocks. A version of the same model that passed is compared with,
whichever run of the project it came from; the verdict names it. Where that version came with a metric and this one does
not, nobody knows whether it became worse, and the answer is `insufficient_data`.
"""

import math
from typing import Final

from lossguard.wire.verdict import Check
from lossguard_service.gate.facts import Facts, Previous
from lossguard_service.gate.policy import Policy
from lossguard_service.gate.quality import BINARY, infer_tasks

ERRORS: Final = ("rmse/", "mae/", "loss/", "normalized_entropy/")
"""Metrics of which less is better, by how they begin; of `auc/` more is. Others are not compared."""


def metric_checks(policy: Policy, facts: Facts) -> tuple[Check, ...]:
    """Each metric by itself, each against the version before, and those that are missing."""
    checks = [_metric(policy, facts, name, value) for name, value in sorted(facts.metrics.items())]
    checks += [
        _not_worse(policy, facts, name, before)
        for name, before in sorted(facts.previous.items())
        if name.startswith(("auc/", *ERRORS))
    ]
    return (*checks, *_missing(policy, facts))


def _missing(policy: Policy, facts: Facts) -> list[Check]:
    if not policy.metrics_required:
        return []
    tasks = (infer_tasks(facts.window) if facts.window is not None else {}) | dict(facts.tasks)
    names = [f"auc/{task}" for task, kind in sorted(tasks.items()) if kind == BINARY]
    return [
        Check(
            f"metric:{name}", "insufficient_data", None, policy.metric_auc_floor,
            f"Policy {policy.name} wants {name} from held-out data and none was supplied. "
            f'Pass --metrics FILE with {{"{name}": ...}} in it.',
        )
        for name in names
        if name not in facts.metrics
    ]  # fmt: skip


def _metric(policy: Policy, facts: Facts, name: str, value: float) -> Check:
    check = f"metric:{name}"
    if not math.isfinite(value):
        return Check(
            check, "block", value, "a finite number",
            f"The supplied metric {name} is {value}: the evaluation met NaN or Inf. Do not release this export.",
        )  # fmt: skip
    if not name.startswith("auc/"):
        return Check(check, "pass", value, "a finite number", f"The supplied metric {name} is {value:g}.")
    task, floor = name.removeprefix("auc/"), policy.metric_auc_floor
    if not 0 <= value <= 1:
        return Check(
            check, "block", value, floor, f"The supplied {name} is {value:g}: an AUC lies between 0 and 1. "
            "If it is in per cent, divide it by 100.",
        )  # fmt: skip
    if value < floor:
        return Check(
            check, "block", value, floor,
            f"On held-out data task {task} reaches an AUC of {value:.4f}, and the policy wants {floor:g}: at 0.5 a "
            f"model ranks no better than chance. Do not release this export; go back to {facts.target}.",
        )  # fmt: skip
    return Check(check, "pass", value, floor, f"On held-out data task {task} reaches an AUC of {value:.4f}.")


def _not_worse(policy: Policy, facts: Facts, name: str, before: Previous) -> Check:
    more_is_better = name.startswith("auc/")
    tolerance = policy.regression_tolerance if more_is_better else policy.error_tolerance
    limit = before.value - tolerance if more_is_better else before.value * (1 + tolerance)
    model = f"of model {facts.model}" if facts.model else "in this project"
    text = (
        f"The last version {model} that passed with it, step {before.step} of run {before.run} (verdict "
        f"{before.verdict}), had {name} {before.value:.4f}"
    )
    check, value = f"metric_not_worse:{name}", facts.metrics.get(name)
    if value is None:
        return Check(
            check, "insufficient_data", None, limit,
            f"{text}, and this one comes without. Pass --metrics FILE with {name} in it. If that is another model, "
            'name both: Watch(config={"model": ...}).',
        )  # fmt: skip
    allowed = f"{tolerance:g} less" if more_is_better else f"{tolerance:.0%} more"
    if value >= limit if more_is_better else value <= limit:
        return Check(check, "pass", value, limit, f"{text}, this one has {value:.4f}; at most {allowed} is allowed.")
    return Check(
        check, "block", value, limit,
        f"{text}, this one has {value:.4f}; at most {allowed} is allowed. Keep the old version, or waive this check. "
        'If that is another model, name both: Watch(config={"model": ...}).',
    )  # fmt: skip
