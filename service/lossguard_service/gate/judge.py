"""The gate as the service runs it: gather the facts, decide, sign and store the verdict.

Guarantees. A verdict is stored before it is answered, and never changed. The same question gets the same verdict while
nothing that it follows from has changed (`answers`). What it says is bounded: however many
incidents a run had, the document stays small enough to lie beside a model.
"""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from sqlalchemy.engine import Connection

from lossguard.wire.verdict import Check, Verdict, outcome_of
from lossguard_service.gate.answers import Answer, Answers
from lossguard_service.gate.decide import decide
from lossguard_service.gate.facts import Facts
from lossguard_service.gate.gather import (
    Asked,
    Question,
    Remembered,
    Snapshot,
    policy_of,
    read_policy,
    snapshot_of,
    still_holds,
)
from lossguard_service.gate.links import evidence
from lossguard_service.gate.policy import BUILT_IN, Policy, PolicyError
from lossguard_service.gate.signing import new_key, sign
from lossguard_service.gate.waive import checked, counts, waive
from lossguard_service.store import keys, verdicts
from lossguard_service.store.columns import clean
from lossguard_service.store.database import Database
from lossguard_service.store.keys import SigningKey
from lossguard_service.store.runs import list_runs
from lossguard_service.store.waivers import Waiver, add_waiver

MAX_TEXT: Final = 2_000
"""Characters of an explanation; a run's own texts (layer paths, advice) are from outside and may be longer."""


class Gate:
    """Judges exports over one database.

    Args:
        database: where the evidence is and the verdicts go.
        clock: Unix seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._answers = Answers()
        self._remembered = Remembered()

    async def judge(self, question: Question) -> Answer:
        """The verdict about one export, stored; the one given before if nothing has changed since.

        Raises:
            UnknownPolicy: the request names none that there is.
        """
        given = await self.again(question.asked)
        if given is not None:
            return given
        now = self._clock()
        snapshot = await self._database.read(lambda c: snapshot_of(c, question, now, self._remembered))
        counted = [one for one in snapshot.waivers if counts(one, question.project, question.run, question.step, now)]
        verdict_id = secrets.token_hex(16)
        verdict = verdict_of(snapshot.policy, snapshot.facts, verdict_id=verdict_id, now=now, waivers=counted)
        signature = sign(verdict, snapshot.key or await self._first_key())
        facts, document = snapshot.facts, verdict.to_json()
        await verdicts.add_verdict(
            self._database, verdict, document, signature, model=facts.model, metrics=facts.metrics
        )
        answer = _answer(verdict.project, document, signature)
        self._answers.keep(verdict_id, answer)
        self._answers.keep_given(question.asked, answer, snapshot, now)
        return answer

    async def rehearse(self) -> None:
        """Judge the newest run for nobody, so that the first question finds statements compiled and modules loaded."""
        now = self._clock()
        runs = await list_runs(self._database, limit=1)
        project, run, step = (runs[0].project, runs[0].name, runs[0].last_step or 1) if runs else ("", "", 1)
        question = Question(project, run, step, "")

        def rehearsal(connection: Connection) -> Snapshot:
            verdicts.prepare(connection)
            return snapshot_of(connection, question, now, self._remembered)

        snapshot = await self._database.read(rehearsal)
        verdict = verdict_of(snapshot.policy, snapshot.facts, verdict_id="", now=now)
        sign(verdict, new_key(now))

    async def again(self, asked: Asked) -> Answer | None:
        """What was answered to this question before, if nothing that it followed from has changed since."""
        given = self._answers.by_question(asked, self._clock())
        if given is None or not await still_holds(self._database, asked.project, given.snapshot):
            return None
        return given.answer

    def understood(self, fingerprint: bytes) -> Asked | None:
        """The question that a request of this fingerprint asked before; what it may ask is not checked here."""
        return self._answers.understood(fingerprint)

    def understand(self, fingerprint: bytes, question: Question) -> None:
        """Remember what a request of this fingerprint asks."""
        self._answers.understand(fingerprint, question.asked)

    async def find(self, verdict_id: str) -> Answer | None:
        """The verdict of that id, as it was given.

        Remembered: a verdict never changes, so every replica may keep what it has read.
        """
        answer = self._answers.by_id(verdict_id)
        if answer is None:
            found = await verdicts.find_verdict(self._database, verdict_id)
            if found is None:
                return None
            verdict, signature = found
            answer = _answer(verdict.project, verdict.to_json(), signature)
            self._answers.keep(verdict_id, answer)
        return answer

    def remembered(self, verdict_id: str) -> Answer | None:
        """The same if this replica remembers it."""
        return self._answers.by_id(verdict_id)

    async def policies(self) -> list[Policy]:
        """Every version of every policy, the built-in ones first."""
        stored = await verdicts.list_policies(self._database)
        return [*BUILT_IN.values(), *(read_policy(one) for one in stored)]

    async def policy(self, name: str) -> Policy:
        """The newest version of a policy.

        Raises:
            UnknownPolicy: there is none of that name.
        """
        return await self._database.read(lambda connection: policy_of(connection, name))

    async def add_policy(self, rules: Mapping[str, Any], author: str) -> Policy:
        """Store a new version of a policy; the version is the next one, whatever `rules` say.

        Raises:
            PolicyError: a rule is unknown or out of its range, or the name is that of a built-in policy.
        """
        name = rules.get("name")
        if not name:
            raise PolicyError(
                "name: a policy needs one, by which questions ask for it; write for example name: nightly"
            )
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
        await self._first_key()
        return await keys.list_keys(self._database)

    async def rotate_key(self, actor: str, reason: str) -> SigningKey:
        """Sign with a new key from now on; what the old ones signed stays valid."""
        return await keys.active_key(self._database, new_key(self._clock()), rotate=True, actor=actor, reason=reason)

    async def revoke_key(self, key_id: str, actor: str, reason: str) -> bool:
        """What this key signed counts no more; False if there is no such key."""
        return await keys.revoke_key(self._database, key_id, now=self._clock(), actor=actor, reason=reason)

    async def _first_key(self) -> SigningKey:
        return await keys.active_key(self._database, new_key(self._clock()), rotate=False, actor="service")


def _answer(project: str, document: Mapping[str, Any], signature: Mapping[str, Any] | None) -> Answer:
    whole = document if signature is None else {**document, "signature": signature}
    return Answer(project, json.dumps(whole, separators=(",", ":"), allow_nan=False).encode())


def verdict_of(policy: Policy, facts: Facts, *, verdict_id: str, now: float, waivers: Sequence[Waiver] = ()) -> Verdict:
    """The verdict that follows from the facts; `waivers` are those that count for this export."""
    judged = waive(decide(policy, facts), waivers)
    checks = tuple(replace(_bounded(check), evidence=evidence(check.name, facts)) for check in judged)
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
