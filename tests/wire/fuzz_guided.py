"""Fuzzes `decode` guided by coverage: `pip install atheris && python tests/wire/fuzz_guided.py -max_total_time=60`.

The checksum is made right before each try, or nothing behind it would ever be reached. Takes libFuzzer's options; ends
with 0 if every input ended in a chunk or in a `ChunkError`, else libFuzzer keeps the input in `crash-*`.
"""

import sys

import atheris

with atheris.instrument_imports(include=["lossguard.wire"]):
    from chunks import with_valid_crc

    from lossguard.wire.chunk import ChunkError, decode, encode, outline

MAX_BYTES = 8 << 20
"""Of decoded arrays: a try that may allocate 256 MiB is slow and finds nothing else."""


def once(data: bytes) -> None:
    """One try: what decodes must encode again, and its outline must agree."""
    forged = with_valid_crc(data) if len(data) >= 16 else data
    try:
        found = decode(forged, max_decoded_bytes=MAX_BYTES)
    except ChunkError:
        return
    encode(found, mantissa_bits=23)
    about = outline(forged)
    assert (about.id, about.frames) == (found.id, len(found.frames))


if __name__ == "__main__":
    atheris.Setup(sys.argv, once)
    atheris.Fuzz()
