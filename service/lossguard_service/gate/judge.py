"""The gate as the service runs it: gather the facts, decide, sign and store the verdict.

Guarantees. A verdict is stored before it is answered, and never changed. What it says is bounded: however many
incidents a run had, the document stays small enough to lie beside a model.
"""

import json
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from lossguard.wire.verdict import Check, Verdict, outcome_of
from lossguard_service.gate.decide import decide
from lossguard_service.gate.facts import Canary, Facts, Scan
from lossguard_service.gate.gather import gather
from lossguard_service.gate.policy import BUILT_IN, Policy, PolicyError
from lossguard_service.gate.signing import new_key, sign
from lossguard_service.gate.waive import checked, counts, waive
from lossguard_service.store import keys, verdicts
from lossguard_service.store.columns import clean
from lossguard_service.store.database import Database
from lossguard_service.store.keys import SigningKey
from lossguard_service.store.waivers import Waiver, add_waiver, list_waivers

_REMEMBERED: Final = 2_048
"""Verdicts whose JSON a replica keeps: some 10 KB each."""
MAX_TEXT: Final = 2_000
"""Characters of an explanation; a run's own texts (layer paths, advice) are from outside and may be longer."""


class UnknownPolicy(LookupError):
    """No policy has that name; the sentence lists those that there are."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question to the gate; the fields are those of `Facts`."""

    project: str
    run: str
    step: int
    artifact_digest: str
    policy: str = "default"
    attempt: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    scan: Scan | None = None
    canary: Canary | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """A stored verdict and its signature, if the service signs."""

    verdict: Verdict
    signature: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The verdict's document, with the signature in it."""
        document = self.verdict.to_json()
        return document if self.signature is None else document | {"signature": self.signature}


