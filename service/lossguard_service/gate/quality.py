"""The quality checks: does each task still rank, and is each better than the constant predictor?

Guarantees. Pure. A collapsed head falls back to the constant predictor while the total loss looks normal (measured in
two thirds of the full divergences), so every task is judged by itself, against its own labels. "Clearly" means by the
policy's number of standard errors, so that a task with few positives is not blocked by noise. A task about which
nothing is known is `insufficient_data`.
"""

import math
from typing import Final

import numpy as np

from lossguard.wire.frame import Floats64
from lossguard.wire.incident import BREAKING
from lossguard.wire.verdict import Check
from lossguard_service.gate.facts import Facts
from lossguard_service.gate.policy import Policy
from lossguard_service.gate.window import Window

BINARY: Final = "binary"
REGRESSION: Final = "regression"
DIVERGENCES: Final = (*BREAKING, "micro_divergence")
"""What a task's state may be blamed on: not on events of the run, as a step of the learning rate is."""


def quality_checks(policy: Policy, facts: Facts) -> tuple[Check, ...]:
    """The checks of every task, the window being known to be complete."""
    first, last = facts.step - policy.quality_steps + 1, facts.step
    window = None if facts.window is None else facts.window.between(first, last)
    if window is None or not _complete(window, first, last):
        found = 0 if window is None else len(window.steps)
        return (
            Check(
                "quality_window", "insufficient_data", found, policy.quality_steps,
                f"The quality of the tasks is judged over the last {policy.quality_steps} steps before the export "
                f"({first} to {last}), and the service holds {found} of them. Train at least {policy.quality_steps} "
                "steps, or wait until the telemetry has arrived.",
            ),
        )  # fmt: skip
    tasks = infer_tasks(window) | dict(facts.tasks)
    if not tasks:
        return (
            Check(
                "tasks_known", "insufficient_data", [], "at least one task",
                "No task is known, so no task's quality can be judged. Name them: "
                'Watch(tasks={"click": "binary", ...}), and log loss/<task> and batch_auc/<task>.',
            ),
        )  # fmt: skip
    checks = [_finite(facts, window)]
    for task, kind in sorted(tasks.items()):
        checks += _binary(policy, facts, window, task) if kind == BINARY else _regression(policy, facts, window, task)
    return tuple(checks)


def infer_tasks(window: Window) -> dict[str, str]:
    """Every task that the scalars know: what has a batch AUC is binary, everything else a regression."""
    tasks = {}
    for name in window.values:
        prefix, _, task = name.partition("/")
        if task and prefix in ("loss", "batch_auc", "rmse", "label_mean", "prediction_mean", "prediction_std"):
            tasks[task] = BINARY if f"batch_auc/{task}" in window.values else REGRESSION
    return tasks


def _complete(window: Window, first: int, last: int) -> bool:
    return first >= 1 and len(window.steps) == last - first + 1 and int(window.steps[-1]) == last


def _finite(facts: Facts, window: Window) -> Check:
    limit = "no NaN and no Inf"
    for name in sorted(window.values):
        kind, _, task = name.partition("/")
        values = window.values[name]
        bad = window.present[name] & ~np.isfinite(values)
        if kind == "batch_auc":
            # A batch of one class only has no AUC; its NaN says nothing about the model.
            labels = window.values.get(f"label_mean/{task}")
            if labels is None:
                continue
            bad &= (labels > 0) & (labels < 1)
        elif kind not in ("loss", "prediction_mean", "prediction_std", "rmse"):
            continue
        if bad.any():
            step = int(window.steps[bad.argmax()])
            what = f"{name} is {values[bad.argmax()]:g} at step {step}"
            return Check(
                "finite", "block", what, limit,
                f"At step {step}, {'the last one' if step == facts.step else 'shortly'} before the export, {name} is "
                f"{values[bad.argmax()]:g}: the model computes numbers that are none. Go back to {facts.target}.",
            )  # fmt: skip
    if window.nonfinite_layers:
        layers = ", ".join(window.nonfinite_layers[:3])
        return Check(
            "finite", "block", list(window.nonfinite_layers[:10]), limit,
            f"NaN or Inf stands in the weights or gradients of {len(window.nonfinite_layers)} layers before the "
            f"export, among them {layers}. Go back to {facts.target}.",
        )  # fmt: skip
    return Check("finite", "pass", limit, limit, "No NaN and no Inf in the last steps before the export.")


