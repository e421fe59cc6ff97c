"""Looks for NaN and Inf in every tensor of an artifact, and takes its norm in the same pass, without TensorFlow.

Guarantees. Streaming, with bounded memory. `complete` only if every tensor of floats was read to its end; a format that
cannot be read here, a missing data file or a cut one makes the scan incomplete, with a note that says why, and an
incomplete scan never passes.

SavedModels are read as tensor bundles (`lossguard.gate.bundle`) and the constants of their graphs by
`lossguard.gate.graph`, `.keras` and `.weights.h5` files by `lossguard.gate.hdf5`, Orbax checkpoints by
`lossguard.gate.orbax`.
"""

import io
import math
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from lossguard.gate.artifact import model_kind
from lossguard.gate.bundle import BundleError, Entry, read_index, shard_path
from lossguard.gate.findings import BLOCK_BYTES, Scan, look, look_bfloat16
from lossguard.gate.graph import broken_constants
from lossguard.gate.hdf5 import scan_hdf5
from lossguard.gate.orbax import scan_orbax

_FLOATS: Final[dict[int, np.dtype[Any]]] = {
    1: np.dtype("<f4"),
    2: np.dtype("<f8"),
    8: np.dtype("<c8"),
    18: np.dtype("<c16"),
    19: np.dtype("<f2"),
}
_BFLOAT16: Final = 14
_E5M2: Final = 24
_E4M3FN: Final = 25
_WITHOUT_FLOATS: Final = frozenset({3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 15, 16, 17, 20, 21, 22, 23, 29, 30})
"""Integers, booleans, strings, resources and their kin."""


def scan_artifact(artifact: str | Path) -> Scan:
    """Read every tensor of the artifact.

    Raises:
        NotAModel: it is no model.
    """
    path = Path(artifact)
    scan = Scan(model_kind(path))
    try:
        match scan.kind:
            case "savedmodel":
                _savedmodel(path, scan)
            case "keras" | "weights":
                scan_hdf5(path if path.is_file() else _only_file(path), scan)
            case "orbax":
                scan_orbax(path, scan)
        if scan.complete and scan.tensors == 0:
            scan.incomplete("it holds no tensors of floats")
    except (ValueError, KeyError, RuntimeError, zipfile.BadZipFile) as error:  # BundleError, and what h5py raises
        scan.incomplete(str(error))
    except OSError as error:
        scan.incomplete(f"{error.filename or path} cannot be read: {error.strerror or error}")
    return scan


def _savedmodel(path: Path, scan: Scan) -> None:
    index = path / "variables" / "variables.index"
    if not index.is_file():
        scan.incomplete("the SavedModel has no variables: its weights, if any, are constants, which are not scanned")
        return
    if (path / "model.tflite").exists():
        scan.incomplete(
            "beside the SavedModel lies model.tflite, which a server may prefer and no scan reads: remove it"
        )
    graph = path / "saved_model.pb"
    if graph.is_file():
        for name, count, bad in broken_constants(graph):
            scan.found(f"constant {name}", count, bad)
    else:
        scan.incomplete("its graph is in another form than saved_model.pb, and its constants cannot be read")
    shards, entries = read_index(index)
    # Keras's `export` saves every variable under both, and a layer has one tensor.
    twice = any(entry.name.startswith("variables/") for entry in entries)
    buffer = bytearray(BLOCK_BYTES)
    for shard in range(shards):
        data = shard_path(index, shard, shards)
        mine = sorted((entry for entry in entries if entry.shard == shard), key=lambda entry: entry.offset)
        size = data.stat().st_size
        with open(data, "rb", buffering=0) as stream:
            for entry in mine:
                if entry.offset + entry.size > size:
                    raise BundleError(f"{data.name} ends before the tensor {entry.name}: the export did not finish")
                _tensor(stream, entry, buffer, scan, has_norm=not (twice and entry.name.startswith("_all_variables/")))
    if any(not 0 <= entry.shard < shards for entry in entries):
        raise BundleError("a tensor lies in a data file that is not there")


def _tensor(stream: io.FileIO, entry: Entry, buffer: bytearray, scan: Scan, *, has_norm: bool) -> None:
    if entry.dtype in _WITHOUT_FLOATS or entry.size == 0:
        return
    if entry.dtype not in _FLOATS and entry.dtype not in (_BFLOAT16, _E5M2, _E4M3FN):
        scan.incomplete(f"tensor {entry.name} has type {entry.dtype}, which this version cannot read")
        return
    stream.seek(entry.offset)
    left, bad, squares = entry.size, 0, 0.0
    view = memoryview(buffer)
    while left:
        wanted = min(left, BLOCK_BYTES)
        got = 0
        while got < wanted:
            count = stream.readinto(view[got:wanted])
            if not count:
                raise BundleError(f"tensor {entry.name} is cut off: the export changed while it was read")
            got += count
        more, added = _look(entry.dtype, view[:wanted])
        bad, squares = bad + more, squares + added
        left -= wanted
    width = _FLOATS[entry.dtype].itemsize if entry.dtype in _FLOATS else 2 if entry.dtype == _BFLOAT16 else 1
    scan.found(entry.name, entry.size // width, bad, squares if has_norm else math.nan, 8 * width)


def _look(dtype: int, block: memoryview) -> tuple[int, float]:
    """See `findings.look`; floats of 8 bits have no norm."""
    if dtype in _FLOATS:
        return look(np.frombuffer(block, _FLOATS[dtype]))
    if dtype == _BFLOAT16:
        return look_bfloat16(np.frombuffer(block, "<u2"))
    values = np.frombuffer(block, np.uint8)
    bad = (values & 0x7F) == 0x7F if dtype == _E4M3FN else (values & 0x7C) == 0x7C
    return int(np.count_nonzero(bad)), math.nan


def _only_file(folder: Path) -> Path:
    return next(path for path in sorted(folder.iterdir()) if path.name.endswith((".keras", ".weights.h5")))
