"""Divergences that came and went: few enough, healed well enough, long enough ago.

Guarantees. Pure. How far an episode left its task off was measured when it ended, over a few frames. Where that is
beyond the limit, the task is measured again before the export, against the steps before the onset: the total loss, the
task's loss and what it knows (a binary task's loss over that of its constant predictor, and its AUC above chance; a
regression's error over its labels' deviation), so that easier labels are no recovery. All of them have to be back.
Whatever cannot be compared (frames that are gone, a scalar that is missing on one side, NaN) leaves the rule as it was:
the export is blocked.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from lossguard.wire.frame import Floats64
from lossguard.wire.incident import BREAKING, Incident
from lossguard.wire.verdict import Check
from lossguard_service.gate.facts import Facts, Range
from lossguard_service.gate.policy import Policy
from lossguard_service.gate.quality import BINARY, REGRESSION, infer_tasks
from lossguard_service.gate.window import Window
from lossguard_service.gate.words import describe

LEAST: Final = 9
"""Values that a level rests on: what the detectors' own centre is the median of."""
_SKILL: Final = 0.04
"""An AUC of less than this above chance knew nothing that it could have lost."""
_EPISODES: Final = (*BREAKING, "micro_divergence", "loss_spike")


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is worst about a task now.

    Attributes:
        what: the measure, in words.
        worse: by which share it is worse than before the onset; negative if it is better.
    """

    what: str
    worse: float


def recovery_checks(policy: Policy, facts: Facts) -> tuple[Check, Check]:
    """`recovered_divergences` and `quiet_period`."""
    past = past_of(facts.incidents, facts.step)
    return _recovered(policy, facts, past), _quiet(policy, facts, past)


def past_of(incidents: Sequence[Incident], step: int) -> list[Incident]:
    """The divergences that ended before an export at this step."""
    kinds = (*BREAKING, "micro_divergence")
    return [one for one in incidents if one.kind in kinds and one.end_step is not None and one.end_step <= step]


def is_off(policy: Policy, incident: Incident) -> bool:
    """True if the task was further off when the episode ended than the policy allows."""
    return not incident.residual <= policy.residual_limit


def steps_before(policy: Policy, incident: Incident) -> Range:
    """The steps before the onset (and the first signal) that say where the task was; empty if first > last."""
    signal = incident.onset_step if incident.first_signal_step is None else incident.first_signal_step
    last = min(signal, incident.onset_step) - 1
    return max(1, last - policy.quality_steps + 1), last


def _recovered(policy: Policy, facts: Facts, past: list[Incident]) -> Check:
    name = "recovered_divergences"
    limit = f"at most {policy.recovered_budget}, residual at most {policy.residual_limit:g}"
    back = []
    for incident in past:
        if not is_off(policy, incident):
            continue
        found = compared(policy, facts, incident)
        if found is None or not found.worse <= policy.residual_limit:
            observed = incident.residual if found is None else found.worse
            return Check(name, "block", observed, limit, _left(policy, incident, found))
        back.append(
            f" That of step {incident.onset_step} left its task {incident.residual:.1%} worse; over the last "
            f"{policy.quality_steps} steps before the export it is back: {_said(found)} than before."
        )
    if len(past) > policy.recovered_budget:
        steps = ", ".join(str(one.onset_step) for one in past[:10])
        return Check(
            name, "block", len(past), limit,
            f"{len(past)} divergences began and ended before the export (at steps {steps}), and policy {policy.name} "
            f"allows {policy.recovered_budget}: this training is not stable. Lower the learning rate or use Clippy.",
        )  # fmt: skip
    text = f"{len(past) or 'No'} recovered divergence{'' if len(past) == 1 else 's'} before the export."
    return Check(name, "pass", len(past), limit, text + "".join(back[:3]))


def _left(policy: Policy, incident: Incident, found: Comparison | None) -> str:
    text = f"{describe(incident)} It ended at step {incident.end_step}, but "
    text += (
        f"its task ended {incident.residual:.1%} worse than before"
        if math.isfinite(incident.residual)
        else "how far its task was off then is no number"
    )
    allowed = f"the policy allows {policy.residual_limit:.1%}"
    earlier = f"o back to a checkpoint from before step {incident.onset_step}"
    if found is None:
        return (
            f"{text}, and {allowed}. Whether it has come back since cannot be told from the frames that are stored. "
            f"G{earlier}, or waive this check if the task has come back."
        )
    return (
        f"{text}, and over the last {policy.quality_steps} steps before the export {_said(found)} than before the "
        f"onset; {allowed}. Train on and export again once it has come back, or g{earlier}."
    )


def _said(found: Comparison) -> str:
    return f"{found.what} is {abs(found.worse):.1%} {'worse' if found.worse > 0 else 'better'}"


def _quiet(policy: Policy, facts: Facts, past: list[Incident]) -> Check:
    if not past:
        return Check("quiet_period", "pass", None, policy.quiet_steps, "No divergence to wait for.")
    last = max(past, key=lambda incident: incident.end_step or 0)
    quiet = facts.step - (last.end_step or 0)
    if quiet < policy.quiet_steps:
        return Check(
            "quiet_period", "block", quiet, policy.quiet_steps,
            f"The {last.kind.replace('_', ' ')} of step {last.onset_step} ended at step {last.end_step}, {quiet} steps "
            f"before the export, and policy {policy.name} wants {policy.quiet_steps}. Export again after step "
            f"{(last.end_step or 0) + policy.quiet_steps}.",
        )  # fmt: skip
    return Check(
        "quiet_period", "pass", quiet, policy.quiet_steps,
        f"The last divergence ended {quiet} steps before the export.",
    )  # fmt: skip


def compared(policy: Policy, facts: Facts, incident: Incident) -> Comparison | None:
    """The worst measure of what the episode hit, now against before it; None if that is not known of all of them."""
    before = _before(policy, facts, incident)
    now = _now(policy, facts, incident)
    if before is None or now is None or not math.isfinite(incident.residual):
        return None
    known = infer_tasks(now) | dict(facts.tasks)
    tasks = {task: known.get(task, REGRESSION) for task in incident.tasks} or known
    found = []
    for what, worse in _measures(tasks, before, now):
        if worse is None or not math.isfinite(worse):
            return None
        found.append(Comparison(what, worse))
    return max(found, key=lambda one: one.worse, default=None)


def _now(policy: Policy, facts: Facts, incident: Incident) -> Window | None:
    """The steps before the export, all of them after the episode."""
    first, last = facts.step - policy.quality_steps + 1, facts.step
    if facts.window is None or incident.end_step is None or incident.end_step > first:
        return None
    window = facts.window.between(first, last)
    return window if len(window.steps) == last - first + 1 else None


def _before(policy: Policy, facts: Facts, incident: Incident) -> Window | None:
    """The steps before the onset without those of other episodes, none of which says where the task was."""
    first, last = steps_before(policy, incident)
    window = facts.before.get(incident.number)
    if window is None or len(window.steps) != last - first + 1:
        return None
    kept = np.ones(len(window.steps), np.bool_)
    for other in facts.incidents:
        if other.number != incident.number and other.kind in _EPISODES:
            begin = steps_before(policy, other)[1] + 1
            kept &= (window.steps < begin) | (window.steps >= (math.inf if other.end_step is None else other.end_step))
    return window.only(kept)


def _measures(tasks: Mapping[str, str], before: Window, now: Window) -> Iterator[tuple[str, float | None]]:
    """Each measure in words, and by which share it is worse now; None where that is not known."""
    if "loss" in before.values or "loss" in now.values:
        yield "the total loss", _worse(before, now, "loss")
    for task, kind in tasks.items():
        loss, auc = f"loss/{task}", f"batch_auc/{task}"
        if kind == BINARY:
            yield (
                f"the loss of task {task}",
                _worse(before, now, loss, *(_constant(one, task) for one in (before, now))),
            )
            if auc in before.values or auc in now.values:
                yield f"the batch AUC of task {task}", _less_skill(before, now, auc)
        else:
            yield f"the loss of task {task}", _worse(before, now, loss)
            yield f"the error of task {task}", _worse_error(before, now, f"rmse/{task}", f"label_std/{task}")


def _worse(
    before: Window, now: Window, name: str, constant_before: float | None = 1.0, constant_now: float | None = 1.0
) -> float | None:
    """By which share a loss is higher now, each over what the constant predictor pays."""
    low, level = _level(before, name, min), _level(now, name)
    if low is None or level is None or not low > 0 or not constant_before or not constant_now:
        return None
    return (level / constant_now) / (low / constant_before) - 1


def _less_skill(before: Window, now: Window, name: str) -> float | None:
    """By which share the AUC is less above chance now; 0 if it knew nothing before."""
    high, level = _level(before, name, max), _level(now, name)
    if high is None or level is None:
        return None
    return 0.0 if high - 0.5 < _SKILL else 1 - (level - 0.5) / (high - 0.5)


def _worse_error(before: Window, now: Window, error: str, deviation: str) -> float | None:
    """By which share the squared error is higher now, over that of the constant predictor."""
    low, level, was, is_now = (
        _level(before, error, min), _level(now, error), _level(before, deviation), _level(now, deviation)
    )  # fmt: skip
    if low is None or level is None or not was or not is_now or not low > 0:
        return None
    return (level / is_now) ** 2 / (low / was) ** 2 - 1


def _constant(window: Window, task: str) -> float | None:
    """What the constant predictor of a binary task pays at the window's mean label; None if that is not known."""
    values = _values(window, f"label_mean/{task}")
    rate = math.nan if values is None else float(values.mean())
    return -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate)) if 0 < rate < 1 else None


def _level(window: Window, name: str, pick: Callable[[float, float], float] | None = None) -> float | None:
    """The median; with `pick`, that of all values or that of the last ones, whichever is the stricter level.

    Early in a training the loss falls so fast that the median of many steps is no level any more.
    """
    values = _values(window, name)
    if values is None:
        return None
    whole = float(np.median(values))
    return whole if pick is None else pick(whole, float(np.median(values[-LEAST:])))


def _values(window: Window, name: str) -> Floats64 | None:
    """The values of a scalar, if there are enough and all are finite."""
    values = window.measured(name)
    return values if len(values) >= LEAST and bool(np.isfinite(values).all()) else None