def _binary(policy: Policy, facts: Facts, window: Window, task: str) -> list[Check]:
    auc = _batch_auc(policy, facts, window, task)
    entropy = _normalized_entropy(policy, facts, window, task, ranks=auc is not None and auc.status == "pass")
    supplied = facts.metrics.get(f"auc/{task}")
    if auc is None and entropy is None:
        if supplied is None:
            return [_unknown(policy, task, f"batch_auc/{task}, or loss/{task} with label_mean/{task}", f"auc/{task}")]
        return []
    checks = [check for check in (auc, entropy) if check is not None]
    calibration = _calibration(policy, facts, window, task)
    if calibration is not None:
        checks.append(calibration)
    deviation, labels = window.together(f"prediction_std/{task}", f"label_mean/{task}")
    if len(deviation):
        rate = float(labels.mean())
        checks.append(_spread(policy, facts, task, float(deviation.mean()), math.sqrt(max(rate * (1 - rate), 1e-12))))
    return checks


def _batch_auc(policy: Policy, facts: Facts, window: Window, task: str) -> Check | None:
    measured = window.measured(f"batch_auc/{task}")
    values = measured[np.isfinite(measured)]
    if len(values) == 0:
        return None
    name, floor = f"batch_auc/{task}", policy.batch_auc_floor
    mean, error = float(values.mean()), _standard_error(values)
    over = f"over the last {policy.quality_steps} steps before the export"
    if len(values) < 5:
        return Check(
            name, "insufficient_data", len(values), 5,
            f"Task {task} has a batch AUC at only {len(values)} of the last {policy.quality_steps} steps; 5 are the "
            "least. Log it more often, or supply the metric auc/" + task + " with --metrics.",
        )  # fmt: skip
    if mean < floor:
        return Check(
            name, "block", mean, floor,
            f"Task {task} has collapsed: its mean batch AUC {over} is {mean:.3f}, and below {floor:g} it ranks no "
            f"better than chance. {_blame(facts, task)}Go back to {facts.target}.",
        )  # fmt: skip
    if mean - policy.certainty * error <= 0.5:
        return Check(
            name, "insufficient_data", mean, floor,
            f"The mean batch AUC of task {task} {over} is {mean:.3f} +- {error:.3f}: too noisy to tell it from chance. "
            f"Use larger batches or a policy with more quality_steps.",
        )  # fmt: skip
    return Check(name, "pass", mean, floor, f"Task {task} ranks: its mean batch AUC {over} is {mean:.3f}.")


def _normalized_entropy(policy: Policy, facts: Facts, window: Window, task: str, *, ranks: bool) -> Check | None:
    loss, labels = window.together(f"loss/{task}", f"label_mean/{task}")
    if len(loss) < 5:
        return None
    rate = float(np.clip(labels.mean(), 1e-9, 1 - 1e-9))
    # The loss of the constant predictor on the very same batches, so that lucky batches cancel out.
    constant = -(labels * math.log(rate) + (1 - labels) * math.log(1 - rate))
    if float(constant.mean()) <= 1e-6:
        return None
    ratio, error = _ratio(loss, constant)
    name, limit = f"normalized_entropy/{task}", policy.normalized_entropy_limit
    observed = f"the loss of task {task} is {ratio:.3f} +- {error:.3f} of that of its constant predictor"
    if ratio - policy.certainty * error > limit:
        return Check(
            name, "block", ratio, limit,
            f"{observed[0].upper()}{observed[1:]}, and more than {limit:g} means that it predicts worse than its base "
            f"rate. {_blame(facts, task)}Go back to {facts.target}.",
        )  # fmt: skip
    if not ranks and ratio + policy.certainty * error >= limit:
        return Check(
            name, "insufficient_data", ratio, limit,
            f"{observed[0].upper()}{observed[1:]}: not clearly below {limit:g}, and its batch AUC does not clear it "
            f"either. Log batch_auc/{task}, or supply auc/{task} with --metrics.",
        )  # fmt: skip
    return Check(name, "pass", ratio, limit, f"{observed[0].upper()}{observed[1:]}.")


def _calibration(policy: Policy, facts: Facts, window: Window, task: str) -> Check | None:
    predictions, labels = window.together(f"prediction_mean/{task}", f"label_mean/{task}")
    rate = float(labels.mean()) if len(labels) >= 5 else 0.0
    if rate <= 0:
        return None
    off = (predictions - labels) / rate
    observed, error = float(off.mean()), _standard_error(off)
    name, limit = f"calibration/{task}", policy.calibration_limit
    text = f"Task {task} predicts {float(predictions.mean()):.4g} on average, and the mean label is {rate:.4g}"
    if abs(observed) - policy.certainty * error > limit:
        return Check(
            name, "block", observed, limit,
            f"{text}: {abs(observed):.0%} too {'high' if observed > 0 else 'low'}, and the policy allows {limit:.0%}. "
            f"{_blame(facts, task)}Train on, or go back to {facts.target}.",
        )  # fmt: skip
    return Check(name, "pass", observed, limit, f"{text}.")


