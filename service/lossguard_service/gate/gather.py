"""Facts from the store: one consistent snapshot of everything a verdict rests on, and its stamp.

Guarantees. Reads only. What the store does not hold stays unknown in the facts; nothing is filled in. The stamp is read
from the same snapshot, and changes whenever anything that the facts, the waivers, the policy or the signing key come
from does: two questions under one stamp have one answer, but for the time that passed.
"""

import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
from sqlalchemy.engine import Connection

from lossguard.wire.numbers import to_json
from lossguard_service.gate.facts import Attempt, Blocked, Canary, Facts, Previous, Scan, Trial
from lossguard_service.gate.policy import BUILT_IN, Policy
from lossguard_service.gate.recovery import is_off, past_of, steps_before
from lossguard_service.gate.weights import weights_of
from lossguard_service.gate.window import Window, window_of
from lossguard_service.store.checkpoints import rollback_target
from lossguard_service.store.columns import clean
from lossguard_service.store.database import Database
from lossguard_service.store.evidence import Evidence, evidence_of, frames_of
from lossguard_service.store.keys import SigningKey, keys_of
from lossguard_service.store.runs import attempts_of
from lossguard_service.store.stamp import about, glance_at, stamp_of
from lossguard_service.store.trials import MOST_TRIALS, Group, Member, group_of, is_as_it_was
from lossguard_service.store.verdicts import Passed, StoredPolicy, blocked_of, passed_of, policies_of
from lossguard_service.store.waivers import Waiver, waivers_of

Stamp = tuple[Any, ...]
FINAL_STEPS: Final = 100
"""A final value is the median of so many steps, as in `lossguard compare`: a single batch says little."""
MOST_COMPARED: Final = 20
"""So many episodes are compared with what came before them; a run with more of them is over any sane budget."""


class UnknownPolicy(LookupError):
    """No policy has that name; the sentence lists those that there are."""


class Asked(NamedTuple):
    """What is remembered of a question, which may be long: whose it is, and a digest of all of it."""

    project: str
    digest: str


@dataclass(frozen=True)
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

    @cached_property
    def asked(self) -> Asked:
        """The same for the same question, whatever bytes it came in."""
        norms = {} if self.scan is None else self.scan.norms  # of thousands of tensors: too many for `asdict`
        rest = self if self.scan is None else replace(self, scan=replace(self.scan, norms={}))
        text = json.dumps([to_json(asdict(rest)), sorted(norms.items())], sort_keys=True)
        return Asked(self.project, hashlib.sha256(text.encode()).hexdigest())


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the answer to a question follows from.

    Attributes:
        facts: see `Facts`.
        policy: the newest version of the one that was asked for.
        waivers: all of the run's, those that do not count too.
        key: the one that signs; None before the first question.
        asked, stamp: what `store.stamp` was asked about, and its numbers; see the module.
        last_seen: when anything came of the run; None if it is not known.
        group: the run's trials; empty where it has none.
    """

    facts: Facts
    policy: Policy
    waivers: tuple[Waiver, ...]
    key: SigningKey | None
    asked: Mapping[str, Any]
    stamp: Stamp
    last_seen: float | None
    group: Group


class Remembered:
    """What never changes and is costly to read again: configurations by attempt, final values by run and revision."""

    def __init__(self, most: int = 4_096) -> None:
        self.configurations: MutableMapping[tuple[int, str], str | None] = _Bounded(most)
        self.finals: MutableMapping[tuple[int, int], dict[str, float]] = _Bounded(most)


class _Bounded(OrderedDict[Any, Any]):
    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        if len(self) > self._most:
            self.popitem(last=False)


def snapshot_of(connection: Connection, question: Question, now: float, remembered: Remembered) -> Snapshot:
    """Everything that the answer follows from.

    Raises:
        UnknownPolicy: the question names none that there is.
    """
    policy = policy_of(connection, question.policy)
    first = max(1, question.step - policy.quality_steps + 1)
    evidence = evidence_of(connection, question.project, question.run, first, max(question.step, 1) + 1)
    model = "" if evidence is None else _model(evidence.run.config)
    group = (
        Group()
        if policy.trials_minimum == 0
        else group_of(connection, question.project, question.run, remembered.configurations)
    )
    facts = Facts(
        project=question.project,
        run=question.run,
        step=question.step,
        artifact_digest=question.artifact_digest,
        attempt=question.attempt,
        metrics=dict(question.metrics),
        scan=question.scan,
        canary=question.canary,
        model=model,
        previous=_previous(passed_of(connection, question.project, model, question.artifact_digest)),
        blocked_as=_blocked(connection, question) if policy.attribution_required else (),
        trials=tuple(_trial(connection, one, remembered) for one in group.members[:MOST_TRIALS]),
    )
    if evidence is not None:
        facts = replace(
            _with_evidence(facts, evidence, first, now), before=_before(connection, evidence, policy, question.step)
        )
    asked = about(
        question.project,
        question.run,
        question.policy,
        model,
        question.artifact_digest,
        group,
        blocked_as=question.step if policy.attribution_required else None,
    )
    return Snapshot(
        facts=facts,
        policy=policy,
        waivers=tuple(waivers_of(connection, question.project, question.run)),
        key=next((key for key in reversed(keys_of(connection)) if key.private is not None), None),
        asked=asked,
        stamp=stamp_of(connection, asked),
        last_seen=None if evidence is None else evidence.run.last_seen,
        group=group,
    )


async def still_holds(database: Database, project: str, before: Snapshot) -> bool:
    """True if a snapshot of now would lead to the same answer, but for the time that passed.

    Which group of trials a run is in, and what it calls its model, cannot change without its revision. The group is
    looked at after the stamp: what has not changed by then had not changed when the stamp was read.
    """
    if await glance_at(database, before.asked) != before.stamp:
        return False
    group = before.group
    return not group.members or group.is_whole or await is_as_it_was(database, project, group)


def policy_of(connection: Connection, name: str) -> Policy:
    """The newest version of a policy.

    Raises:
        UnknownPolicy: there is none of that name.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    stored = policies_of(connection, name)
    if not stored:
        known = sorted({*BUILT_IN, *(one.name for one in policies_of(connection))})
        raise UnknownPolicy(f"no policy is named {name!r}; there are {', '.join(known)}")
    return read_policy(max(stored, key=lambda one: one.version))


