"""The decision: the policy's rules against the facts, each as a check that explains itself.

Guarantees. Pure: the same policy and facts give the same checks, in the policy's order. Nothing passes by absence: a
fact that is not known makes its check `insufficient_data`. Explanations name the task, the step, the layer and what to
do; they are sentences for a release engineer who has never read this source.
"""

import re
from typing import Final

from lossguard.wire.incident import BREAKING, Incident
from lossguard.wire.verdict import Check
from lossguard_service.gate.artifact import artifact_checks
from lossguard_service.gate.attribution import attribution_checks
from lossguard_service.gate.facts import Facts, Range, dropped, lineage, missing_steps, repeated_steps
from lossguard_service.gate.metrics import metric_checks
from lossguard_service.gate.policy import Policy
from lossguard_service.gate.quality import quality_checks
from lossguard_service.gate.recovery import recovery_checks
from lossguard_service.gate.stability import stability_checks
from lossguard_service.gate.words import describe, sentence

DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


def decide(policy: Policy, facts: Facts) -> tuple[Check, ...]:
    """Every check of the policy, in its order.

    Args:
        policy: the rules.
        facts: what is known about the export.

    Returns:
        The checks; `lossguard.wire.verdict.outcome_of` makes the outcome of them.
    """
    digest = _digest(facts)
    if not facts.run_known:
        return (digest, _run_unknown(facts))
    checks = [
        digest,
        Check("run_known", "pass", f"{facts.project}/{facts.run}", "a watched run", "The run is known."),
        _step_reached(facts),
        _telemetry_complete(facts),
        _judged(policy, facts),
        _recent(policy, facts),
        _coverage(policy, facts),
        _no_open_incident(policy, facts),
        *recovery_checks(policy, facts),
        *quality_checks(policy, facts),
        *attribution_checks(policy, facts),
        *artifact_checks(policy, facts),
        *metric_checks(policy, facts),
        *stability_checks(policy, facts),
    ]
    return tuple(checks)


def _digest(facts: Facts) -> Check:
    well_formed = DIGEST.fullmatch(facts.artifact_digest) is not None
    return Check(
        "artifact_digest", "pass" if well_formed else "block", facts.artifact_digest[:100], "sha256: and 64 hex digits",
        "The artifact's digest is well-formed; the verdict holds for exactly these bytes."
        if well_formed
        else "The artifact's digest is not a SHA-256. Let `lossguard gate check --artifact DIR` compute it.",
    )  # fmt: skip


def _run_unknown(facts: Facts) -> Check:
    return Check(
        "run_known", "insufficient_data", None, "a watched run",
        f"The service has never heard of run {facts.run} in project {facts.project}. Check the name, and that the "
        "trainer was watched and its telemetry shipped to this service (`lossguard sidecar`).",
    )  # fmt: skip


def _step_reached(facts: Facts) -> Check:
    segments = lineage(facts.attempts)
    last = segments[-1].last if segments else 0
    limit = f"1 to {last}"
    if facts.step < 1:
        return Check(
            "step_reached", "block", facts.step, limit,
            f"An export holds at least one step, and the request says step {facts.step}. Steps count from 1.",
        )  # fmt: skip
    if facts.step > last:
        superseded = [a for a in facts.attempts if a.last_step is not None and a.last_step >= facts.step]
        why = (
            f"Attempt {superseded[-1].number} had reached it, but the run was restarted from step "
            f"{facts.attempts[-1].start_step} since, so what it did after that no longer counts."
            if superseded
            else "Wait until the telemetry has arrived (--wait), or correct --step."
        )
        return Check(
            "step_reached", "insufficient_data", last, facts.step,
            f"The export is said to hold step {facts.step}, and the run has reached step {last}. {why}",
        )  # fmt: skip
    if facts.attempt is not None:
        named = [a for a in facts.attempts if a.key == facts.attempt]
        if not named:
            return Check(
                "step_reached", "insufficient_data", facts.attempt, "an attempt of this run",
                f"The export is said to come from attempt {facts.attempt}, of which the run knows nothing. "
                "Correct --attempt, or leave it out.",
            )  # fmt: skip
        holder = next(part for part in segments if part.first <= facts.step <= part.last)
        # A checkpoint taken right at the restart's step is the one that the restart loaded: the older attempt's.
        if holder.attempt != named[0].number:
            return Check(
                "step_reached", "block", named[0].number, holder.attempt,
                f"The export comes from attempt {named[0].number}, but the run was restarted since, and its step "
                f"{facts.step} is now attempt {holder.attempt}'s. Export again from the attempt that counts.",
            )  # fmt: skip
    return Check(
        "step_reached", "pass", facts.step, limit,
        f"The run has reached step {facts.step}, the step of the export.",
    )  # fmt: skip


