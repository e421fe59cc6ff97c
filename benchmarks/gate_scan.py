"""The speed of scanning an artifact for NaN and Inf beside reading and hashing it, by format, on one and on two cores.

`python benchmarks/gate_scan.py` prints the table, which is a part of that of `benchmarks/gate.py`. Every artifact holds
the same random floats; everything is in the page cache; the best of a few turns counts.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import zstandard
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "gate"))

from gate_runs import write_bundle  # noqa: E402

from lossguard.gate.digest import artifact_digest  # noqa: E402
from lossguard.gate.scan import scan_artifact  # noqa: E402

LAYERS, BUDGET = 8, 0.7
Row = tuple[str, float, str]


def make(folder: Path, megabytes: int) -> None:
    """The same weights in every format that can be written here."""
    weights = np.random.default_rng(1).normal(size=(megabytes, 1 << 18)).astype(np.float32)
    layers = {f"layer_{n}": weights[n::LAYERS] for n in range(LAYERS)}
    variables = folder / "SavedModel" / "variables"
    variables.mkdir(parents=True)
    (folder / "SavedModel" / "saved_model.pb").write_bytes(b"\x08\x01")
    write_bundle(variables, layers)
    make_hdf5(folder, layers)
    make_orbax(folder / "Orbax", layers)


def make_hdf5(folder: Path, layers: dict[str, np.ndarray]) -> None:
    """As Keras writes them: contiguous datasets, in a zip archive that compresses nothing."""
    import h5py

    with h5py.File(folder / "model.weights.h5", "w") as file:
        for name, values in layers.items():
            file.create_dataset(f"layers/{name}/vars/0", data=values)
    with zipfile.ZipFile(folder / "model.keras", "w") as archive:
        archive.writestr("config.json", "{}")
        archive.write(folder / "model.weights.h5", "model.weights.h5")


def make_orbax(folder: Path, layers: dict[str, np.ndarray]) -> None:
    """As Orbax writes it: an OCDBT database of Zarr 2 arrays, Zstandard, each array one chunk."""
    import tensorstore

    folder.mkdir()
    tree = {}
    for name, values in layers.items():
        store = {"driver": "ocdbt", "base": f"file://{folder}/", "path": f"{name}/"}
        metadata = {"chunks": list(values.shape), "compressor": {"id": "zstd", "level": 1}}
        spec = {"driver": "zarr", "kvstore": store, "metadata": metadata}
        tensorstore.open(spec, create=True, dtype="float32", shape=values.shape).result().write(values).result()
        leaf = {"key_metadata": [{"key": name}], "value_metadata": {"value_type": "np.ndarray"}}
        tree[f"('{name}',)"] = leaf
    (folder / "_METADATA").write_text(json.dumps({"tree_metadata": tree}))
    (folder / "_CHECKPOINT_METADATA").write_text("{}")


def measure(folder: Path, turns: int) -> Iterator[Row]:
    """The rows of this process, which may use as many CPUs as it may."""
    cpus = len(os.sched_getaffinity(0))
    for name in ("SavedModel", "model.weights.h5", "model.keras", "Orbax"):
        artifact = folder / name
        files = [artifact] if artifact.is_file() else [file for file in artifact.rglob("*") if file.is_file()]
        stored = sum(file.stat().st_size for file in files) / (1 << 20)
        scan = scan_artifact(artifact)
        assert (scan.complete, scan.nonfinite) == (True, {}), scan.note
        works: dict[str, Callable[[], object]] = {
            "read and hash": lambda files=files: [hash_file(file) for file in files],
            "scan": lambda artifact=artifact: scan_artifact(artifact),
        }
        if name == "SavedModel" and cpus == 1:
            works["digest"] = lambda artifact=artifact: artifact_digest(artifact)
        if name == "Orbax":
            works["Zstandard alone"] = decompression(artifact)
        found = best(works, turns)
        on = f"{name}, {stored:.0f} MiB, {cpus} core{'s' if cpus > 1 else ''}"
        yield from ((f"{on}: {work}", stored / wall, "MiB/s") for work, (wall, _) in found.items())
        (hash_wall, hash_cpu), (scan_wall, scan_cpu) = found["read and hash"], found["scan"]
        yield f"{on}: scan over read and hash", hash_wall / scan_wall, f"x (budget {BUDGET})"
        yield f"{on}: the same, in CPU time", hash_cpu / scan_cpu, "x"
        if name == "Orbax":
            alone = hash_wall / found["Zstandard alone"][0]
            yield f"{on}: Zstandard alone over read and hash", alone, "x (one thread, out of memory)"


def hash_file(file: Path) -> bytes:
    """What is a scan's yardstick."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def decompression(checkpoint: Path) -> Callable[[], None]:
    """What no scan on one core can beat: chunks that are in memory already, into one small buffer."""
    import tensorstore

    database = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{checkpoint}/"}).result()
    chunks = [database.read(key).result().value for key in database.list().result() if not key.endswith(b".zarray")]
    buffer = bytearray(1 << 20)

    def work() -> None:
        for chunk in chunks:
            with zstandard.ZstdDecompressor().stream_reader(chunk) as stream:
                while stream.readinto(buffer):
                    pass

    return work


def best(works: dict[str, Callable[[], object]], turns: int) -> dict[str, tuple[float, float]]:
    """Seconds and CPU seconds of each, the least of some turns in which each has its own."""
    found = dict.fromkeys(works, (float("inf"), float("inf")))
    for _ in range(turns):
        for name, work in works.items():
            start, used = time.perf_counter(), time.process_time()
            work()
            taken = time.perf_counter() - start, time.process_time() - used
            found[name] = min(found[name][0], taken[0]), min(found[name][1], taken[1])
    return found


def scanning(folder: Path, megabytes: int, turns: int) -> list[Row]:
    """All rows: a process with one CPU, then one with two."""
    make(folder, megabytes)
    cpus = sorted(os.sched_getaffinity(0))
    rows: list[Row] = []
    for count in range(1, min(2, len(cpus)) + 1):
        command = [sys.executable, __file__, "--measure", str(folder), "--turns", str(turns)]
        # Set before the process begins, so that the threads of every library inherit it.
        only = ["taskset", "-c", ",".join(map(str, cpus[:count]))]
        done = subprocess.run([*only, *command], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        rows += [tuple(row) for row in json.loads(done.stdout)]
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=256, help="size of each artifact")
    parser.add_argument("--turns", type=int, default=5, help="turns of which the best counts")
    parser.add_argument("--measure", metavar="DIR", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(list(measure(arguments.measure, arguments.turns))))
        return
    table = Table(title="scan of an artifact")
    for column in ("measure", "value", "unit"):
        table.add_column(column, justify="right" if column == "value" else "left")
    with tempfile.TemporaryDirectory() as folder:
        for name, value, unit in scanning(Path(folder), arguments.megabytes, arguments.turns):
            table.add_row(name, f"{value:.2f}", unit)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
