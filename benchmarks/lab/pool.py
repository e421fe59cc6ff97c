"""Runs many configurations in worker processes, those that share a compiled step together.

Guarantees: what is in the cache is not run again; what a killed lab leaves is used by the next one; a worker that dies
costs what it was at, and the error says so. Nothing is left running.
"""

import multiprocessing
import time
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


def run(
    configs: Sequence[Config],
    source: Source,
    folder: Path,
    *,
    workers: int,
    done: Callable[[str, float], None],
    deadline: float | None = None,
) -> None:
    """Train what is not in the cache.

    Args:
        configs: in the order of their importance.
        source: of the rows.
        folder: of the cache.
        workers: processes.
        done: called with the name and the CPU seconds of each finished run.
        deadline: of `time.monotonic`, after which no further group begins; None for none.

    Raises:
        PoolError: a worker died.
    """
    by_threads: dict[int, list[Config]] = {}
    for config in configs:
        by_threads.setdefault(config.threads, []).append(config)
    for threads, part in by_threads.items():
        _run(chunks(part, workers), source, folder, workers if threads == 1 else 1, threads, done, deadline)


def _run(
    tasks: list[list[Config]],
    source: Source,
    folder: Path,
    workers: int,
    threads: int,
    done: Callable[[str, float], None],
    deadline: float | None,
) -> None:
    context = multiprocessing.get_context("spawn")
    says = context.SimpleQueue()
    waiting = list(tasks)
    running: set[Future[int]] = set()
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=worker.begin, initargs=(source, folder, threads, says)
    ) as pool:
        try:
            while waiting or running:
                if deadline is not None and time.monotonic() > deadline:
                    waiting = []
                while waiting and len(running) < workers:
                    running.add(pool.submit(worker.train, waiting.pop(0)))
                finished, running = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                while not says.empty():
                    done(*says.get())
                for future in finished:
                    future.result()
        except BrokenProcessPool:
            raise PoolError(
                "a worker process died (out of memory?); finished runs are kept, run the lab again to go on"
            ) from None
