"""Kills trainers, the sidecar and the service at random, and counts what is lost: it must be nothing.

`python benchmarks/chaos.py [--rounds 30] [--seed N] [--trainers 3] [--database sqlite|postgresql] [--json FILE]`

Real processes: trainers that record (and write down, by a way of their own that survives `kill -9`, up to which step
they were told that frames are sealed), one `lossguard sidecar`, one `lossguard serve` on SQLite or PostgreSQL, and
between them a proxy that sometimes answers 500, 429 or garbage, or slowly, or forwards a chunk and hangs up. Every
round one thing goes wrong: a `kill -9` of a trainer, the sidecar, the service or PostgreSQL, a service that is stopped
for a while, a full disk, a clock that jumps. In the end everybody may finish, and the service's database is compared
with what the trainers wrote down.
Exit code 1 if a sealed frame is missing, stands twice or differs; 2 if only a training step was delayed by more than
50 ms.
Delayed means by us: of a call that took longer, the time that the process's threads waited for a core (the kernel's
count, `schedstat`) is taken off, since a busy machine does that to a bare trainer too. The seed is printed.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np

from chaos_database import Database, Postgres, Sqlite
from chaos_proxy import Proxy
from chaos_trainer import CLOCK_JUMPS, numbers, train, warp

BACKLOG_FRAMES = 3000
"""No new fault while more sealed frames than this wait for the service: the end would wait for them all."""
DRAIN_SECONDS = 1200
PYTHON = sys.executable


def serve(clock_offset: float, arguments: list[str]) -> None:
    """The service's process."""
    warp(clock_offset)
    from lossguard_service.__main__ import main

    sys.exit(main(arguments))


# --- the rounds


