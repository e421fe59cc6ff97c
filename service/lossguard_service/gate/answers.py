"""Answers that this replica gave, so that the same question need not be judged again.

Guarantees. Never a stale pass: an answer is given again only if a stamp read from the database at that moment shows
that nothing it follows from has changed, by whichever replica, and only until time alone could change it (a run that
falls silent, a waiver that ends). What does not fit is judged anew. A verdict by its id never changes, and needs none.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any, Final

from lossguard_service.gate.gather import Asked, Snapshot

MOST: Final = 2_048
"""Answers that a replica keeps: some 10 KB each."""
SECONDS: Final = 300.0
"""The longest that an answer is given again."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A verdict as it is sent.

    Attributes:
        project: whose it is, for the right to read it.
        body: its JSON, with the signature.
    """

    project: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Given:
    """An answer and what it rests on.

    Attributes:
        answer: what was said.
        snapshot: what it followed from, without the scan.
        since, until: Unix seconds between which time alone cannot have changed it.
    """

    answer: Answer
    snapshot: Snapshot
    since: float
    until: float


class Answers:
    """A replica's memory; oldest out first."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._by_id: OrderedDict[str, Answer] = OrderedDict()
        self._by_question: OrderedDict[Asked, Given] = OrderedDict()
        self._understood: OrderedDict[bytes, Asked] = OrderedDict()

    def by_id(self, verdict_id: str) -> Answer | None:
        """The verdict of that id, if it is remembered."""
        return self._by_id.get(verdict_id)

    def by_question(self, asked: Asked, now: float) -> Given | None:
        """What was answered to this very question, if time alone cannot have changed it; the stamp is to be checked."""
        given = self._by_question.get(asked)
        return given if given is not None and given.since <= now < given.until else None

    def understood(self, fingerprint: bytes) -> Asked | None:
        """What a request of this fingerprint asks, if it is remembered."""
        return self._understood.get(fingerprint)

    def understand(self, fingerprint: bytes, asked: Asked) -> None:
        """Remember what a request of this fingerprint asks."""
        _put(self._understood, fingerprint, asked, self._most)

    def keep(self, verdict_id: str, answer: Answer) -> None:
        """Remember a verdict."""
        _put(self._by_id, verdict_id, answer, self._most)

    def keep_given(self, asked: Asked, answer: Answer, snapshot: Snapshot, now: float) -> None:
        """Remember the answer to a question, asked at `now`."""
        # Without the scan: it may hold thousands of norms, and an answer that is given again needs none of them.
        light = replace(snapshot, facts=replace(snapshot.facts, scan=None))
        _put(self._by_question, asked, Given(answer, light, now, _until(light, now)), self._most)


def _until(snapshot: Snapshot, now: float) -> float:
    """The first moment after `now` at which the same facts could make another verdict."""
    moments = [now + SECONDS]
    if snapshot.last_seen is not None:
        moments.append(snapshot.last_seen + snapshot.policy.fresh_seconds)
    for waiver in snapshot.waivers:
        moments += [waiver.created, waiver.expires]
    return min(moment for moment in moments if moment > now)


def _put(memory: OrderedDict[Any, Any], key: str | bytes | Asked, value: Any, most: int) -> None:
    memory[key] = value
    memory.move_to_end(key)
    while len(memory) > most:
        memory.popitem(last=False)
