"""Scans Orbax checkpoints: the arrays of every item of one step, through TensorStore.

Guarantees. Neither Orbax nor JAX is needed, and TensorStore (`pip install "lossguard[orbax]"`) only here: without it
the scan is incomplete and says so. Arrays of the plain kind are read in small pieces (`lossguard.gate.zarr`); what is
not, or not finite, by chunks, which TensorStore decodes as a whole: one beyond `MAX_CHUNK_BYTES` is not read. A chunk
that is missing is an error, never zeros; so is an array that the item's `_METADATA` names and that is not there, and a
part that no process merged.

The layout, as Orbax 0.12 writes it: a folder per step with `_CHECKPOINT_METADATA` and a folder per item (or one item at
the top); an item holds `_METADATA` (JSON, `tree_metadata`: every leaf with its path) and its arrays, either in an OCDBT
database (`manifest.ocdbt`, made of the databases `ocdbt.process_<n>` that each process wrote) or as one folder each. An
array is Zarr, version 2 (`.zarray`) or 3 (`zarr.json`); its name is the leaf's path with dots.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np

from lossguard.gate.findings import BLOCK_BYTES, Scan, look, look_bfloat16, usable_cpus
from lossguard.gate.zarr import Layout, layout_of, squares_of

MAX_CHUNK_BYTES: Final = 2 << 30
"""Orbax writes an array's part on one host as one chunk unless `chunk_byte_size` is given."""
MAX_METADATA_BYTES: Final = 256 << 20
WORKERS: Final = 4
"""So many chunks are looked through side by side, where there are as many CPUs: decompression takes the time."""
LOOK_BYTES: Final = 1 << 20
"""Decompressed at once, so that it is looked at while it is in the cache."""
_DRIVERS: Final = {".zarray": "zarr", "zarr.json": "zarr3"}
_PROCESS: Final = "ocdbt.process_"
_ARRAYS: Final = ("jax.Array", "np.ndarray", "scalar")
"""The kinds of leaves that are stored as arrays; strings and empty nodes are not."""


def scan_orbax(path: Path, scan: Scan) -> None:
    """Read every array of the checkpoint.

    Raises:
        OSError, ValueError, KeyError: a part of it is damaged.
    """
    try:
        import tensorstore
    except ImportError:
        scan.incomplete(
            'the arrays of an Orbax checkpoint cannot be read without TensorStore: pip install "lossguard[orbax]", or '
            "export a SavedModel"
        )
        return
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})
    for folder in [path, *sorted(entry for entry in path.rglob("*") if entry.is_dir())]:
        names = {entry.name for entry in folder.iterdir()}
        merged = "manifest.ocdbt" in names
        if any(part.startswith(_PROCESS) for part in folder.relative_to(path).parts):
            continue
        if not merged and any(name.startswith(_PROCESS) for name in names):
            scan.incomplete("the parts of its processes were never merged: it is not finished; save it again")
            continue
        if "checkpoint" in names and (folder / "checkpoint").is_file():
            scan.incomplete("the checkpoint is of an old form (msgpack) that cannot be read: save it with a new Orbax")
        item = "" if folder == path else f"{folder.relative_to(path)}/"
        found = _arrays(folder, merged, tensorstore) if merged or "_METADATA" in names else {}
        finite = _finite(found, tensorstore, context)
        for name, spec in found.items():
            if name in finite:
                scan.found(item + name, finite[name][0].values, 0, finite[name][1], finite[name][0].bits)
            else:
                _array(item + name, spec, scan, tensorstore, context)
        if "_METADATA" in names:
            for name in sorted(_expected(folder / "_METADATA") - set(found)):
                scan.incomplete(f"array {item}{name} is named in _METADATA and not there: the checkpoint is not whole")


def _expected(metadata: Path) -> set[str]:
    """The names of the arrays that an item must hold."""
    if metadata.stat().st_size > MAX_METADATA_BYTES:
        raise ValueError("_METADATA is larger than any")
    document = json.loads(metadata.read_bytes())
    tree = document.get("tree_metadata") if isinstance(document, dict) else None
    if not isinstance(tree, dict):
        raise ValueError("_METADATA names no arrays: the checkpoint is not whole")
    names = set()
    for leaf in tree.values():
        value = leaf["value_metadata"]
        if value.get("value_type") in _ARRAYS and not value.get("skip_deserialize"):
            names.add(".".join(str(key["key"]) for key in leaf["key_metadata"]))
    return names


def _arrays(folder: Path, merged: bool, tensorstore: Any) -> dict[str, dict[str, Any]]:
    """The arrays of one item, as TensorStore opens them, by name."""
    base = {"driver": "file", "path": f"{folder.absolute()}/"}
    store = {"driver": "ocdbt", "base": base} if merged else base
    keys = tensorstore.KvStore.open(store).result().list().result() if merged else _files(folder)
    found = {}
    for key in sorted(key.decode("utf-8", "replace") if isinstance(key, bytes) else key for key in keys):
        name, _, file = key.rpartition("/")
        if file in _DRIVERS:
            kvstore = {**store, "path": f"{name}/" if merged else f"{folder.absolute()}/{name}/"}
            # Without this a chunk that is missing would be read as zeros.
            found[name] = {"driver": _DRIVERS[file], "kvstore": kvstore, "fill_missing_data_reads": False}
    return found


