"""Waivers at work: a named person lets named checks pass, for a while, and the verdict says so.

Guarantees. Pure. What binds a verdict to its export can never be waived: the digest, that the run is known, that the
step was reached. A waived check passes with the waiver in its explanation, after which comes what it would have said.
"""

import difflib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from lossguard.wire.verdict import Check
from lossguard_service.store.waivers import Waiver

NEVER: Final = ("artifact_digest", "run_known", "step_reached", "signature")
"""Checks that nobody can waive."""
NAMES: Final = (
    "telemetry_complete", "judged", "recent", "coverage", "no_open_incident", "recovered_divergences", "quiet_period",
    "quality_window", "tasks_known", "finite", "artifact_finite", "slots_finite", "canary", "trials",
    "trial_divergences", "attribution",
)  # fmt: skip
FAMILIES: Final = (
    "batch_auc/", "normalized_entropy/", "calibration/", "prediction_spread/", "error_ratio/", "quality/", "metric:",
    "metric_not_worse:", "trial_spread/",
)  # fmt: skip
"""How the names of checks begin of which there is one for each task, metric or scalar."""
LONGEST_SECONDS: Final = 90 * 86_400.0
"""A waiver that outlives a quarter is a policy: change the policy instead."""


class WaiverError(ValueError):
    """A waiver that cannot be; the sentence names the field."""


def checked(waiver: Waiver) -> Waiver:
    """The waiver, if it can be one.

    Raises:
        WaiverError: it waives what cannot be waived, or everything, or for ever, or says nobody's reason.
    """
    if not waiver.checks:
        raise WaiverError("checks: name the checks to waive, as they stand in the verdict")
    for name in waiver.checks:
        if name in NEVER:
            raise WaiverError(f"checks: {name} cannot be waived: it is what binds a verdict to its export")
        if not name.strip() or "*" in name:
            raise WaiverError(f"checks: {name!r} is not the name of a check; write it as it stands in the verdict")
        if name not in NAMES and not (name.startswith(FAMILIES) and name not in FAMILIES):
            near = difflib.get_close_matches(name, [*NAMES, *FAMILIES], 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise WaiverError(f"checks: no check is named {name!r}{hint}; write it as it stands in the verdict")
    if not waiver.author.strip():
        raise WaiverError("author: say who takes the responsibility")
    if len(waiver.reason.strip()) < 10:
        raise WaiverError("reason: say why in a sentence; whoever reads the verdict wants to know")
    seconds = waiver.expires - waiver.created
    if not 0 < seconds <= LONGEST_SECONDS:
        days = LONGEST_SECONDS / 86_400
        raise WaiverError(f"expires: must lie ahead, at most {days:g} days; for longer, change the policy")
    if waiver.first_step is not None and waiver.last_step is not None and waiver.first_step > waiver.last_step:
        raise WaiverError("first_step: must not be greater than last_step")
    return waiver


def counts(waiver: Waiver, project: str, run: str, step: int, now: float) -> bool:
    """True if the waiver is for this export and neither expired nor revoked."""
    return (
        (waiver.project, waiver.run) == (project, run)
        and (waiver.first_step is None or waiver.first_step <= step)
        and (waiver.last_step is None or step <= waiver.last_step)
        and waiver.created <= now < waiver.expires
        and waiver.revoked is None
    )


def waive(checks: Sequence[Check], waivers: Sequence[Waiver]) -> tuple[Check, ...]:
    """The checks with the waived ones passing; `waivers` are those that count."""
    return tuple(_waived(check, waivers) for check in checks)


def _waived(check: Check, waivers: Sequence[Waiver]) -> Check:
    if check.status == "pass" or check.name in NEVER:
        return check
    waiver = next((one for one in waivers if check.name in one.checks), None)
    if waiver is None:
        return check
    until = datetime.fromtimestamp(waiver.expires, UTC).strftime("%Y-%m-%d %H:%M UTC")
    text = (
        f"Waived by {waiver.author} until {until} (waiver {waiver.id}): {waiver.reason} "
        f"Without the waiver this would be {check.status}: {check.explanation}"
    )
    return replace(check, status="pass", explanation=text)
