"""The lab as experiments see it: asks for configurations, and hands out their outcomes and traces."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lab.cache import Cache
from lab.config import Config, Outcome
from lab.data import Source, read
from lab.pool import Pool
from lossguard.demo.tables import DataError
from lossguard.trace.trace import Trace

QUICK_STEPS, QUICK_BATCH = 48, 128
LEAST_ROWS = 200_000
"""Rows before the last day that a folder must hold: the experiments pass over about so many once (KuaiRand-Pure has
212,597, the generated stream 207,700)."""


class Missing(Exception):
    """An outcome that is not there yet; what it is of stands in `config`."""

    def __init__(self, config: Config) -> None:
        super().__init__(f"not run: {config}")
        self.config = config


class Experiment(Protocol):
    """A module of `lab.experiments`.

    Attributes:
        NAME: as in `--only`.
        TITLE: of its section.
    """

    NAME: str
    TITLE: str

    def plan(self, lab: "Lab") -> Iterable[Config]:
        """What it needs next; a search asks for what follows once it has its outcomes."""

    def measure(self, lab: "Lab") -> dict[str, Any]:
        """Its part of the results, JSON-like.

        Raises:
            Missing: not everything was run.
        """

    def text(self, found: dict[str, Any]) -> list[str]:
        """The section's Markdown lines, of `measure`'s document alone."""

    def headline(self, found: dict[str, Any]) -> str:
        """What it comes to, in a few sentences; of the same document."""


@dataclass(slots=True)
class Lab:
    """Runs and keeps.

    Attributes:
        source: of the rows.
        folder: of the cache.
        workers: processes.
        quick: whether this is a smoke run: everything small, nothing to be believed.
        planning: whether plans are only counted: a search's outcome is then guessed.
        done: called with the name and the CPU seconds of each finished run.
        deadline: of `time.monotonic`, after which nothing new begins.
    """

    source: Source
    folder: Path
    workers: int = 2
    quick: bool = False
    planning: bool = False
    done: Callable[[str, float], None] = lambda name, seconds: None
    deadline: float | None = None
    asked: dict[Config, None] = field(default_factory=dict)
    _cache: Cache | None = None
    _training: int = 0
    _known: dict[Config, Outcome] = field(default_factory=dict)
    _pool: Pool | None = None

    def close(self) -> None:
        """End the worker processes, if any; what they finished is kept."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    @property
    def cache(self) -> Cache:
        """The kept runs of these data.

        Raises:
            DataError: no such data, or too little.
        """
        if self._cache is None:
            data = read(self.source)
            self._training = data.examples.training
            if self.source.folder is not None and self._training < LEAST_ROWS:
                raise DataError(
                    f"{self.source.folder} holds {self._training:,} rows before its last day, the lab needs "
                    f"{LEAST_ROWS:,}: give it all of KuaiRand-Pure, or leave --data out for a generated stream"
                )
            self._cache = Cache(self.folder, data.fingerprint, self.source.reference)
        return self._cache

    def steps(self, batch: int, most: int) -> int:
        """How many batches one pass over the rows before the last day has, `most` at most."""
        _ = self.cache
        return min(most, self._training // batch)

    def seeds(self, count: int) -> range:
        """So many seeds, fewer in a smoke run."""
        return range(min(count, 2) if self.quick else count)

    def small(self, config: Config) -> Config:
        """The configuration, in a smoke run as short as one can be judged."""
        if not self.quick:
            return config
        return config.but(steps=min(config.steps, QUICK_STEPS), batch=QUICK_BATCH, evaluations=2)

    def known(self, config: Config) -> Outcome | None:
        """The outcome, or None."""
        self.asked[config] = None
        if config not in self._known and (found := self.cache.load(config)) is not None:
            self._known[config] = found
        return self._known.get(config)

    def outcome(self, config: Config) -> Outcome:
        """The outcome.

        Raises:
            Missing: it is not there.
        """
        found = self.known(config)
        if found is None:
            raise Missing(config)
        return found

    def trace(self, config: Config) -> Trace:
        """The recorded run."""
        self.outcome(config)
        return self.cache.trace(config)

    def run(self, configs: Sequence[Config]) -> list[Outcome | None]:
        """Train what is not there; the outcomes in the order of the configurations, None after the deadline."""
        missing = [config for config in dict.fromkeys(configs) if self.known(config) is None]
        if missing:
            if self._pool is None:
                self._pool = Pool(self.source, self.folder, self.workers, self.done)
            self._pool.run(missing, self.deadline)
        return [self.known(config) for config in configs]

    def complete(self, experiments: Sequence[Experiment]) -> None:
        """Run every plan to its end, one after the other; what follows a search comes in a round of its own."""
        tried: set[Config] = set()
        for one in experiments:
            while self.deadline is None or time.monotonic() < self.deadline:
                wanted = dict.fromkeys(one.plan(self))
                new = [config for config in wanted if self.known(config) is None and config not in tried]
                if not new:
                    break
                tried.update(new)
                self.run(new)
