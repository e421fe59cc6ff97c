"""What the service writes within one turn of its event loop leaves in one piece, whoever closes what."""

import asyncio
import socket
from typing import cast
from urllib.parse import urlsplit

import pytest
from services import Uvicorn, run

from lossguard_service.gathered import HELD_BYTES, Gathering
from lossguard_service.settings import Settings


class Wire(asyncio.Transport):
    """Where a connection's transport would stand: what it sends in one piece cannot be seen at the other end."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.pieces.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        """Nothing is read."""

    def resume_reading(self) -> None:
        """Nothing is read."""

    def get_write_buffer_size(self) -> int:
        return 7


def story(*, close: bool = False, lost: bool = False, writes: tuple[bytes, ...] = (b"head", b"body")) -> Wire:
    wire = Wire()

    async def go() -> None:
        gathering = Gathering(wire, asyncio.get_running_loop())
        for data in writes:
            gathering.write(data)
        assert gathering.get_write_buffer_size() == 7
        wire.closed = lost
        if close:
            gathering.close()
            assert wire.closed
        await asyncio.sleep(0)

    run(go())
    return wire


def test_head_and_body_leave_together_at_the_end_of_the_turn() -> None:
    assert story().pieces == [b"headbody"]


def test_closing_sends_first_what_is_held() -> None:
    assert story(close=True).pieces == [b"headbody"]


def test_nothing_is_sent_on_a_connection_that_is_lost() -> None:
    assert story(lost=True).pieces == []


def test_a_long_answer_leaves_in_pieces_so_that_flow_control_sees_it() -> None:
    part = b"x" * (HELD_BYTES // 2)
    assert [len(piece) for piece in story(writes=(part,) * 7).pieces] == [3 * len(part), 3 * len(part), len(part)]


@pytest.mark.parametrize("ends", ["keep-alive", "close"])
def test_an_answer_arrives_whole_over_a_real_socket_and_the_next_one_after_it(sqlite_url: str, ends: str) -> None:
    with Uvicorn(Settings(database=sqlite_url, port=0, log_level="warning")) as server:
        where = urlsplit(server.url)
        with socket.create_connection((cast("str", where.hostname), cast("int", where.port)), 60) as client:
            request = f"GET /healthz HTTP/1.1\r\nhost: {where.netloc}\r\nconnection: {ends}\r\n\r\n".encode()
            for _ in range(1 if ends == "close" else 3):
                client.sendall(request)
                assert client.recv(65_536).endswith(b"\r\n\r\nok\n")
            if ends == "close":
                assert client.recv(1) == b""
