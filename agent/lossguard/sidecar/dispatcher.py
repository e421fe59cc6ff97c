"""Ships many runs at once: a few threads, each busy with one run at a time, none waiting behind a run that fails.

Guarantees. A run is in one thread's hands at a time. A run that fails waits by its own backoff while the others go on.
New runs are found while it works. `stop` returns as soon as the chunks in flight are answered; `drain` ends when
everything sealed is acknowledged, or where nothing more can be done.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from lossguard.journal.heartbeat import Heartbeat
from lossguard.sidecar.backoff import Backoff
from lossguard.sidecar.client import Failed
from lossguard.sidecar.shipper import RunShipper, Service, Shipped, Turn

HEARTBEAT_SECONDS: Final = 10.0
EMPTY_SECONDS: Final = 60.0
"""How often a run is looked at whose folder is empty and does not change: a pod of years has thousands of them."""
UNFINISHED: Final = {
    False: "not finished in time",
    True: "another process has it, its trainer or a second sidecar, and has not shipped all of it yet",
}

_log = logging.getLogger("lossguard.sidecar")


@dataclass(slots=True)
class _Run:
    shipper: RunShipper
    backoff: Backoff
    due: float
    busy: bool = False
    again: bool = False
    insist: bool = False
    failure: Failed | None = None
    turns_elsewhere: int = 0
    turns_begun: int = 0
    drained_turn: int = 0
    heartbeat_due: float = 0.0
    empty_since: int | None = None

    def next_due(self) -> float:
        """When it is to be taken next, to ship or to say that its trainer lives."""
        return min(self.due, self.heartbeat_due)


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One run as the dispatcher sees it, for metrics and messages."""

    project: str
    run: str
    shipped: Shipped
    backlog_bytes: int
    failure: Failed | None
    workers: tuple[Heartbeat, ...] = ()


@dataclass(frozen=True, slots=True)
class Drained:
    """How a drain ended.

    Attributes:
        complete: everything sealed was acknowledged or set aside.
        failures: by run ("project/run"), why it is not.
    """

    complete: bool
    failures: dict[str, Failed] = field(default_factory=dict)


