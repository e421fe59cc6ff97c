"""Scans Keras's `.keras` and `.weights.h5` files; h5py, which reads them, comes with Keras.

Guarantees. Bounded memory. Every number that a reader of the file could meet is read or the scan says that it is not
complete: a link out of the file, a dataset whose bytes lie in another one, a type that NumPy does not know.
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from lossguard.gate.findings import BLOCK_BYTES, Scan, count_nonfinite


def scan_hdf5(path: Path, scan: Scan) -> None:
    """Read every tensor of the file.

    Raises:
        OSError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile: the file is none that can be read.
    """
    try:
        import h5py
    except ImportError:
        scan.incomplete(f"{path.name} cannot be read without h5py: pip install h5py, or export a SavedModel")
        return
    if path.suffix != ".keras":
        with h5py.File(path, "r") as file:
            _group(file, "", scan, h5py)
        return
    with zipfile.ZipFile(path) as archive:
        weights = [name for name in archive.namelist() if name.endswith(".weights.h5")]
        if not weights:
            scan.incomplete(f"{path.name} holds no weights")
        for name in weights:
            with archive.open(name) as member, h5py.File(member, "r") as file:
                _group(file, "", scan, h5py)


def _group(group: Any, prefix: str, scan: Scan, h5py: Any) -> None:
    for key in group:
        name = f"{prefix}{key}"
        link = group.get(key, getlink=True)
        if not isinstance(link, h5py.HardLink):
            # What lies behind it may be outside of the file, and then it is not among the bytes that are judged.
            target = getattr(link, "filename", "another place of the file")
            scan.incomplete(f"{name} is a link to {target}: save the model again, with its weights in one file")
            continue
        item = group[key]
        if isinstance(item, h5py.Group):
            _group(item, f"{name}/", scan, h5py)
        elif isinstance(item, h5py.Dataset):
            _dataset(item, name, scan)


def _dataset(item: Any, name: str, scan: Scan) -> None:
    if item.is_virtual or item.external:
        scan.incomplete(
            f"the numbers of {name} lie in another file: save the model again, with its weights in one file"
        )
        return
    if item.dtype.kind not in "fc":
        if item.dtype.kind not in "iubSOU":
            scan.incomplete(f"tensor {name} has type {item.dtype}, which this version cannot read")
        return
    bad = 0
    if item.ndim == 0:
        bad = count_nonfinite(np.asarray(item[()]))
    else:
        row_bytes = max(1, item.dtype.itemsize * int(np.prod(item.shape[1:], dtype=np.int64)))
        rows = max(1, BLOCK_BYTES // row_bytes)
        for first in range(0, item.shape[0], rows):
            bad += count_nonfinite(item[first : first + rows])
    scan.found(name, int(item.size), bad)
