"""Stats of which some are noise come back, and nothing else gets in."""

import numpy as np
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lossguard.wire import stats_section
from lossguard.wire.arrays import ArrayError, compress, pack
from lossguard.wire.rounding import round_mantissa
from lossguard.wire.stats_section import pack_stats, unpack_stats

KINDS = {
    "noise": lambda random, shape: random.lognormal(0, 2, shape),
    "signed noise": lambda random, shape: random.normal(size=shape) * 10.0 ** random.integers(-30, 30, shape),
    "count": lambda random, shape: random.integers(0, 3, shape),
    "constant": lambda random, shape: np.full(shape, random.normal()),
    "slow": lambda random, shape: 5 + 1e-4 * np.cumsum(random.normal(size=shape), axis=0),
    "few bits": lambda random, shape: round_mantissa(random.lognormal(0, 2, shape).astype("f4"), 8),
    "odd": lambda random, shape: np.where(random.random(shape) < 0.01, np.nan, random.lognormal(size=shape)),
    "infinite": lambda random, shape: np.where(random.random(shape) < 0.01, -np.inf, random.lognormal(size=shape)),
    "largest": lambda random, shape: np.where(random.random(shape) < 0.01, np.finfo("f4").max, random.random(shape)),
}


@pytest.fixture(autouse=True)
def _few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats_section, "NOISE_FROM", 256)


def made(kinds: list[str], frames: int, layers: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    with np.errstate(over="ignore"):
        return np.stack([KINDS[kind](random, (frames, layers)) for kind in kinds], axis=2).astype(np.float32)


def packed(stats: np.ndarray, bits: int) -> memoryview:
    return memoryview(b"".join(pack_stats(stats, bits)))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=9),
    st.integers(1, 40),
    st.integers(1, 30),
    st.integers(0, 99),
    st.integers(1, 23),
)
@example(["noise"] * 9, 40, 30, 0, 10)
@example(["noise", "count", "noise", "constant"], 33, 29, 0, 10)
@example(["few bits", "few bits"], 33, 29, 0, 10)
@example(["few bits", "slow"], 33, 29, 0, 23)
@example(["signed noise", "slow", "noise"], 33, 29, 0, 7)
def test_what_comes_back_is_what_was_rounded(kinds: list[str], frames: int, layers: int, seed: int, bits: int) -> None:
    stats = made(kinds, frames, layers, seed)
    before = stats.tobytes()
    found = unpack_stats(packed(stats, bits), (len(kinds), layers, frames))
    assert found.tobytes() == round_mantissa(np.ascontiguousarray(stats.transpose(2, 1, 0)), bits).tobytes()
    assert stats.tobytes() == before
    assert bytes(packed(found.transpose(2, 1, 0), bits)) == bytes(packed(stats, bits)), "packing again changes nothing"


def test_noise_is_known_from_what_is_not() -> None:
    kinds = ["noise", "signed noise", "count", "constant", "slow"]
    data = packed(made(kinds, 64, 40, 0), 10)
    assert data[0] == 255
    assert np.unpackbits(np.frombuffer(data[3:4], np.uint8), count=5).tolist() == [1, 1, 0, 0, 0]


def test_a_section_is_as_specified() -> None:
    stats = made(["slow", "noise"], 31, 21, 3)
    n = 31 * 21
    words = round_mantissa(np.ascontiguousarray(stats.transpose(2, 1, 0)), 10).view(np.uint32).reshape(2, n)
    data = packed(stats, 10)
    assert data[:4].tolist() == [255, 3, 3, 0b01000000]
    assert data[4 : 4 + n] == (words[1] >> 16).astype(np.uint8).tobytes()
    low = np.zeros(-(-n // 8) * 8, np.uint8)
    low[:n] = words[1] >> 8
    eighth = len(low) // 8
    pairs = [
        sum(int(low[i + place * 2 * eighth] >> 6) << 6 - 2 * place for place in range(4)) for i in range(2 * eighth)
    ]
    singles = np.packbits(low >> 5 & 1).tolist()
    end = 4 + n + 3 * eighth
    assert data[4 + n : end].tolist() == pairs + singles
    planes = [words[0] >> 24, words[1] >> 24, words[0] >> 16, words[0] >> 8]
    assert zstandard.decompress(data[end:]) == b"".join(plane.astype(np.uint8).tobytes() for plane in planes)


@pytest.mark.parametrize("bits", range(1, 8))
def test_the_bits_below_come_back(bits: int) -> None:
    for count in (1, 7, 8, 9, 200):
        plane = np.random.default_rng(bits).integers(0, 256, count, np.uint8) & np.uint8(0xFF << 8 - bits & 0xFF)
        data = b"".join(stats_section._pack_bits(plane.copy(), bits))
        assert len(data) == bits * -(-count // 8)
        assert stats_section._unpack_bits(memoryview(data), bits, count).tolist() == plane.tolist()


NOISE = bytes(np.random.default_rng(1).integers(0, 256, 6, np.uint8))
GOOD = bytes([255, 1, 0, 0x80]) + NOISE + compress(bytes(12))


def test_sections_that_are_none_are_refused() -> None:
    shape = (2, 3, 2)
    found = unpack_stats(memoryview(GOOD), shape).view(np.uint32)
    assert found.reshape(2, 6).tolist() == [[byte << 16 for byte in NOISE], [0] * 6]
    for bad in (
        GOOD[:1],
        GOOD[:3],
        GOOD[:4],
        GOOD[:9],
        GOOD[:10],
        GOOD[:-1],
        GOOD + b"x",
        GOOD[:1] + b"\0" + GOOD[2:],
        GOOD[:1] + b"\5" + GOOD[2:],
        GOOD[:1] + b"\2" + GOOD[2:],
        GOOD[:2] + b"\1" + GOOD[3:],
        GOOD[:2] + b"\x08" + GOOD[3:],
        GOOD[:3] + b"\0" + GOOD[4:],
        GOOD[:3] + b"\xc0" + GOOD[4:],
        GOOD[:10] + compress(bytes(13)),
        GOOD[:10] + compress(bytes(1 << 28)),
        GOOD[:10] + pack(np.ones(12, "u1")),
    ):
        with pytest.raises(ArrayError):
            unpack_stats(memoryview(bad), shape)
    for empty in ((0, 3, 2), (2, 0, 2), (2, 3, 0)):
        with pytest.raises(ArrayError):
            unpack_stats(memoryview(GOOD), empty)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 23))
def test_other_bytes_end_in_stats_or_an_error(data: st.DataObject, bits: int) -> None:
    kinds = data.draw(st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=5))
    forged = bytearray(packed(made([*kinds, "noise"], 20, 20, 5), bits))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(forged)) | st.integers(0, 8))
        forged[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    shape = (len(kinds) + 1, 20, 20)
    try:
        found = unpack_stats(memoryview(bytes(forged)), shape)
    except ArrayError:
        return
    assert found.shape == shape
    assert found.dtype == np.float32