def _telemetry_complete(facts: Facts) -> Check:
    segments = lineage(facts.attempts)
    limit = f"every step from 1 to {facts.step}"
    drops = dropped(segments, facts.drops, facts.step)
    missing = missing_steps(segments, facts.spans, facts.step)
    unplaced = [attempt.number for attempt in facts.attempts if attempt.start_step is None]
    if unplaced:
        return Check(
            "telemetry_complete", "insufficient_data", unplaced, limit,
            f"Attempt {unplaced[0]} has begun, but its first chunk, which says from where, is missing: what counts "
            "as this run is not known. Wait until the telemetry has arrived (--wait).",
        )  # fmt: skip
    twice = repeated_steps(facts.spans)
    if twice:
        return Check(
            "telemetry_complete", "insufficient_data", list(twice), limit,
            f"One attempt sent steps {twice[0]} to {twice[1]} twice, and it is not known which of the two made this "
            "export. Give each training its own run, and each restart its own attempt.",
        )  # fmt: skip
    if drops:
        counts = ", ".join(f"{count} ({reason})" for reason, count in sorted(drops.items()))
        return Check(
            "telemetry_complete", "insufficient_data", dict(sorted(drops.items())), limit,
            f"The trainer dropped frames: {counts}. What happened in them is not known. What the reasons mean "
            "stands in docs/datapath.md (Why a frame is dropped). Export again from a run without drops, or, if the "
            "steps since have shown enough, waive this check with a reason (lossguard gate waive --check "
            "telemetry_complete).",
        )  # fmt: skip
    if missing:
        return Check(
            "telemetry_complete", "insufficient_data", [list(gap) for gap in missing[:10]], limit,
            f"Telemetry is missing for {_ranges(missing)}. If the sidecar still has chunks to ship, wait (--wait). If "
            "they are lost, nobody knows what happened in these steps: export again from a run that is watched from "
            "its first step, or, if the steps since have shown enough, waive this check with a reason (lossguard gate "
            "waive --check telemetry_complete).",
        )  # fmt: skip
    return Check(
        "telemetry_complete", "pass", limit, limit,
        f"Telemetry covers {limit}, over {len(segments)} attempt{'s' if len(segments) > 1 else ''}.",
    )  # fmt: skip


def _judged(policy: Policy, facts: Facts) -> Check:
    segments = lineage(facts.attempts)
    ended = bool(facts.attempts) and facts.attempts[-1].stop_reason is not None
    last = segments[-1].last if segments else 0
    wanted = facts.step + policy.settle_steps
    if ended:
        wanted = max(facts.step, min(wanted, last))
    judged = facts.judged_step or 0
    if judged < wanted:
        return Check(
            "judged", "insufficient_data", judged, wanted,
            f"The detectors have judged the run up to step {judged}, and the policy wants {wanted}. Wait until the "
            "telemetry has arrived (--wait).",
        )  # fmt: skip
    return Check("judged", "pass", judged, wanted, f"The detectors have judged the run up to step {judged}.")


