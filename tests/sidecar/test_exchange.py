"""Answers read by hand are what `http.client` reads, however they are cut, and requests leave whole."""

import http.client
import io
import itertools
import socket
import threading
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossguard.sidecar.exchange import Answer, receive, send

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n"


class Pieces:
    """A socket that hands its bytes out in given pieces, which no real one does on demand."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = [piece for piece in pieces if piece]

    def recv(self, most: int) -> bytes:
        piece = self._pieces.pop(0) if self._pieces else b""
        if len(piece) > most:
            self._pieces.insert(0, piece[most:])
        return piece[:most]

    def recv_into(self, into: memoryview) -> int:
        piece = self.recv(len(into))
        into[: len(piece)] = piece
        return len(piece)


def read(*pieces: bytes, most: int = 1000) -> tuple[Answer, bool]:
    return receive(cast(socket.socket, Pieces(*pieces)), most)


class _Whole:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def reference(data: bytes) -> Answer:
    answer = http.client.HTTPResponse(cast(Any, _Whole(data)), method="PUT")
    answer.begin()
    content = answer.read()
    return Answer(answer.status, answer.reason, {k.lower(): v for k, v in answer.getheaders()}, content)


NAMES = st.sampled_from(["Content-Type", "retry-after", "X-1", "date", "Connection", "vary"])
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=12).map(str.strip)
SPACES = st.sampled_from(["", " ", "  ", "\t"])


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    content = draw(st.binary(max_size=30))
    lines = [draw(st.sampled_from(["HTTP/1.1 200 OK", "HTTP/1.1 503 Not now", "HTTP/1.1 429", "HTTP/1.0 200 OK"]))]
    fields = draw(st.dictionaries(NAMES, VALUES, max_size=4))
    lines += [f"{name}:{draw(SPACES)}{value}{draw(SPACES)}" for name, value in fields.items()]
    how = draw(st.sampled_from(["length", "chunks", "end"]))
    if how == "length":
        lines.insert(draw(st.integers(1, len(lines))), f"Content-Length: {len(content)}")
    elif how == "chunks":
        lines.append("transfer-encoding: chunked")
        parts = [content[:7], content[7:]]
        content = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts if part) + b"0\r\n\r\n"
    before = draw(st.sampled_from(["", "HTTP/1.1 100 Continue\r\n\r\n"]))
    return (before + "\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + content


@given(answers(), st.lists(st.integers(0, 200), max_size=4))
def test_an_answer_is_what_the_standard_library_reads_however_it_is_cut(data: bytes, cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(places)]
    found, wanted = read(*pieces)[0], reference(data)
    # The standard library leaves the space behind a value; no header means it.
    assert {k: v.strip(" \t") for k, v in found.headers.items()} == {
        k: v.strip(" \t") for k, v in wanted.headers.items()
    }
    assert (found.status, found.reason, found.content) == (wanted.status, wanted.reason, wanted.content)


@given(st.binary(max_size=60), st.integers(0, 60))
def test_other_bytes_end_in_an_answer_or_an_error(data: bytes, cut: int) -> None:
    for bytes_ in (data, HEAD + data):
        try:
            found, _ = read(bytes_[:cut], bytes_[cut:])
        except (OSError, http.client.HTTPException, ValueError):
            continue
        assert len(found.content) <= 1000


@pytest.mark.parametrize(
    ("data", "stays"),
    [
        (HEAD + b"\r\nhello", True),
        (HEAD + b"Connection: Close\r\n\r\nhello", False),
        (HEAD + b"\r\nhello and more that nobody asked for", False),
        (b"HTTP/1.1 204 No Content\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello", False),
    ],
    ids=["length", "close", "too much", "nothing", "chunks", "until its end", "HTTP/1.0"],
)
def test_a_connection_stays_where_both_sides_know_where_the_answer_ends(data: bytes, stays: bool) -> None:
    assert read(data)[1] is stays


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"\r\nhell",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n" + bytes(1001),
        b"HTTP/1.1 200 OK\r\n\r\n" + bytes(1001),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3e9\r\n" + bytes(1001) + b"\r\n0\r\n\r\n",
        b"",
    ],
    ids=["cut", "too long", "endless", "endless chunks", "nothing"],
)
def test_an_answer_without_its_end_is_an_error(data: bytes) -> None:
    with pytest.raises(OSError, match=r"early|bytes|without"):
        read(data)


def test_a_header_of_spaces_alone_takes_no_time_worth_a_word() -> None:
    # A pattern that reads "spaces, value, spaces" tries every way to share them out: hours for these.
    assert read(HEAD[:-2] + b"\r\nx:" + b" " * 60_000 + b"\x80\r\n\r\nhello")[0].content == b"hello"


@pytest.mark.parametrize("size", [0, 10, 4_000_000])
def test_a_request_leaves_whole_through_a_socket_that_takes_little_at_once(size: int) -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    ours.settimeout(60)
    head, body = b"h" * 50_000, bytes(range(256)) * (size // 256)
    found = bytearray()

    def drain() -> None:
        while piece := theirs.recv(65_536):
            found.extend(piece)

    thread = threading.Thread(target=drain)
    thread.start()
    with ours, theirs:
        send(ours, head, body)
        ours.shutdown(socket.SHUT_WR)
        thread.join()
    assert bytes(found) == head + body
