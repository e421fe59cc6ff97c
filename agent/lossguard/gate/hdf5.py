"""Scans Keras's `.keras` and `.weights.h5` files; h5py, which reads them, comes with Keras.

Guarantees. Bounded memory. Every number that a reader of the file could meet is read or the scan says that it is not
complete: a link out of the file, a dataset whose bytes lie in another one, a type that NumPy does not know, two parts
of an archive under one name.
"""

import io
import os
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from lossguard.gate.findings import BLOCK_BYTES, Scan, look, look_bfloat16


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
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        weights = [one for one in archive.infolist() if one.filename.lower().endswith(".weights.h5")]
        others = [one for one in archive.namelist() if one.lower().endswith((".h5", ".hdf5", ".npz"))]
        if len(others) > len(weights):
            scan.incomplete(
                f"{path.name} holds weights that are not looked through: save the model again as weights.h5"
            )
        if not weights:
            scan.incomplete(f"{path.name} holds no weights")
        if len(set(archive.namelist())) < len(archive.infolist()):
            scan.incomplete(f"{path.name} holds two parts of the same name, and readers differ in which they take")
        for info in weights:
            with archive.open(info) as member, h5py.File(_stored(file, info) or member, "r") as part:
                _group(part, "", scan, h5py)


def _stored(file: IO[bytes], info: zipfile.ZipInfo) -> "_Part | None":
    """The part's bytes as they lie in the archive, where they are not compressed, as Keras writes them."""
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        return None
    # Behind the local header, whose name and extra field may be longer than the directory's.
    name, extra = struct.unpack("<2H", os.pread(file.fileno(), 30, info.header_offset)[26:])
    return _Part(file.fileno(), info.header_offset + 30 + name + extra, info.file_size)


class _Part(io.RawIOBase):
    """Some bytes of an open file as a file; `zipfile` hands out the same at a sixth of the speed."""

    def __init__(self, descriptor: int, start: int, size: int) -> None:
        self._descriptor = descriptor
        self._start = start
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._at)]
        count = os.preadv(self._descriptor, [view], self._start + self._at)
        self._at += count
        return count


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
            _dataset(item, name, scan, h5py)


def _dataset(item: Any, name: str, scan: Scan, h5py: Any) -> None:
    if item.is_virtual or item.external:
        scan.incomplete(
            f"the numbers of {name} lie in another file: save the model again, with its weights in one file"
        )
        return
    if item.dtype.kind == "V" and item.dtype.itemsize == 2 and item.attrs.get("dtype") == "bfloat16":
        see = _bfloat16  # as Keras writes it: two bytes that HDF5 knows nothing of
    elif item.dtype.kind in "fc":
        see = look
    else:
        if item.dtype.kind not in "iubSU" and h5py.check_string_dtype(item.dtype) is None:
            scan.incomplete(f"tensor {name} has type {item.dtype}, which this version cannot read")
        return
    bad, squares = 0, 0.0
    if item.ndim == 0:
        bad, squares = see(np.asarray(item[()]))
    else:
        row_bytes = max(1, item.dtype.itemsize * int(np.prod(item.shape[1:], dtype=np.int64)))
        rows = max(1, BLOCK_BYTES // row_bytes)
        for first in range(0, item.shape[0], rows):
            more, added = see(item[first : first + rows])
            bad, squares = bad + more, squares + added
    scan.found(name, int(item.size), bad, squares, 8 * item.dtype.itemsize)


def _bfloat16(values: Any) -> tuple[int, float]:
    return look_bfloat16(np.ascontiguousarray(values).view(np.uint16))
