"""Runs many configurations in worker processes, those that share a compiled step together.

Guarantees: what is in the cache is not run again; what a killed lab leaves is used by the next one; a worker that dies
costs what it was at, and the error says so. Nothing is left running.
"""

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from lab import worker
from lab.config import Config
from lab.data import Source

CHUNK = 10
"""Runs in one task of a worker at most: the last tasks of the workers should end together."""
TASKS = 20
"""Tasks after which a process is replaced. TensorFlow keeps what it compiled until the process ends, 50 to 100 MB for
each step, also where the step, its model and its graphs are collected and the session is cleared (measured)."""


class PoolError(RuntimeError):
    """A worker died; what was finished is kept, and running the lab again goes on from there."""


def chunks(configs: Sequence[Config], workers: int) -> list[list[Config]]:
    """Groups that share a compiled step, cut to pieces, in the order in which they are first asked for."""
    groups: dict[tuple[Any, ...], list[Config]] = {}
    for config in dict.fromkeys(configs):
        groups.setdefault(config.compiled, []).append(config)
    cut = []
    for group in groups.values():
        pieces = max(1, -(-len(group) // CHUNK)) if workers > 1 else 1
        size = -(-len(group) // pieces)
        cut += [group[start : start + size] for start in range(0, len(group), size)]
    return cut


class Pool:
    """Worker processes; each lives for `TASKS` tasks, with what it has compiled last, the last ones until `close`.

    Args:
        source: of the rows.
        folder: of the cache.
        workers: processes.
        done: called with the name and the CPU seconds of each finished run.
    """

    def __init__(self, source: Source, folder: Path, workers: int, done: Callable[[str, float], None]) -> None:
        self._source, self._folder, self._workers, self._done = source, folder, workers, done
        self._context = multiprocessing.get_context("spawn")
        self._says = self._context.SimpleQueue()
        self._stop = self._context.Event()
        self._executors: dict[tuple[int, int], ProcessPoolExecutor] = {}
        self._tasks: Counter[tuple[int, int]] = Counter()

    def run(self, configs: Sequence[Config], deadline: float | None = None) -> None:
        """Train what is not in the cache.

        Args:
            configs: in the order of their importance.
            deadline: of `time.monotonic`, after which no further group begins; None for none.

        Raises:
            PoolError: a worker died.
        """
        by_threads: dict[int, list[Config]] = {}
        for config in configs:
            by_threads.setdefault(config.threads, []).append(config)
        for threads, part in by_threads.items():
            # Two threads are not shared out: TensorFlow may use a process's threads for one run alone.
            workers = self._workers if threads == 1 else 1
            try:
                self._run(chunks(part, workers), threads, workers, deadline)
            except BrokenProcessPool:
                raise PoolError(
                    "a worker process died (out of memory?); finished runs are kept, run the lab again to go on"
                ) from None

    def close(self) -> None:
        """End the workers, each after the run that it is at."""
        self._stop.set()
        for executor in self._executors.values():
            executor.shutdown(cancel_futures=True)
        self._executors.clear()

    def _executor(self, threads: int, place: int) -> ProcessPoolExecutor:
        """The one process that works at this place; a new one where it has done its tasks."""
        key = (threads, place)
        if self._tasks[key] >= TASKS:
            self._executors.pop(key).shutdown()
            self._tasks[key] = 0
        if key not in self._executors:
            self._executors[key] = ProcessPoolExecutor(
                1,
                mp_context=self._context,
                initializer=worker.begin,
                initargs=(self._source, self._folder, threads, self._says, self._stop),
            )
        self._tasks[key] += 1
        return self._executors[key]

    def _run(self, waiting: list[list[Config]], threads: int, workers: int, deadline: float | None) -> None:
        running: dict[Future[int], int] = {}
        idle = list(range(workers))
        while waiting or running:
            if deadline is not None and time.monotonic() > deadline:
                waiting = []
            while waiting and idle:
                place = idle.pop(0)
                running[self._executor(threads, place).submit(worker.train, waiting.pop(0))] = place
            finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            while not self._says.empty():
                self._done(*self._says.get())
            for future in finished:
                idle.append(running.pop(future))
                future.result()