def _regression(policy: Policy, facts: Facts, window: Window, task: str) -> list[Check]:
    checks = []
    rmse, deviation = window.together(f"rmse/{task}", f"label_std/{task}")
    if len(rmse) >= 5:
        _, means = window.together(f"rmse/{task}", f"label_mean/{task}")
        drift = float(means.var()) if len(means) == len(rmse) else 0.0
        constant = deviation**2 + drift
        if float(constant.mean()) > 0:
            checks.append(_error_ratio(policy, facts, task, *_ratio(rmse**2, constant)))
    elif policy.baseline_required:
        checks.append(_unknown(policy, task, f"rmse/{task} with label_std/{task}", f"rmse/{task}"))
    spread = window.together(f"prediction_std/{task}")[0]
    if len(spread):
        level = float(np.abs(window.together(f"prediction_mean/{task}")[0]).mean() or 0.0) if window.measured(
            f"prediction_mean/{task}"
        ).size else 0.0  # fmt: skip
        scale = float(deviation.mean()) if len(deviation) else max(level, 1e-12)
        checks.append(_spread(policy, facts, task, float(spread.mean()), scale))
    if not checks and f"rmse/{task}" not in facts.metrics:
        return [_unknown(policy, task, f"prediction_std/{task}, or rmse/{task} with label_std/{task}", f"rmse/{task}")]
    return checks


def _error_ratio(policy: Policy, facts: Facts, task: str, ratio: float, error: float) -> Check:
    name, limit = f"error_ratio/{task}", policy.error_ratio_limit
    observed = f"The squared error of task {task} is {ratio:.3f} +- {error:.3f} of that of its constant predictor"
    if ratio - policy.certainty * error > limit:
        return Check(
            name, "block", ratio, limit,
            f"{observed}: it predicts worse than the mean. {_blame(facts, task)}Go back to {facts.target}.",
        )  # fmt: skip
    if policy.baseline_required and ratio >= limit:
        return Check(
            name, "insufficient_data", ratio, limit, f"{observed}: not below {limit:g}. Train longer, or supply "
            f"rmse/{task} and a policy without baseline_required.",
        )  # fmt: skip
    return Check(name, "pass", ratio, limit, f"{observed}.")


def _spread(policy: Policy, facts: Facts, task: str, observed: float, scale: float) -> Check:
    limit = policy.spread_floor * scale
    if observed < limit:
        return Check(
            f"prediction_spread/{task}", "block", observed, limit,
            f"The predictions of task {task} are as good as constant: their standard deviation within a batch is "
            f"{observed:.3g}, and the policy wants {limit:.3g}. {_blame(facts, task)}Go back to {facts.target}.",
        )  # fmt: skip
    return Check(
        f"prediction_spread/{task}", "pass", observed, limit,
        f"The predictions of task {task} spread: their standard deviation within a batch is {observed:.3g}.",
    )  # fmt: skip


def _unknown(policy: Policy, task: str, scalars: str, metric: str) -> Check:
    return Check(
        f"quality/{task}", "insufficient_data", None, scalars,
        f"Nothing is known about the quality of task {task} over the last {policy.quality_steps} steps. Log {scalars} "
        f"(the Keras callback does), or supply {metric} from held-out data with --metrics.",
    )  # fmt: skip


def _standard_error(values: Floats64) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf


def _ratio(values: Floats64, constant: Floats64) -> tuple[float, float]:
    """The ratio of two sums, with the standard error of the ratio estimator."""
    ratio = float(values.sum() / constant.sum())
    return ratio, _standard_error(values - ratio * constant) / float(constant.mean())


def _blame(facts: Facts, task: str) -> str:
    for incident in reversed(facts.incidents):
        hit = incident.kind in DIVERGENCES and (task in incident.tasks or not incident.tasks)
        if hit and incident.onset_step <= facts.step:
            layer = f", where layer {incident.first_layer} moved first" if incident.first_layer else ""
            return f"This began with the {incident.kind.replace('_', ' ')} at step {incident.onset_step}{layer}. "
    return ""