class World:
    """All processes of one run of the benchmark."""

    def __init__(self, folder: Path, seed: int, trainers: int, database: Database) -> None:
        self.folder = folder
        self.database = database
        self.chance = random.Random(seed)
        self.port = free_port()
        self.proxy = Proxy(f"http://127.0.0.1:{self.port}", random.Random(seed + 1))
        self.disk_full = folder / "disk-full"
        self.log = (folder / "log").open("w")
        (folder / "journal").mkdir()
        self.runs = [f"run-{number}" for number in range(trainers)]
        self.trainers = {run: self.start_trainer(run) for run in self.runs}
        self.service = self.start_service()
        self.sidecar = self.start_sidecar()

    def spawn(self, *arguments: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen([PYTHON, *map(str, arguments)], stdout=self.log, stderr=self.log, cwd=self.folder)

    def start_trainer(self, run: str) -> subprocess.Popen[bytes]:
        known = self.truth(run)
        last = max((row[2] for row in known), default=0)
        start = self.chance.randint(max(0, last - 50), last)
        offset = self.chance.choice([0.0, 0.0, *CLOCK_JUMPS])
        paths = self.folder / "journal", self.folder / f"{run}.truth"
        return self.spawn(Path(__file__).resolve(), "--train", *paths, run, start, offset, self.disk_full)

    def start_service(self) -> subprocess.Popen[bytes]:
        options = "--port", self.port, "--database", self.database.url
        return self.spawn(Path(__file__).resolve(), "--serve", self.chance.choice([0.0, 0.0, *CLOCK_JUMPS]), *options)

    def start_sidecar(self) -> subprocess.Popen[bytes]:
        main = "from lossguard.cli.main import main; main()"
        options = "--poll-seconds", 0.05, "--drain-seconds", DRAIN_SECONDS
        return self.spawn("-c", main, "sidecar", self.folder / "journal", "--service", self.proxy.url, *options)

    def truth(self, run: str) -> list[list[int]]:
        path = self.folder / f"{run}.truth"
        if not path.exists():
            return []
        # The last line may be cut by a kill.
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("]")]

    def stored(self) -> int:
        """Chunks in the database now; -1 while there is none."""
        try:
            return int(self.database.rows("select count(*) from chunks")[0][0])
        except OSError:
            return -1

    def backlog(self) -> int:
        """Frames that the trainers were told are sealed and that the service has not stored."""
        attempts = {str(row[0]): max(0, row[2] - row[1]) for run in self.runs for row in self.truth(run)}
        try:
            return sum(attempts.values()) - int(self.database.rows("select sum(frames) from chunks")[0][0] or 0)
        except OSError:
            return sum(attempts.values())

    def wait_for_progress(self, timeout_seconds: float = 120.0) -> None:
        before, until = self.stored(), time.monotonic() + timeout_seconds
        while self.stored() <= before + 3:
            assert time.monotonic() < until, "the service takes no more chunks: see the log"
            time.sleep(0.1)
        until += 5 * timeout_seconds
        while (behind := self.backlog()) > BACKLOG_FRAMES:
            self.proxy.badly = 0.0  # on a busy machine the trainers may record as fast as a bad network takes
            assert time.monotonic() < until, f"{behind} frames wait for the service: see the log"
            time.sleep(0.5)

    def wait_for_start(self, run: str, trainer: subprocess.Popen[bytes], timeout_seconds: float = 120.0) -> None:
        """Until the process that was started last is up: before that a SIGTERM is a death like any other."""
        path, until = self.folder / f"{run}.pid", time.monotonic() + timeout_seconds
        while not path.exists() or path.read_text() != str(trainer.pid):
            assert trainer.poll() is None, f"{run} ended with {trainer.returncode} before it began"
            assert time.monotonic() < until, f"{run} does not start: see the log"
            time.sleep(0.02)

    def round(self) -> str:
        self.proxy.badly = self.chance.choice([0.0, 0.1, 0.4])
        what = self.chance.choice(
            ["trainer", "trainer", "sidecar", "service", "service", "all", "stop", "disk", "clock", "database"]
        )
        time.sleep(self.chance.uniform(0.0, 0.3))
        if what in ("trainer", "all"):
            run = self.chance.choice(self.runs)
            kill(self.trainers[run])
            self.trainers[run] = self.start_trainer(run)
        if what in ("service", "all"):
            kill(self.service)
            time.sleep(self.chance.uniform(0.0, 0.3))
            self.service = self.start_service()
        if what == "database" and not self.database.kill():
            what = "service"
        if what in ("sidecar", "all"):
            kill(self.sidecar)
            self.sidecar = self.start_sidecar()
        if what == "stop":
            self.service.send_signal(signal.SIGSTOP)
            time.sleep(self.chance.uniform(0.2, 1.0))
            self.service.send_signal(signal.SIGCONT)
        if what == "clock":
            # Not before its handler stands: the signal would kill it.
            run = self.chance.choice(self.runs)
            self.wait_for_start(run, self.trainers[run])
            self.trainers[run].send_signal(signal.SIGUSR1)
        if what == "disk":
            self.disk_full.touch()
            time.sleep(self.chance.uniform(0.2, 1.0))
            self.disk_full.unlink()
        self.wait_for_progress()
        return what

    def finish(self) -> None:
        self.proxy.badly = 0.0
        for run, trainer in self.trainers.items():
            self.wait_for_start(run, trainer)
            trainer.send_signal(signal.SIGTERM)
        for run, trainer in self.trainers.items():
            code = trainer.wait(60)
            assert code == 0, f"{run} dropped frames" if code == 1 else f"{run} ended with {code}"
        self.sidecar.send_signal(signal.SIGTERM)
        assert self.sidecar.wait(DRAIN_SECONDS + 20) == 0, "the sidecar did not drain"
        self.service.send_signal(signal.SIGTERM)
        self.service.wait(30)

    def kill_all(self) -> None:
        for process in (*self.trainers.values(), self.sidecar, self.service):
            if process.poll() is None:
                kill(process)
        self.proxy.server.shutdown()
        self.proxy.server.server_close()
        self.log.close()


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def free_port() -> int:
    """One that stays free while the service is dead: no outgoing connection of this machine is ever given it."""
    lowest_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])  # Linux, as the rest is
    while True:
        with socket.socket() as listener, suppress(OSError):
            port = random.SystemRandom().randrange(1024, lowest_given)
            listener.bind(("127.0.0.1", port))
            return port


# --- the reckoning

BAD = (
    "sealed frames lost",
    "frames stored twice",
    "frames that differ",
    "holes between stored frames",
    "gaps between chunks",
    "chunks set aside",
    "chunks whose count is not their steps",
)
LATE = "steps delayed by more than 50 ms"