def _recent(policy: Policy, facts: Facts) -> Check:
    last = facts.attempts[-1] if facts.attempts else None
    if (
        last is not None
        and last.stop_reason == "failed"
        and last.last_step is not None
        and last.last_step <= facts.step
    ):
        return Check(
            "recent", "insufficient_data", last.stop_reason, "finished",
            f"Training failed with an exception at step {last.last_step}, the step of the export. Find out why first, "
            "and export from a training that ended in good order.",
        )  # fmt: skip
    if last is not None and last.stop_reason is not None:
        return Check(
            "recent", "pass", last.stop_reason, "finished, or heard from lately",
            f"The training has ended ({last.stop_reason}) and said so; nothing more is to come.",
        )  # fmt: skip
    if facts.judged_step is not None and facts.judged_step >= facts.step + policy.quality_steps:
        return Check(
            "recent", "pass", facts.judged_step, facts.step + policy.quality_steps,
            f"The run has gone on to step {facts.judged_step} since the export, and was judged all the way.",
        )  # fmt: skip
    silent = facts.silent_seconds
    if silent is None or silent > policy.fresh_seconds:
        said = "never" if silent is None else f"for {silent:.0f} s"
        return Check(
            "recent", "insufficient_data", silent, policy.fresh_seconds,
            f"The run has not ended, and nothing was heard from it {said}; the policy allows {policy.fresh_seconds:g} "
            "s. Check that the trainer lives, that its sidecar reaches the service, and that all clocks agree.",
        )  # fmt: skip
    return Check("recent", "pass", silent, policy.fresh_seconds, f"The run was heard from {silent:.0f} s ago.")


def _coverage(policy: Policy, facts: Facts) -> Check:
    watched, limit = facts.parameters_watched, policy.minimum_coverage
    if watched is None:
        return Check(
            "coverage", "insufficient_data", None, limit,
            "The trainer did not say which share of the parameters it watches. Update lossguard in the trainer, or put "
            "parameters_watched into the attempt's config.",
        )  # fmt: skip
    if not limit <= watched <= 1:
        return Check(
            "coverage", "insufficient_data", watched, limit,
            f"{watched:.1%} of the trained parameters are watched, and the policy wants {limit:.1%}. Wrap the "
            "optimizer of every part of the model.",
        )  # fmt: skip
    return Check("coverage", "pass", watched, limit, f"{watched:.1%} of the trained parameters are watched.")


def _no_open_incident(policy: Policy, facts: Facts) -> Check:
    limit = "no open " + ", ".join(kind.replace("_", " ") for kind in policy.blocking_kinds)
    bad = [incident for incident in facts.incidents if _blocks(policy, incident, facts.step)]
    if not bad:
        return Check("no_open_incident", "pass", [], limit, f"No incident was open at step {facts.step}.")
    worst = min(bad, key=lambda incident: (incident.kind not in BREAKING, incident.onset_step))
    others = f" {len(bad) - 1} more were open at this step." if len(bad) > 1 else ""
    return Check(
        "no_open_incident", "block", [f"{i.kind} at step {i.onset_step}" for i in bad[:10]], limit,
        f"{describe(worst)}{others} What to do: {_what_to_do(worst, facts)}",
    )  # fmt: skip


def _blocks(policy: Policy, incident: Incident, step: int) -> bool:
    if incident.kind not in policy.blocking_kinds:
        return False
    onset = incident.onset_step
    if policy.signal_blocks and incident.first_signal_step is not None:
        onset = min(onset, incident.first_signal_step)
    return onset <= step and (incident.end_step is None or incident.end_step > step)


def _what_to_do(incident: Incident, facts: Facts) -> str:
    advice = sentence(incident.advice) or (
        "Go back to a checkpoint with optimizer slots from before it, and halve the learning rate or switch Clippy on."
    )
    if facts.good_checkpoint is None:
        return advice
    step, path = facts.good_checkpoint
    return f"{advice} The newest checkpoint that can be trusted is that of step {step} ({path})."


def _ranges(gaps: tuple[Range, ...]) -> str:
    shown = ", ".join(f"step {a}" if a == b else f"steps {a} to {b}" for a, b in gaps[:5])
    return shown if len(gaps) <= 5 else f"{shown} and {len(gaps) - 5} more stretches"
