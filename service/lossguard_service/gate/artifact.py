"""The checks of the artifact itself: are its tensors and the optimizer's finite, and does the exported model answer?

Guarantees. Pure. The service never reads the artifact: the agent beside it scans it, hashes the same bytes and reports
both. A NaN blocks under every policy; a scan or a canary that a policy wants and nobody ran is `insufficient_data`.
"""

import math

from lossguard.wire.verdict import Check
from lossguard_service.gate.facts import Facts
from lossguard_service.gate.policy import Policy


def artifact_checks(policy: Policy, facts: Facts) -> tuple[Check, ...]:
    """What the agent found in the artifact, against the policy."""
    checks = (_finite(policy, facts), _slots(policy, facts), _canary(policy, facts))
    return tuple(check for check in checks if check is not None)


def _finite(policy: Policy, facts: Facts) -> Check | None:
    name, limit, scan = "artifact_finite", "every tensor finite", facts.scan
    if scan is not None and scan.nonfinite:
        tensors = sorted(scan.nonfinite.items(), key=lambda item: -item[1])
        worst = ", ".join(f"{tensor} ({count})" for tensor, count in tensors[:3])
        return Check(
            name, "block", dict(tensors[:20]), limit,
            f"The export holds NaN or Inf in {len(tensors)} tensors: {worst}. Do not release it; go back to "
            f"{facts.target}.",
        )  # fmt: skip
    if not policy.scan_required and (scan is None or not scan.complete):
        return None
    if scan is None:
        return Check(
            name, "insufficient_data", None, limit,
            "Nobody looked for NaN and Inf in the export's tensors. Ask with `lossguard gate check --artifact DIR`, or "
            "with lossguard.gate.client.check, which do.",
        )  # fmt: skip
    if not scan.complete or scan.tensors < 1:
        why = scan.note or "it holds no tensors of floats"
        return Check(
            name, "insufficient_data", scan.tensors, limit,
            f"The export's tensors could not all be read: {why}.",
        )  # fmt: skip
    return Check(
        name, "pass", scan.tensors, limit,
        f"All {scan.values} numbers in the {scan.tensors} tensors of the export are finite.",
    )  # fmt: skip


def _slots(policy: Policy, facts: Facts) -> Check | None:
    """The optimizer's tensors: those that the artifact holds, and what the updates of the last steps say of them."""
    name, limit, scan = "slots_finite", "no NaN and no Inf", facts.scan
    window = facts.window
    if scan is not None and scan.nonfinite_slots:
        tensors = sorted(scan.nonfinite_slots.items(), key=lambda item: -item[1])
        worst = ", ".join(f"{tensor} ({count})" for tensor, count in tensors[:3])
        return Check(
            name, "block", dict(tensors[:20]), limit,
            f"The optimizer's state in the export holds NaN or Inf in {len(tensors)} tensors: {worst}. Whoever trains "
            f"on from it loses the weights too. Go back to {facts.target}.",
        )  # fmt: skip
    if window is not None and window.nonfinite_updates:
        layers = ", ".join(window.nonfinite_updates[:3])
        return Check(
            name, "block", list(window.nonfinite_updates[:10]), limit,
            f"The optimizer's last updates of {len(window.nonfinite_updates)} layers hold NaN or Inf, among them "
            f"{layers}: its slots are broken, and the weights are next. Go back to {facts.target}.",
        )  # fmt: skip
    held = 0 if scan is None or not scan.complete else scan.slots
    if held or (window is not None and window.updates_measured):
        said = [f"the {held} tensors of the optimizer in the export are finite"] if held else []
        if window is not None and window.updates_measured:
            said.append("the last updates of all layers, which the optimizer computes from its slots, are finite")
        text = " and ".join(said)
        return Check(name, "pass", held, limit, f"{text[0].upper()}{text[1:]}.")
    if not policy.slots_required:
        return None
    return Check(
        name, "insufficient_data", None, limit,
        f"Policy {policy.name} wants to know whether the optimizer's slots are finite: the export holds none, and the "
        "stat update_norm was not measured. Watch the optimizer, or judge a checkpoint that holds it.",
    )  # fmt: skip


def _canary(policy: Policy, facts: Facts) -> Check | None:
    name, limit, canary = "canary", "finite outputs that differ from row to row", facts.canary
    if canary is None:
        if not policy.canary_required:
            return None
        return Check(
            name, "insufficient_data", None, limit,
            f"Policy {policy.name} wants the exported model to answer on canary rows. Pass --canary FILE.",
        )  # fmt: skip
    if canary.error is not None:
        return Check(
            name, "block", canary.error, limit, f"The exported model did not answer the canary: {canary.error}"
        )
    if canary.rows < 2:
        return Check(
            name, "insufficient_data", canary.rows, limit,
            f"The canary holds {canary.rows} rows, and it takes two or more that differ. Add rows.",
        )  # fmt: skip
    if canary.nonfinite > 0:
        return Check(
            name, "block", canary.nonfinite, limit,
            f"The exported model answers NaN or Inf {canary.nonfinite} times on {canary.rows} canary rows.",
        )  # fmt: skip
    if not canary.spread > 0 or not math.isfinite(canary.spread):
        return Check(
            name, "block", canary.spread, limit,
            f"The exported model gives the same answer on all {canary.rows} canary rows: it has collapsed, or its "
            "inputs do not reach it.",
        )  # fmt: skip
    return Check(
        name, "pass", canary.spread, limit,
        f"The exported model answers {canary.rows} canary rows with finite outputs that differ.",
    )  # fmt: skip
