"""Folders and names of a journal.

<directory>/<project>/<run>/<attempt>/
    00000001.journal, 00000002.journal, ...   segments (`lossguard.journal.segment`)
    lock                                      flocked by the trainer as long as it lives; holds the last step that it
                                              handed over, in ASCII, with spaces before it to BEAT_BYTES
    shipped.json                              the shipper's place: everything before it is acknowledged
    rejected/<index>.chunk, .json             what the service refused, with its reason
<directory>/<project>/<run>/workers/<rank>.heartbeat  signs of life of the other workers (`lossguard.journal.heartbeat`)
<directory>/<project>/<run>/.new-<attempt>/   an attempt that is being made
<directory>/<project>/<run>/.shipping         flocked by whoever ships the run
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from lossguard.journal.segment import read_header

LOCK_NAME: Final = "lock"
BEAT_BYTES: Final = 20
CURSOR_NAME: Final = "shipped.json"
REJECTED_NAME: Final = "rejected"
SHIPPING_NAME: Final = ".shipping"

_ATTEMPT = re.compile(r"[0-9a-f]{32}")
_SEGMENT = re.compile(r"(\d{8})\.journal")


def segment_name(number: int) -> str:
    """The file name of the attempt's n-th segment."""
    return f"{number:08d}.journal"


def segments(folder: Path) -> list[tuple[int, Path]]:
    """The attempt's segments in their order."""
    found = []
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    for name in names:
        match = _SEGMENT.fullmatch(name)
        if match:
            found.append((int(match[1]), folder / name))
    return sorted(found)


def is_attempt_name(name: str) -> bool:
    """True for 32 hex digits."""
    return _ATTEMPT.fullmatch(name) is not None


def attempt_folders(run_folder: Path) -> list[Path]:
    """The run's attempts, in no order."""
    try:
        return [Path(entry.path) for entry in os.scandir(run_folder) if is_attempt_name(entry.name)]
    except FileNotFoundError:
        return []


def order_of(folder: Path) -> tuple[int, float]:
    """Where the attempt stands among its run's: (order, start), (0, 0) as long as nothing was sealed."""
    for _, path in segments(folder):
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            header = read_header(file)
        finally:
            os.close(file)
        if header is not None:
            return header.order, header.started
    return 0, 0.0


def next_order(folders: Iterable[Path]) -> int:
    """The order of an attempt that begins now. A number, because clocks jump."""
    return 1 + max((order_of(folder)[0] for folder in folders), default=0)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below; files that vanish meanwhile count nothing."""
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(here, name)).st_size
            except FileNotFoundError:
                continue
    return total
