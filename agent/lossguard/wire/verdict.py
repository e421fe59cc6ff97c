"""Verdicts: the gate's answer about one export.

A verdict is immutable and bound to one artifact by its digest. Everything but `pass` blocks.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from lossguard.wire.numbers import canonical_json, to_json

Outcome = Literal["pass", "block", "insufficient_data"]
CheckStatus = Literal["pass", "block", "insufficient_data"]

EXIT_CODES: dict[str, int] = {"pass": 0, "block": 1, "insufficient_data": 3}
SIGNED_PREFIX = b"lossguard verdict 1\n"
"""Stands before the canonical bytes in what is signed, so that nothing else that is signed can be a verdict."""
EXIT_USAGE = 2
EXIT_UNREACHABLE = 4


@dataclass(frozen=True, slots=True)
class Check:
    """One rule of the policy against one fact.

    Attributes:
        name: for example `telemetry_complete`.
        status: its own answer.
        observed: what was found (number, text or None), non-finite numbers as in `lossguard.wire.numbers`.
        limit: what the policy allows.
        explanation: one sentence that a release engineer understands without our source.
        evidence: where to look, a path on the service that judged; empty if there is nothing but the check itself.
    """

    name: str
    status: CheckStatus
    observed: Any
    limit: Any
    explanation: str
    evidence: str = ""

    def to_json(self) -> dict[str, Any]:
        """The check as a dict; without `evidence` where there is none, as all were signed that came before it."""
        values = {name: getattr(self, name) for name in self.__slots__}
        if not self.evidence:
            del values["evidence"]
        return values


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's answer.

    Attributes:
        id: 32 hex digits.
        project, run: whose export it is.
        step: the last step trained into it.
        artifact_digest: `sha256:` and 64 hex digits (`lossguard.gate.digest`).
        policy, policy_version: by what it was judged.
        outcome: `pass` if every check passed, else `block` if any check blocks, else `insufficient_data`.
        checks: in the policy's order.
        created: Unix seconds.
    """

    id: str
    project: str
    run: str
    step: int
    artifact_digest: str
    policy: str
    policy_version: int
    outcome: Outcome
    checks: tuple[Check, ...]
    created: float

    @property
    def reasons(self) -> tuple[str, ...]:
        """The explanations of the checks that did not pass."""
        return tuple(check.explanation for check in self.checks if check.status != "pass")

    def to_json(self) -> dict[str, Any]:
        """The verdict, ready for `json.dumps`."""
        return dict(to_json(self._values()) | {"reasons": list(self.reasons)})

    def canonical(self) -> bytes:
        """The bytes that a signature covers."""
        return canonical_json(self._values())

    def _values(self) -> dict[str, Any]:
        # What `asdict` gives, which would copy every value in depth for half a millisecond; `to_json` copies anyway.
        values = {name: getattr(self, name) for name in self.__slots__}
        values["checks"] = [check.to_json() for check in self.checks]
        return values

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """The inverse of `to_json`; keys that are not fields are passed over.

        Raises:
            ValueError: a field is missing or the outcome does not follow from the checks.
        """
        try:
            values = {field.name: document[field.name] for field in fields(cls)}
            values["checks"] = tuple(Check(**check) for check in values["checks"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a verdict: {error}") from None
        verdict = cls(**values)
        if verdict.outcome != outcome_of(verdict.checks):
            raise ValueError(f"not a verdict: its outcome {verdict.outcome!r} does not follow from its checks")
        return verdict


def outcome_of(checks: tuple[Check, ...]) -> Outcome:
    """`pass` only if there are checks and all pass; a block outweighs missing data.

    >>> outcome_of(())
    'insufficient_data'
    """
    statuses = {check.status for check in checks}
    if "block" in statuses:
        return "block"
    return "pass" if statuses == {"pass"} else "insufficient_data"