class Dispatcher:
    """Ships the runs that `find_runs` finds.

    Args:
        find_runs: the folders `<journal>/<project>/<run>` there are now; never raises.
        service: where to; shared by all threads.
        workers: how many runs are shipped at the same time.
        poll_seconds: how often a run is looked at, and how often new ones are looked for.
        clock: monotonic seconds.
        uniform: the source of the jitter.
    """

    def __init__(
        self,
        find_runs: Callable[[], Iterable[Path]],
        service: Service,
        *,
        workers: int = 4,
        poll_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._find_runs = find_runs
        self._service = service
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._uniform = uniform
        self._changed = threading.Condition()
        self._runs: dict[Path, _Run] = {}
        self._scan_due = 0.0
        self._stopping = False
        self._working = workers
        self.last_success_time: float | None = None
        self._threads = [
            threading.Thread(target=self._work, name=f"lossguard-ship-{number}", daemon=True)
            for number in range(workers)
        ]

    def start(self) -> None:
        """Begin to ship."""
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """There is something new: look now, except at runs that wait after a failure."""
        with self._changed:
            now = self._clock()
            if not self._runs:
                self._scan_due = now
            for run in self._runs.values():
                if run.failure is None:
                    run.due, run.again = now, True
            self._changed.notify_all()

    def drain(
        self,
        timeout_seconds: float,
        *,
        tries: int = 1,
        insist: bool = True,
        stop: Callable[[], bool] = lambda: False,
    ) -> Drained:
        """Wait until everything that is sealed now was acknowledged.

        Args:
            timeout_seconds: the longest wait.
            tries: give a run up after so many tries in a row that failed, or found another process at it.
            insist: try a run that waits after a failure once more at once, as its service may be back: for an end that
                will not wait as long as the service asks.
            stop: ends the wait; looked at a few times a second.
        """
        deadline = self._clock() + timeout_seconds
        with self._changed:
            self._scan()
            wanted = {path: run.turns_begun + 1 for path, run in self._runs.items()}
            for run in self._runs.values():
                if insist or not run.backoff.failures:
                    run.due, run.again, run.insist = self._clock(), True, insist
            self._changed.notify_all()

            def settled(path: Path, turn: int) -> bool:
                run = self._runs[path]
                tried = run.turns_begun >= turn and not run.busy
                return run.drained_turn >= turn or (tried and max(run.backoff.failures, run.turns_elsewhere) >= tries)

            while not all(settled(path, turn) for path, turn in wanted.items()):
                rest = deadline - self._clock()
                if rest <= 0 or self._stopping or stop():
                    break
                self._changed.wait(min(rest, 0.25))
            open_runs = [self._runs[path] for path, turn in wanted.items() if self._runs[path].drained_turn < turn]
            failures = {
                f"{run.shipper.project}/{run.shipper.run}": run.failure or Failed(UNFINISHED[run.turns_elsewhere > 0])
                for run in open_runs
            }
        return Drained(complete=not open_runs, failures=failures)

    def stop(self, timeout_seconds: float = 10.0) -> bool:
        """End the threads; False if one still waits for an answer, after which it lets the runs go."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        deadline = time.monotonic() + timeout_seconds
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def forget_in_child(self) -> None:
        """After a fork, in the child: let the copies of the descriptors go, which would keep the runs' locks."""
        for run in self._runs.values():
            run.shipper.close()

    def status(self) -> list[RunStatus]:
        """All runs, in the order of their names."""
        with self._changed:
            runs = sorted(self._runs.items())
        return [
            RunStatus(
                run.shipper.project,
                run.shipper.run,
                run.shipper.shipped,
                run.shipper.backlog_bytes(),
                run.failure,
                run.shipper.workers,
            )
            for _, run in runs
        ]

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            run, ships = taken
            turn = self._turn(run) if ships else None
            self._say_alive(run, run.failure if turn is None else turn.failure)
            self._give_back(run, turn)
        with self._changed:
            self._working -= 1
            is_last = self._working == 0
        if is_last:  # and be it long after `stop`: whoever ships these runs next waits for their locks
            for run in self._runs.values():
                run.shipper.close()

    def _turn(self, run: _Run) -> Turn:
        try:
            return run.shipper.turn(lambda: self._stopping)
        except OSError as error:
            return Turn(failure=Failed(f"its journal cannot be used: {error}"))
        except Exception as error:
            # A bug of ours in one run must not end the shipping of the others.
            _log.exception("%s/%s: shipping failed", run.shipper.project, run.shipper.run)
            return Turn(failure=Failed(f"{type(error).__name__}: {error}"))

    def _say_alive(self, run: _Run, failure: Failed | None) -> None:
        """The heartbeat, if it is due: also while chunks wait, or a busy service would take the trainer for silent."""
        now = self._clock()
        if now < run.heartbeat_due:
            return
        run.heartbeat_due = now + HEARTBEAT_SECONDS
        if failure is None or failure.status is not None:  # else nobody answers
            try:
                run.shipper.heartbeat(time.time())
            except Exception:
                _log.exception("%s/%s: no heartbeat", run.shipper.project, run.shipper.run)

    def _take(self) -> tuple[_Run, bool] | None:
        """The next run whose time has come, and whether it is time to ship or only to say that its trainer lives."""
        with self._changed:
            while not self._stopping:
                now = self._clock()
                if now >= self._scan_due:
                    self._scan()
                idle = [run for run in self._runs.values() if not run.busy]
                run = min(idle, key=_Run.next_due, default=None)
                next_due = self._scan_due if run is None else run.next_due()
                if run is not None and next_due <= now:
                    run.busy = True
                    ships = run.due <= now
                    if ships:
                        run.again = run.insist = False
                        run.turns_begun += 1
                    return run, ships
                self._changed.wait(max(0.0, min(next_due, self._scan_due) - now))
        return None

    def _scan(self) -> None:
        now = self._clock()
        self._scan_due = now + self._poll_seconds
        for folder in self._find_runs():
            run = self._runs.get(folder)
            if run is not None:
                if run.empty_since is not None and run.shipper.changed() not in (None, run.empty_since):
                    run.due, run.again, run.empty_since = now, True, None
                    run.heartbeat_due = now  # its trainer may be heard of before its first chunk is taken
            else:
                self._runs[folder] = _Run(RunShipper(folder, self._service), Backoff(self._uniform), due=now)
                _log.info("%s/%s: found its journal", folder.parent.name, folder.name)

    def _give_back(self, run: _Run, turn: Turn | None) -> None:
        name = f"{run.shipper.project}/{run.shipper.run}"
        with self._changed:
            now, failures = self._clock(), run.backoff.failures
            run.busy = False
            if turn is None:
                self._changed.notify_all()
                return
            if turn.passed:
                # Failures count in a row: a service that takes most chunks must not be asked once a minute.
                run.backoff.succeeded()
            if turn.failure is not None:
                wait = run.backoff.failed(turn.failure.retry_after_seconds)
                wait = 0.0 if run.insist else wait
                run.due = now + wait
                if run.failure is None or run.failure.reason != turn.failure.reason:
                    _log.warning("%s: %s; its chunks stay on disk, next try in %.1f s", name, turn.failure.reason, wait)
                run.failure = turn.failure
            else:
                if run.failure is not None:
                    _log.info("%s: the service takes chunks again after %d failed tries", name, failures)
                run.backoff.succeeded()
                run.failure = None
                run.due = now if turn.more or run.again else now + self._poll_seconds
                self.last_success_time = time.time()
                run.turns_elsewhere = run.turns_elsewhere + 1 if turn.elsewhere else 0
                if not turn.more and not turn.elsewhere:
                    run.drained_turn = run.turns_begun
                if turn.empty_since is not None and not run.again:
                    run.empty_since = turn.empty_since
                    run.due = run.heartbeat_due = now + EMPTY_SECONDS
            self._changed.notify_all()