def _files(folder: Path) -> list[str]:
    """The files of an item that is no database, but for those of the items below it; a name may hold slashes."""
    found = [file.relative_to(folder) for name in _DRIVERS for file in folder.rglob(name)]
    return [str(file) for file in found if not any((folder / one / "_METADATA").is_file() for one in file.parents[:-1])]


def _finite(found: Mapping[str, dict[str, Any]], tensorstore: Any, context: Any) -> dict[str, tuple[Layout, float]]:
    """The arrays in which a quick look found every number and nothing but finite ones, with the sum of their squares.

    It is NaN where chunks reach beyond the array.
    """
    layouts: dict[str, Layout] = {}
    squares: dict[str, float] = {}
    doubtful: set[str] = set()
    taking = Lock()

    def chunks() -> Iterator[tuple[str, Any, Layout, str]]:
        for name, spec in found.items():
            plain = _plain(spec, tensorstore, context)
            if plain is not None:
                layouts[name] = plain[1]
                squares[name] = 0.0 if plain[1].is_filled else math.nan
                for key in plain[1].chunk_keys():
                    if name in doubtful:
                        break
                    yield name, *plain, key

    left = chunks()

    def work() -> None:
        buffer = memoryview(bytearray(LOOK_BYTES))
        while True:
            with taking:
                chunk = next(left, None)
            if chunk is None:
                return
            name, store, layout, key = chunk
            try:
                more = squares_of(store, layout, key, buffer)
                if math.isnan(more):
                    doubtful.add(name)
                with taking:
                    squares[name] += more
            except (ValueError, OSError, RuntimeError, TypeError):
                doubtful.add(name)  # TensorStore will say it in words; an older one cannot read a part of a value

    with ThreadPoolExecutor(workers := min(WORKERS, usable_cpus())) as pool:
        for one in [pool.submit(work) for _ in range(workers)]:
            one.result()
    return {name: (layout, squares[name]) for name, layout in layouts.items() if name not in doubtful}


def _plain(spec: Mapping[str, Any], tensorstore: Any, context: Any) -> tuple[Any, Layout] | None:
    """The store and the layout of an array of the plain kind; None for every other."""
    if spec["driver"] != "zarr":
        return None
    try:
        store = tensorstore.KvStore.open(spec["kvstore"], context=context).result()
        layout = layout_of(store.read(".zarray").result().value)
    except (ValueError, OSError, RuntimeError, TypeError):
        return None
    return None if layout is None else (store, layout)


def _array(name: str, spec: dict[str, Any], scan: Scan, tensorstore: Any, context: Any) -> None:
    try:
        array = tensorstore.open(spec, open=True, read=True, context=context).result()
        kind = array.dtype.name
        if not kind.startswith(("float", "bfloat", "complex")):
            if not kind.startswith(("int", "uint", "bool", "string", "ustring", "byte", "char", "json")):
                scan.incomplete(f"array {name} has type {kind}, which this version cannot read")
            return
        chunk = tuple(int(extent) for extent in array.chunk_layout.read_chunk.shape or ())
        width = array.dtype.numpy_dtype.itemsize
        if width * int(np.prod(chunk, dtype=np.float64)) > MAX_CHUNK_BYTES:
            scan.incomplete(
                f"array {name} has chunks of more than {MAX_CHUNK_BYTES >> 30} GiB, which would not fit into memory: "
                "save the checkpoint with chunk_byte_size"
            )
            return
        bad, squares = 0, 0.0
        for box in boxes(tuple(array.shape), chunk, max(1, BLOCK_BYTES // width)):
            block = np.asarray(array[box].read().result())
            more, added = look_bfloat16(block.view(np.uint16)) if kind == "bfloat16" else look(block)
            bad, squares = bad + more, squares + added
        scan.found(name, int(array.size), bad, squares, 8 * width)
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        # TensorStore's messages go on with the whole specification.
        scan.incomplete(f"array {name} cannot be read: {str(error).partition(' [')[0]}")


def boxes(shape: Sequence[int], chunk: Sequence[int], most: int) -> Iterator[tuple[slice, ...]]:
    """The array in boxes of whole chunks, each of at most `most` numbers or of one chunk.

    >>> [[(part.start, part.stop) for part in box] for box in boxes((5, 4), (2, 2), 8)]
    [[(0, 2), (0, 4)], [(2, 4), (0, 4)], [(4, 5), (0, 4)]]
    """
    box = [min(max(1, one), max(1, extent)) for one, extent in zip(chunk, shape, strict=True)]
    for axis in reversed(range(len(box))):
        others = int(np.prod(box, dtype=np.int64)) // box[axis]
        chunks = max(1, most // max(1, others * box[axis]))
        box[axis] = min(box[axis] * chunks, max(1, shape[axis]))
    starts = [range(0, extent, step) for extent, step in zip(shape, box, strict=True)]
    for corner in itertools.product(*starts):
        yield tuple(slice(at, min(at + step, extent)) for at, step, extent in zip(corner, box, shape, strict=True))