def read_policy(stored: StoredPolicy) -> Policy:
    """A stored policy's rules; one that is younger than the policy is off, so that it means what it meant."""
    rules = {key: value for key, value in stored.document.items() if key != "author"}
    return Policy.from_json({"weights_compared": False, **rules})


def _with_evidence(facts: Facts, evidence: Evidence, first: int, now: float) -> Facts:
    config = evidence.run.config
    return replace(
        facts,
        run_known=True,
        attempts=tuple(
            Attempt(one.number, one.key, one.start_step, one.last_step, one.stop_reason) for one in evidence.attempts
        ),
        spans=evidence.spans,
        drops=evidence.drops,
        judged_step=evidence.run.judged_step,
        silent_seconds=abs(now - evidence.run.last_seen),  # from the future: a clock is wrong, and it may be silent
        parameters_watched=_share(config.get("parameters_watched")),
        tasks=_tasks(config.get("tasks")),
        incidents=evidence.incidents,
        window=window_of(evidence.frames, first, facts.step) if evidence.frames else None,
        weights=weights_of(evidence.frames, facts.step, config),
        good_checkpoint=_target(evidence, facts.step),
    )


def _before(connection: Connection, evidence: Evidence, policy: Policy, step: int) -> dict[int, Window]:
    """The steps before the episodes that left their task too far off; what is beyond a few counts as not known."""
    found = {}
    for incident in [one for one in past_of(evidence.incidents, step) if is_off(policy, one)][:MOST_COMPARED]:
        first, last = steps_before(policy, incident)
        if first <= last:
            frames = frames_of(connection, evidence.run.id, evidence.attempts, first, last)
            found[incident.number] = window_of(frames, first, last)
    return found


def _trial(connection: Connection, member: Member, remembered: Remembered) -> Trial:
    place = (member.id, member.revision)
    finals = remembered.finals.get(place)
    last = member.judged_step or 0
    if finals is None and member.ended and last:
        first = max(1, last - FINAL_STEPS + 1)
        frames = frames_of(connection, member.id, tuple(attempts_of(connection, member.id)), first, last)
        finals = remembered.finals[place] = dict(_medians(window_of(frames, first, last)))
    return Trial(member.name, member.status == "diverged", member.ended, last, finals or {})


def _medians(window: Window) -> Iterator[tuple[str, float]]:
    for name in window.values:
        if name.startswith(("batch_auc/", "rmse/")):
            values = window.measured(name)
            values = values[np.isfinite(values)]
            if len(values):
                yield name, float(np.median(values))


def _blocked(connection: Connection, question: Question) -> tuple[Blocked, ...]:
    of_bytes = blocked_of(connection, question.project, question.artifact_digest, question.run, question.step)
    return tuple(Blocked(*one) for one in of_bytes)


def _previous(passed: Sequence[Passed]) -> dict[str, Previous]:
    found: dict[str, Previous] = {}
    for one in passed:
        for name, value in one.metrics.items():
            found.setdefault(name, Previous(float(value), one.verdict, one.run, one.step))
    return found


def _model(config: Mapping[str, Any]) -> str:
    model = config.get("model")
    return clean(model) if isinstance(model, str) else ""


def _share(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _tasks(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        return {}
    return {str(task): str(kind) for task, kind in value.items()}


def _target(evidence: Evidence, step: int) -> tuple[int, str] | None:
    earlier = [one for one in evidence.checkpoints if one.step < step]
    target = rollback_target(earlier, evidence.incidents)
    return None if target is None else (target.step, target.path)
