"""Where the CPU of a chunk goes; part of `benchmarks/ingest.py`.

The parts are measured in this process, without HTTP: encoding, then `Ingest.accept` on a SQLite file of its own with a
clock around what it calls. What the benchmark's real client and server took beyond their sum is HTTP and the change of
processes.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lossguard.wire.chunk import Chunk, encode
from lossguard_service.incidents.detectors import Detectors
from lossguard_service.ingest.accept import Ingest
from lossguard_service.ingest.prepare import prepare
from lossguard_service.store.database import Database, open_database
from lossguard_service.store.migrate import migrate

T = TypeVar("T")


class Part:
    """CPU seconds of one part, by a clock of the thread or of the process."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.seconds = 0.0
        self._clock = clock

    def time(self, function: Callable[..., T], *arguments: Any) -> T:
        """What the function returns."""
        before = self._clock()
        try:
            return function(*arguments)
        finally:
            self.seconds += self._clock() - before


class _Detectors(Detectors):
    """Detectors with a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Part(time.thread_time)

    def advance(self, *arguments: Any) -> Any:
        """See `Detectors`."""
        return self.part.time(super().advance, *arguments)


class _Ingest(Ingest):
    """Ingest with a clock around what it works out before the transaction, and how much of that the detectors took."""

    def __init__(self, database: Database, detectors: _Detectors, clock: Callable[[], float]) -> None:
        super().__init__(database, detectors, clock)
        self.part = Part(time.thread_time)
        self.judging = Part(lambda: detectors.part.seconds)

    def _try(self, *arguments: Any) -> Any:
        return self.judging.time(self.part.time, super()._try, *arguments)


def parts(chunks: Sequence[Chunk], warm: int, folder: Path) -> dict[str, float]:
    """Microseconds of CPU a chunk by part; the first `warm` chunks are not counted."""
    encoding, preparing, whole = (Part(time.process_time) for _ in range(3))

    async def go() -> tuple[float, float, float]:
        database = open_database(f"sqlite:///{folder}/parts-{time.time_ns()}.db")
        try:
            await migrate(database)
            detectors = _Detectors()
            ingest = _Ingest(database, detectors, time.time)
            timed = (encoding, preparing, whole, ingest.part, ingest.judging)
            for place, chunk in enumerate(chunks):
                if place == warm:
                    for part in (*timed, detectors.part):
                        part.seconds = 0.0
                data = encoding.time(encode, chunk)
                preparing.time(prepare, chunk.id, data)
                before = time.process_time()
                await ingest.accept(chunk.id, data)
                whole.seconds += time.process_time() - before
            return detectors.part.seconds, ingest.part.seconds, ingest.judging.seconds
        finally:
            await database.close()

    detecting, working, judging = asyncio.run(go())
    found = {
        "encode (client)": encoding.seconds,
        "decode and check": preparing.seconds,
        "detectors": detecting,
        "the run after it": working - judging,
        "statements, commit, sync": whole.seconds - preparing.seconds - working - (detecting - judging),
    }
    return {name: 1e6 * seconds / (len(chunks) - warm) for name, seconds in found.items()}