def reckon(world: World) -> dict[str, int]:
    from lossguard.wire.chunk import decode

    found: Counter[str] = Counter()
    # The index of chunks stays for ever; their bytes move into segments as the service compacts, so that what the
    # frames hold is compared in those that it has not compacted yet.
    query = (
        'select runs.name, attempts.key, chunks."index", chunks.first_step, chunks.last_step, chunks.frames, '
        "chunk_bytes.data from chunks join attempts on attempts.run_id = chunks.run_id and attempts.number = "
        "chunks.attempt join runs on runs.id = chunks.run_id left join chunk_bytes on chunk_bytes.run_id = "
        'chunks.run_id and chunk_bytes.attempt = chunks.attempt and chunk_bytes."index" = chunks."index" '
        'order by chunks."index"'
    )
    stored: dict[tuple[str, str], list[int]] = {}
    indices: dict[tuple[str, str], list[int]] = {}
    for run, attempt, index, first, last, count, data in world.database.rows(query):
        indices.setdefault((run, attempt), []).append(index)
        if count:
            found["chunks whose count is not their steps"] += last - first + 1 != count
            stored.setdefault((run, attempt), []).extend(range(first, last + 1))
        if data is None:
            continue
        frames = decode(data).frames
        found["frames compared"] += len(frames)
        for row, step in enumerate(frames.steps.tolist()):
            if not np.array_equal(frames.stats[row : row + 1], numbers(step)):
                found["frames that differ"] += 1
    for run in world.runs:
        attempts: dict[str, list[int]] = {}
        for attempt, *told in world.truth(run):
            attempts[str(attempt)] = told
        for attempt, (start, sealed, recorded, slow, ours, control, control_alike) in attempts.items():
            steps = stored.get((run, attempt), [])
            wanted = set(range(start + 1, sealed + 1))
            found["attempts"] += 1
            found["frames recorded, at least"] += recorded - start
            found["frames sealed, as the trainers were told"] += len(wanted)
            found["frames stored"] += len(steps)
            found["sealed frames lost"] += len(wanted - set(steps))
            found["frames stored twice"] += len(steps) - len(set(steps))
            found["holes between stored frames"] += len(set(range(start + 1, start + 1 + len(steps))) ^ set(steps))
            numbers_ = indices.get((run, attempt), [])
            found["gaps between chunks"] += numbers_ != list(range(len(numbers_)))
            found["calls above 50 ms"] += slow
            found[LATE] += ours
            found["as long without us (control)"] += control
            found["and not for want of a core (control)"] += control_alike
    left = list((world.folder / "journal").rglob("*.journal"))
    found["journal files left"] = len(left)
    found["chunks set aside"] = len(list((world.folder / "journal").rglob("rejected/*.chunk")))
    return dict(found)


def main() -> None:
    if sys.argv[1:2] == ["--train"]:
        journal, truth, run, start, offset, disk_full = sys.argv[2:]
        train(Path(journal), Path(truth), run, int(start), float(offset), Path(disk_full))
    if sys.argv[1:2] == ["--serve"]:
        serve(float(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--trainers", type=int, default=3)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(
        f"seed {options.seed}, {options.rounds} rounds, {options.trainers} trainers, {options.database}, "
        f"load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    faults: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        database: Database = Sqlite(Path(name)) if options.database == "sqlite" else Postgres()
        world = World(Path(name), options.seed, options.trainers, database)
        try:
            world.wait_for_progress()
            for number in range(1, options.rounds + 1):
                what = world.round()
                faults[what] += 1
                print(f"round {number}: {what}, {world.stored()} chunks, {world.backlog()} frames behind", flush=True)
            world.finish()
            found = reckon(world)
        except BaseException:
            world.log.flush()
            print("\n".join((Path(name) / "log").read_text().splitlines()[-40:]))
            raise
        finally:
            world.kill_all()
            database.close()
    print("faults:", dict(faults), "proxy:", dict(world.proxy.did))
    for key, count in found.items():
        print(f"{key:45} {count}")
    if options.json:
        options.json.write_text(json.dumps({"seed": options.seed, "faults": faults, "found": found}, indent=2) + "\n")
    sys.exit(1 if any(found.get(key) for key in BAD) else 2 if found.get(LATE) else 0)


if __name__ == "__main__":
    main()
