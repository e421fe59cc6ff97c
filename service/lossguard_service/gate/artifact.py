"""The checks of the artifact itself: are its tensors finite, and does the exported model answer?

Guarantees. Pure. The service never reads the artifact: the agent beside it scans it, hashes the same bytes and reports
both. A NaN blocks under every policy; a scan or a canary that a policy wants and nobody ran is `insufficient_data`.
"""

import math

from lossguard.wire.verdict import Check
from lossguard_service.gate.facts import Facts
from lossguard_service.gate.policy import Policy


def artifact_checks(policy: Policy, facts: Facts) -> tuple[Check, ...]:
    """What the agent found in the artifact, against the policy."""
    checks = (_finite(policy, facts), _canary(policy, facts))
    return tuple(check for check in checks if check is not None)


def _finite(policy: Policy, facts: Facts) -> Check | None:
    name, limit, scan = "artifact_finite", "every tensor finite", facts.scan
    if scan is not None and scan.nonfinite:
        tensors = sorted(scan.nonfinite.items(), key=lambda item: -item[1])
        worst = ", ".join(f"{tensor} ({count})" for tensor, count in tensors[:3])
        target = f"the checkpoint of step {facts.good_checkpoint[0]}" if facts.good_checkpoint else "an earlier one"
        return Check(
            name, "block", dict(tensors[:20]), limit,
            f"The export holds NaN or Inf in {len(tensors)} tensors: {worst}. Do not release it; go back to {target}.",
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
