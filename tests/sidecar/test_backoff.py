"""How long the sidecar waits: what the service asks for, in both forms of Retry-After, and jitter on top."""

import email.utils
import random
import time

import pytest
from service_on_loopback import Answer, LoopbackService

from lossguard.sidecar.backoff import LONGEST_RETRY_AFTER_SECONDS, LONGEST_SECONDS, Backoff
from lossguard.sidecar.client import Client, Failed
from lossguard.wire.chunk import Chunk, ChunkId, encode
from lossguard.wire.frame import Frames, Schema

ID = ChunkId("ads", "r", "0" * 32, 0)
CHUNK = encode(Chunk(ID, Frames.of(Schema(("loss",)), [1], [[0.5]])))


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("in 90 seconds", 90.0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("", None),
        ("9" * 40, 999_999_999.0),
    ],
)
def test_both_forms_of_retry_after_are_read(
    service: LoopbackService, status: int, header: str, seconds: float | None
) -> None:
    if header.startswith("in"):
        header = email.utils.formatdate(time.time() + 90, usegmt=True)
    service.next_answers.append(Answer(status, headers={"retry-after": header}))
    client = Client(service.url)
    outcome = client.put_chunk(ID, CHUNK)
    client.close()
    assert isinstance(outcome, Failed)
    assert outcome.status == status
    assert outcome.retry_after_seconds == (seconds if seconds is None else pytest.approx(seconds, abs=60))


def test_what_the_service_asked_for_is_kept_and_bounded_and_jitter_comes_on_top() -> None:
    chance = random.Random(7)
    waits = [Backoff(chance.uniform).failed(100.0) for _ in range(200)]
    assert min(waits) > 100.0
    assert max(waits) > 120.0, "a thousand sidecars do not come back in the same second"
    assert Backoff(lambda low, high: high).failed(1e9) == 1.25 * LONGEST_RETRY_AFTER_SECONDS


def test_without_being_asked_waits_double_up_to_a_minute_and_begin_anew() -> None:
    backoff = Backoff(lambda low, high: high)
    waits = [backoff.failed() for _ in range(12)]
    assert waits[:4] == [0.5, 1.0, 2.0, 4.0]
    assert waits[-1] == LONGEST_SECONDS
    backoff.succeeded()
    assert backoff.failed() == 0.5
    assert Backoff(lambda low, high: low).failed() > 0.0, "a drawn zero makes no tight loop"
