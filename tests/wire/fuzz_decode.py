"""Fuzzes `decode` with forged chunks behind a valid checksum: `python tests/wire/fuzz_decode.py --seconds 60`.

Every worker is a process of its own, so that a crash of the codec is seen and its input kept; buffers handed to the
codec end at an unreadable page where the operating system allows it. Exit code 1 if a worker died or memory leaked into
a decoded array.
"""

import argparse
import ctypes
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import blosc2
import numpy as np

from lossguard.wire import chunk as wire
from lossguard.wire.chunk import ChunkError

ROOM = 1 << 20
WORKER_SECONDS = 20.0


def guarded_buffer() -> int:
    """The address at which an unreadable page begins, with `ROOM` bytes before it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    start = libc.mmap(None, ROOM + 4096, 3, 0x22, -1, 0)
    assert libc.mprotect(start + ROOM, 4096, 0) == 0
    return int(start + ROOM)


def before(end: int, size: int) -> np.ndarray:
    return np.ctypeslib.as_array(ctypes.cast(end - size, ctypes.POINTER(ctypes.c_uint8)), (size,))


def originals(rng: np.random.Generator) -> list[tuple[bytes, np.dtype, int]]:
    arrays = []
    for _ in range(6):
        n = int(rng.integers(1, 40_000))
        arrays += [
            np.arange(n),
            rng.normal(size=n).astype("f4"),
            np.zeros(n, "f4"),
            rng.normal(size=n),
            wire.round_mantissa(rng.lognormal(size=n).astype("f4"), 10),
            np.full(n, np.nan, "f4"),
        ]
    return [(wire._pack(array), array.dtype, array.size) for array in arrays]


def mutated(rng: random.Random, section: bytes, decoded: int) -> bytes:
    data = bytearray(section)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at = rng.randrange(len(data) if rng.random() < 0.5 else min(len(data), 64))
        kind = rng.randrange(5)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.randrange(256)
        elif kind == 2:
            number = rng.choice([0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, len(data), rng.randrange(1 << 32)])
            data[at : at + 4] = number.to_bytes(4, "little")
        elif kind == 3:
            source = rng.randrange(len(data))
            data[at : at + 8] = data[source : source + 8]
        else:
            data = data[: max(at, 33)] if rng.random() < 0.5 else data + rng.randbytes(rng.randrange(64))
    data += bytes(max(0, 32 - len(data)))
    data[4:8] = decoded.to_bytes(4, "little")
    data[12:16] = len(data).to_bytes(4, "little")
    return bytes(data)


def work(seed: int, case: Path) -> None:
    rng = random.Random(seed)
    sections = originals(np.random.default_rng(seed))
    source_end, target_end = guarded_buffer(), guarded_buffer()
    real, outcomes = blosc2.decompress2, Counter[str]()
    fill = 0

    def at_the_edge(data: bytes, dst: np.ndarray, nthreads: int) -> None:
        source, target = before(source_end, len(data)), before(target_end, dst.nbytes)
        source[:] = np.frombuffer(data, np.uint8)
        target[:] = fill
        real(source, dst=target, nthreads=nthreads)
        dst.reshape(-1).view(np.uint8)[:] = target

    blosc2.decompress2 = at_the_edge
    until = time.monotonic() + WORKER_SECONDS
    while time.monotonic() < until:
        original, dtype, count = rng.choice(sections)
        section = mutated(rng, original, count * dtype.itemsize)
        if len(section) > ROOM or count * dtype.itemsize > ROOM:
            continue
        case.write_bytes(section)
        try:
            answers = []
            for fill in (0xA5, 0x5A):  # noqa: B007 - read by `at_the_edge`
                answers.append(wire._unpack(section, dtype, (count,)).tobytes())
        except ChunkError as error:
            outcomes["refused by Blosc2" if "does not decompress" in str(error) else "refused at the gate"] += 1
        else:
            outcomes["decoded" if answers[0] == answers[1] else "LEAKED MEMORY"] += 1
    print(f"seed {seed}: {dict(outcomes)}", flush=True)
    sys.exit(1 if outcomes["LEAKED MEMORY"] else 0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--worker", type=Path)
    options = parser.parse_args()
    if options.worker:
        work(options.seed, options.worker)
    until, failed = time.monotonic() + options.seconds, 0
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < until:
            case = Path(folder) / f"case-{options.seed}"
            command = [sys.executable, __file__, "--worker", str(case), "--seed", str(options.seed)]
            code = subprocess.run(command, check=False).returncode
            if code:
                failed += 1
                kept = Path(f"fuzz-{options.seed}.section")
                kept.write_bytes(case.read_bytes())
                print(f"seed {options.seed}: ended with {code}, input kept in {kept}")
            options.seed += 1
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