class Gate:
    """Judges exports over one database.

    Args:
        database: where the evidence is and the verdicts go.
        clock: Unix seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._answers: OrderedDict[str, tuple[str, bytes]] = OrderedDict()

    async def judge(self, question: Question) -> Judgement:
        """The verdict about one export, stored.

        Raises:
            UnknownPolicy: the request names none that there is.
        """
        policy = await self.policy(question.policy)
        now = self._clock()
        facts = await gather(
            self._database,
            project=question.project,
            run=question.run,
            step=question.step,
            artifact_digest=question.artifact_digest,
            now=now,
            window_steps=policy.quality_steps,
            attempt=question.attempt,
            metrics=question.metrics,
            previous_metrics=await self._previous_metrics(question),
            scan=question.scan,
            canary=question.canary,
        )
        waivers = await list_waivers(self._database, project=question.project, run=question.run)
        counted = [one for one in waivers if counts(one, question.project, question.run, question.step, now)]
        verdict = verdict_of(policy, facts, verdict_id=secrets.token_hex(16), now=now, waivers=counted)
        signature = sign(verdict, await self._key())
        await verdicts.add_verdict(self._database, verdict, signature)
        return Judgement(verdict, signature)

    async def find(self, verdict_id: str) -> tuple[str, bytes] | None:
        """The project and the JSON of the verdict of that id, as it was given.

        Remembered: a verdict never changes, so every replica may keep what it has read.
        """
        answer = self._answers.get(verdict_id)
        if answer is None:
            found = await verdicts.find_verdict(self._database, verdict_id)
            if found is None:
                return None
            document = json.dumps(Judgement(*found).to_json(), separators=(",", ":"), allow_nan=False)
            answer = found[0].project, document.encode()
            while len(self._answers) >= _REMEMBERED:
                self._answers.popitem(last=False)
            self._answers[verdict_id] = answer
        return answer

    async def policies(self) -> list[Policy]:
        """Every version of every policy, the built-in ones first."""
        stored = await verdicts.list_policies(self._database)
        return [*BUILT_IN.values(), *(_policy(one) for one in stored)]

    async def policy(self, name: str) -> Policy:
        """The newest version of a policy.

        Raises:
            UnknownPolicy: there is none of that name.
        """
        if name in BUILT_IN:
            return BUILT_IN[name]
        stored = await verdicts.list_policies(self._database, name)
        if not stored:
            known = sorted({policy.name for policy in await self.policies()})
            raise UnknownPolicy(f"no policy is named {name!r}; there are {', '.join(known)}")
        return _policy(max(stored, key=lambda one: one.version))

    async def add_policy(self, rules: Mapping[str, Any], author: str) -> Policy:
        """Store a new version of a policy; the version is the next one, whatever `rules` say.

        Raises:
            PolicyError: a rule is unknown or out of its range, or the name is that of a built-in policy.
        """
        name = rules.get("name")
        if name in BUILT_IN:
            raise PolicyError(f"name: {name} is built in and stays as it is; give yours another name")
        while True:
            stored = await verdicts.list_policies(self._database, name) if isinstance(name, str) else []
            version = max((one.version for one in stored), default=0) + 1
            policy = Policy.from_json({**rules, "version": version})
            document = policy.to_json() | {"author": clean(author)}
            row = verdicts.StoredPolicy(policy.name, version, document, self._clock())
            # Somebody else may have taken the version in between; then ours is the one after it.
            if await verdicts.add_policy(self._database, row, actor=author):
                return policy

    async def add_waiver(self, waiver: Waiver) -> Waiver:
        """Store a waiver.

        Raises:
            WaiverError: it cannot be one.
        """
        await add_waiver(self._database, checked(waiver))
        return waiver

    async def keys(self) -> list[SigningKey]:
        """Every signing key, the one in use last."""
        await self._key()
        return await keys.list_keys(self._database)

    async def rotate_key(self, actor: str) -> SigningKey:
        """Sign with a new key from now on; what the old ones signed stays valid."""
        return await keys.active_key(self._database, new_key(self._clock()), rotate=True, actor=actor)

    async def revoke_key(self, key_id: str, actor: str, reason: str) -> bool:
        """What this key signed counts no more; False if there is no such key."""
        return await keys.revoke_key(self._database, key_id, now=self._clock(), actor=actor, reason=reason)

    async def _key(self) -> SigningKey:
        for key in reversed(await keys.list_keys(self._database)):
            if key.private is not None:
                return key
        return await keys.active_key(self._database, new_key(self._clock()), rotate=False, actor="service")

    async def _previous_metrics(self, question: Question) -> dict[str, float]:
        if not question.metrics:
            return {}
        for verdict in await verdicts.list_verdicts(self._database, project=question.project, run=question.run):
            if verdict.outcome == "pass" and verdict.artifact_digest != question.artifact_digest:
                prefix = "metric:"
                return {
                    check.name.removeprefix(prefix): float(check.observed)
                    for check in verdict.checks
                    if check.name.startswith(prefix) and isinstance(check.observed, int | float)
                }
        return {}


def verdict_of(policy: Policy, facts: Facts, *, verdict_id: str, now: float, waivers: Sequence[Waiver] = ()) -> Verdict:
    """The verdict that follows from the facts; `waivers` are those that count for this export."""
    checks = tuple(_bounded(check) for check in waive(decide(policy, facts), waivers))
    return Verdict(
        id=verdict_id,
        project=facts.project,
        run=facts.run,
        step=facts.step,
        artifact_digest=facts.artifact_digest,
        policy=policy.name,
        policy_version=policy.version,
        outcome=outcome_of(checks),
        checks=checks,
        created=now,
    )


def _policy(stored: verdicts.StoredPolicy) -> Policy:
    return Policy.from_json({key: value for key, value in stored.document.items() if key != "author"})


def _bounded(check: Check) -> Check:
    text = clean(check.explanation)
    text = text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
    return replace(check, name=clean(check.name), observed=_clean(check.observed), explanation=text)


def _clean(value: Any) -> Any:
    """The value with texts that UTF-8 can hold and that are not too long."""
    match value:
        case str():
            return clean(value)[:MAX_TEXT]
        case Mapping():
            return {clean(str(key))[:MAX_TEXT]: _clean(item) for key, item in value.items()}
        case list() | tuple():
            return [_clean(item) for item in value]
        case _:
            return value
