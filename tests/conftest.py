"""Fixtures that any test may use."""

import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Nothing is timed in tests: a machine that is busy with something else is no failure. Nor is the same code tested with
# other examples every time: who changes one thing must not hear of another. New ones are looked for on purpose, with
# `make test ARGS=--hypothesis-profile=exploring`.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("exploring", settings.get_profile("untimed"), derandomize=False, print_blob=True)
settings.load_profile("untimed")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the recorded runs, the labelled curves and the real interactions; skips where it is absent."""
    folder = Path(os.environ.get("LOSSGUARD_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "traces" / "labels.csv").is_file():
        pytest.skip(f"no recorded data in {folder}: set LOSSGUARD_SHARED to the folder that holds traces/ and data/")
    return folder


@pytest.fixture
def guard_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing hides: what the guard would swallow is raised."""

    def raise_it(entry: str, error: Exception) -> None:
        raise error

    monkeypatch.setattr("lossguard.guard.swallow", raise_it)


_DATABASE = (".db", ".db-wal", ".db-shm", ".db-journal")


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fails a test that leaves a thread or a descriptor behind."""
    threads, descriptors = set(threading.enumerate()), _descriptors()
    yield
    gc.collect()
    deadline = time.monotonic() + 30.0
    # A service that another test of this process keeps up starts readers when it is asked; they and the database's
    # files are not ours: nothing that is tested for leaks opens a database.
    left = {thread for thread in set(threading.enumerate()) - threads if not thread.name.startswith("lossguard-read")}
    for thread in left:
        # A thread that was told to end may be on its last lines.
        thread.join(max(0.0, deadline - time.monotonic()))
    left = {thread for thread in left if thread.is_alive()}
    assert not left, f"threads left behind: {sorted(thread.name for thread in left)}"
    # What is left behind stays; what a service of another test holds for a moment does not.
    while more := {
        number: target
        for number, target in _descriptors().items()
        if descriptors.get(number) != target and not target.endswith(_DATABASE)
    }:
        assert time.monotonic() < deadline, f"descriptors left behind: {more}"


def _descriptors() -> dict[str, str]:
    folder = Path("/proc/self/fd")
    found = {}
    for entry in folder.iterdir() if folder.is_dir() else ():
        try:
            found[entry.name] = os.readlink(entry)
        except FileNotFoundError:
            continue  # the one that lists the folder
    return found
