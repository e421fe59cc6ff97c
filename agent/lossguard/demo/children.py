"""The demo's other processes: the service, the sidecar, the trainer of the moment.

Guarantees: every process started here is ended, by its id, when the `with` block ends, whatever ended it; the sidecar
before the service, so that it can ship the rest. A process that should live and dies is started again, and that is
said. The state file: JSON that names every living process and its id, replaced at each change, for whoever wants
to look at them or to end one half-way.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ENOUGH_RESTARTS = 5
_LOOK_SECONDS = 0.2
_END_SECONDS = 15.0


class ChildError(Exception):
    """A process of the demo cannot run; the message says why and where its log is. The others are ended."""


@dataclass(slots=True)
class Child:
    """One process.

    Attributes:
        name: "service", "sidecar", "trainer".
        command: what runs, without the interpreter.
        log: file of its standard error, and of its standard output unless that is read.
        process: of the current start.
        restarts: how often it was started again; None if it is not to be.
    """

    name: str
    command: list[str]
    log: Path
    process: subprocess.Popen[str]
    restarts: int | None

    @property
    def last_words(self) -> str:
        """The last line of its log."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "it said nothing"


class Children:
    """Starts, watches, restarts and ends processes.

    Args:
        folder: for logs and the state file.
        say: called with a sentence when something happened that a person should know.
        restart_seconds: how long a dead process stays dead before it is started again.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], *, restart_seconds: float = 1.0) -> None:
        self.folder = folder
        self.state = folder / "demo.json"
        self._facts: dict[str, Any] = {"pid": os.getpid()}
        self._say, self._restart_seconds = say, restart_seconds
        self._children: dict[str, Child] = {}
        self._lock = threading.RLock()
        self._ending = threading.Event()
        self._failure: str | None = None
        self._watcher = threading.Thread(target=self._watch, name="demo-children", daemon=True)

    def __enter__(self) -> Self:
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        with _deaf_to_ctrl_c():
            self._watcher.join()
            for name in ("trainer", "sidecar", "service"):
                self.end(name)
        self.state.unlink(missing_ok=True)

    def start(self, name: str, command: Sequence[str], *, restart: bool = False, read: bool = False) -> Child:
        """Start a process of this Python.

        Args:
            name: one of a kind.
            command: arguments of the interpreter.
            restart: whether it is to live until the end.
            read: whether its standard output is read here instead of going to the log.
        """
        with self._lock:
            log = self.folder / f"{name}.log"
            child = Child(name, list(command), log, _spawn(command, log, read=read), 0 if restart else None)
            self._children[name] = child
        self.tell()
        return child

    def end(self, name: str) -> None:
        """End a process by its id and wait for it; one that does not listen is killed."""
        with self._lock:
            child = self._children.pop(name, None)
        if child is not None:
            _end(child.process)
            if child.process.stdout is not None:
                child.process.stdout.close()
            if not self._ending.is_set():
                self.tell()

    def tell(self, **facts: Any) -> None:
        """Write the state file, with these facts in it from now on."""
        with self._lock:
            self._facts |= facts
            pids = {name: child.process.pid for name, child in self._children.items()}
            draft = self.state.with_suffix(".part")
            draft.write_text(json.dumps({**self._facts, "pids": pids}, indent=1))
            os.replace(draft, self.state)

    def check(self) -> None:
        """Raise what the watching found.

        Raises:
            ChildError: a process died again and again.
        """
        if self._failure is not None:
            raise ChildError(self._failure)

    def _watch(self) -> None:
        while not self._ending.wait(_LOOK_SECONDS):
            with self._lock:
                dead = [
                    child
                    for child in self._children.values()
                    if child.restarts is not None and child.process.poll() is not None
                ]
            for child in dead:
                self._restart(child)

    def _restart(self, child: Child) -> None:
        code = child.process.returncode
        if child.restarts is None or child.restarts >= ENOUGH_RESTARTS:
            self._failure = f"the {child.name} ended again and again: {child.last_words} (log: {child.log})"
            child.restarts = None
            self._say(self._failure)
            return
        self._say(f"the {child.name} ended ({_how(code)}); starting it again in {self._restart_seconds:g} s")
        if self._ending.wait(self._restart_seconds):
            return
        with self._lock:
            if self._children.get(child.name) is not child:
                return
            child.restarts += 1
            child.process = _spawn(child.command, child.log)
        self.tell()
        self._say(f"the {child.name} is back, as process {child.process.pid}")


def wait_for_file(path: Path, child: Child, seconds: float) -> str:
    """The text of a file that a child writes once it is ready.

    Raises:
        ChildError: the child ended, or the time is up.
    """
    end = time.monotonic() + seconds
    while not path.exists():
        if child.process.poll() is not None:
            raise ChildError(f"the {child.name} does not start: {child.last_words}")
        if time.monotonic() > end:
            raise ChildError(f"the {child.name} is not ready after {seconds:g} s; its log is {child.log}")
        time.sleep(0.05)
    return path.read_text().strip()


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """An impatient second Ctrl-C must not leave a process behind; each wait in here is bounded."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _spawn(command: Sequence[str], log: Path, *, read: bool = False) -> subprocess.Popen[str]:
    with log.open("a") as words:
        return subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if read else words,
            stderr=words,
            text=True,
            # Ctrl-C in the terminal is for us alone: we end the others, in order.
            start_new_session=True,
        )


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"killed by {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"killed by signal {-code}"
