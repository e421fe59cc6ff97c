"""The guard: what it swallows, it says."""

import logging

import pytest

from lossguard import guard
from lossguard.guard import guarded


@guarded("entry", otherwise=-1)
def entry(error: BaseException | None) -> int:
    if error is not None:
        raise error
    return 1


def test_an_answer_passes() -> None:
    assert entry(None) == 1


def test_an_exception_becomes_the_other_answer_and_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_seen", {})
    with caplog.at_level(logging.WARNING, "lossguard"):
        answers = [entry(ValueError("broken")) for _ in range(25)]
    assert answers == [-1] * 25
    assert guard.swallowed() == 25
    assert [record.args[1] for record in caplog.records] == [1, 10], "the 1st, the 10th, and next the 100th"
    assert "broken" in caplog.text
    assert all(record.exc_info and isinstance(record.exc_info[1], ValueError) for record in caplog.records)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "lossguard"):
        entry(KeyError("another kind"))
    assert "another kind" in caplog.text, "counted by itself, however often the first kind was seen"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_the_user_raises_passes(error: type[BaseException]) -> None:
    with pytest.raises(error):
        entry(error())


@pytest.mark.usefixtures("guard_raises")
def test_in_tests_nothing_hides() -> None:
    with pytest.raises(ValueError, match="broken"):
        entry(ValueError("broken"))
