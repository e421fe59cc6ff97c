"""Arrays as bytes."""

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from lossguard.wire.arrays import ArrayError, pack, unpack

DTYPES = st.sampled_from([np.dtype(name) for name in ("<f4", "<f8", "<i8", "<u4", "<u2", "u1")])
ARRAYS = npst.arrays(DTYPES, npst.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=20))


@given(ARRAYS)
def test_unpacking_gives_back_every_bit(array: np.ndarray) -> None:
    found = unpack(pack(array), array.dtype, array.shape)
    assert found.tobytes() == array.tobytes()
    assert (found.dtype, found.shape) == (array.dtype, array.shape)


@given(
    st.one_of(ARRAYS, npst.arrays(np.dtype("<f4"), st.integers(3000, 40_000), elements=st.floats(width=32), fill=None))
)
def test_the_planes_are_as_specified(array: np.ndarray) -> None:
    data = pack(array)
    if not array.size:
        assert data == b""
        return
    whole = array.reshape(-1).view(np.uint8).reshape(-1, array.dtype.itemsize)[:, ::-1].T
    planes = b"".join(plane.tobytes() for plane in whole[: data[0]])
    assert not whole[data[0] :].any()
    assert not data[0] or whole[data[0] - 1].any()
    assert (data[1:] if len(planes) <= 64 else zstandard.decompress(data[1:])) == planes


def test_planes_with_their_own_blocks_take_fewer_bytes_than_one_block_of_all() -> None:
    random = np.random.default_rng(0)
    words = random.lognormal(size=20_000).astype(np.float32).view(np.uint32) & np.uint32(0xFFFFE000)
    planes = [(words >> np.uint32(shift)).astype(np.uint8) for shift in (24, 16, 8)]
    assert len(pack(words)) < 0.95 * len(zstandard.compress(np.concatenate(planes).tobytes(), 1))


@given(npst.arrays(np.dtype("<u4"), 50), st.integers(0, 32))
def test_empty_low_planes_cost_nothing_and_come_back(array: np.ndarray, zeros: int) -> None:
    array &= np.uint32(0xFFFFFFFF << zeros & 0xFFFFFFFF)
    data = pack(array)
    assert data[0] <= max(0, 4 - zeros // 8)
    assert np.array_equal(unpack(data, array.dtype, array.shape), array)


def test_zeros_are_one_byte() -> None:
    assert pack(np.zeros(100_000)) == b"\0"


def test_negative_zero_is_not_zero() -> None:
    assert np.signbit(unpack(pack(np.array([-0.0, 0.0])), np.dtype("<f8"), (2,))).tolist() == [True, False]


def test_an_array_of_any_memory_order_is_packed_in_its_own_order() -> None:
    array = np.arange(12.0).reshape(3, 4)
    assert pack(array.T) == pack(np.ascontiguousarray(array.T))


@given(ARRAYS, st.data())
def test_other_bytes_end_in_an_array_or_an_error(array: np.ndarray, data: st.DataObject) -> None:
    forged = bytearray(pack(array))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(forged)))
        forged[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    try:
        found = unpack(bytes(forged), array.dtype, array.shape)
    except ArrayError:
        return
    assert found.shape == array.shape


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x04",
        b"\x05" + zstandard.compress(bytes(500)),
        b"\x01" + zstandard.compress(bytes(99)),
        b"\x01" + zstandard.compress(bytes(100)) + b"x",
        b"\x01" + zstandard.compress(bytes(100))[:-1],
        b"\x01" + zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100)),
        b"\x01" + zstandard.compress(bytes(1 << 30)),
        b"\x00" + zstandard.compress(bytes(100)),
    ],
    ids=["nothing", "no frame", "too many planes", "short", "more", "cut", "size unknown", "bomb", "zeros and more"],
)
def test_a_lie_has_a_name(data: bytes) -> None:
    with pytest.raises(ArrayError):
        unpack(data, np.dtype("<f4"), (100,))
