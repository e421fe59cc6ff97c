"""The demo's processes: real ones, ended by their ids however the demo ends."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lossguard.demo.children import ChildError, Children, wait_for_file

# Tells that it is ready, then lives until it is told to end.
STEADY = ["-c", "import pathlib, signal, sys; pathlib.Path(sys.argv[1]).write_text('up'); signal.pause()"]

pytestmark = pytest.mark.usefixtures("no_leaks")


class Ears:
    """Collects sentences, and lets a test wait for one."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self._more = threading.Condition()

    def say(self, sentence: str) -> None:
        with self._more:
            self.heard.append(sentence)
            self._more.notify_all()

    def wait(self, part: str) -> str:
        with self._more:
            assert self._more.wait_for(lambda: any(part in one for one in self.heard), 30), self.heard
            return next(one for one in self.heard if part in one)


@pytest.fixture
def ears() -> Ears:
    return Ears()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_processes_are_ended_when_the_block_ends_also_by_an_error(tmp_path: Path, ears: Ears) -> None:
    pids = []

    def work() -> None:
        with Children(tmp_path, ears.say) as children:
            for name in ("service", "sidecar", "trainer"):
                child = children.start(name, [*STEADY, str(tmp_path / name)])
                wait_for_file(tmp_path / name, child, 30)
                pids.append(child.process.pid)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert len(pids) == 3
    assert not any(_alive(pid) for pid in pids)
    assert not (tmp_path / "demo.json").exists()


def test_a_process_that_is_killed_comes_back_and_this_is_said(tmp_path: Path, ears: Ears) -> None:
    with Children(tmp_path, ears.say, restart_seconds=0) as children:
        child = children.start("sidecar", [*STEADY, str(tmp_path / "up")], restart=True)
        wait_for_file(tmp_path / "up", child, 30)
        first = json.loads((tmp_path / "demo.json").read_text())["pids"]["sidecar"]
        assert first == child.process.pid
        os.kill(first, signal.SIGKILL)
        assert "killed by SIGKILL" in ears.wait("the sidecar ended")
        ears.wait("the sidecar is back")
        second = json.loads((tmp_path / "demo.json").read_text())["pids"]["sidecar"]
        assert second not in (first, None)
        assert _alive(second)
        children.check()
    assert not _alive(second)


def test_a_process_that_dies_again_and_again_is_an_error_with_its_last_words(tmp_path: Path, ears: Ears) -> None:
    with Children(tmp_path, ears.say, restart_seconds=0) as children:
        child = children.start("service", ["-c", "import sys; sys.exit('no disk')"], restart=True)
        ears.wait("the service ended again and again: no disk")
        with pytest.raises(ChildError, match="the service ended again and again: no disk"):
            children.check()
        assert child.restarts is None


def test_a_process_that_does_not_start_gives_its_last_words(tmp_path: Path, ears: Ears) -> None:
    with Children(tmp_path, ears.say) as children:
        child = children.start("service", ["-c", "import sys; sys.exit('port 80 is taken')"])
        with pytest.raises(ChildError, match="the service does not start: port 80 is taken"):
            wait_for_file(tmp_path / "address", child, 30)


def test_a_process_that_does_not_listen_is_killed(tmp_path: Path, ears: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lossguard.demo.children._END_SECONDS", 0.2)
    deaf = "import pathlib, signal, sys; signal.signal(15, signal.SIG_IGN); " + STEADY[1].partition("; ")[2]
    with Children(tmp_path, ears.say) as children:
        child = children.start("sidecar", ["-c", deaf, str(tmp_path / "up")])
        wait_for_file(tmp_path / "up", child, 30)
    assert child.process.returncode == -signal.SIGKILL


def test_output_that_is_read_does_not_go_to_the_log(tmp_path: Path, ears: Ears) -> None:
    with Children(tmp_path, ears.say) as children:
        child = children.start("trainer", ["-c", "import sys; print('{}'); print('words', file=sys.stderr)"], read=True)
        assert child.process.stdout is not None
        assert child.process.stdout.read() == "{}\n"
        child.process.wait()
        assert child.last_words == "words"
    assert isinstance(child.process, subprocess.Popen)
    assert child.command[0] == "-c"
    assert sys.executable in child.process.args[0]  # type: ignore[index]
