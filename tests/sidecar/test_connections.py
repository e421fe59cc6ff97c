"""Connections are kept, replaced where the service closed them, and go through the environment's proxy."""

import base64
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from lossguard.sidecar.client import Client, Failed
from lossguard.sidecar.connections import MAX_ANSWER_BYTES, Connections
from lossguard.wire.chunk import ChunkId

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Peer:
    """Answers each connection's requests with the bytes it was given, one after the other, then closes it."""

    def __init__(self, *connections: list[bytes]) -> None:
        self.heads: list[str] = []
        self.closed = threading.Semaphore(0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, args=(connections,))
        self._thread.start()

    def _serve(self, connections: tuple[list[bytes], ...]) -> None:
        for answers in connections:
            taken, _ = self._listener.accept()
            with taken, taken.makefile("rb") as file:
                for answer in answers:
                    head = b""
                    while not head.endswith(b"\r\n\r\n"):
                        head += file.readline()
                    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
                    file.read(length)
                    self.heads.append(head.decode())
                    with suppress(ConnectionError):  # who has read enough may hang up
                        taken.sendall(answer)
            self.closed.release()

    def close(self) -> None:
        self._thread.join()
        self._listener.close()


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def made() -> Iterator[list[Peer | Connections]]:
    things: list[Peer | Connections] = []
    yield things
    for thing in reversed(things):
        thing.close()


def test_a_connection_is_kept_and_one_that_the_service_closed_is_replaced(made: list[Peer | Connections]) -> None:
    peer = Peer([OK, OK], [OK])
    connections = Connections(f"http://{peer.address}/below", {"x-mine": "yes"})
    made += [peer, connections]
    for _ in range(2):
        assert connections.put("/a b".replace(" ", "%20"), b"body", "text/plain").content == b"ok"
    assert peer.closed.acquire(timeout=60)
    assert connections.put("/c", b"", "text/plain").status == 200
    assert [head.split(" ")[1] for head in peer.heads] == ["/below/a%20b", "/below/a%20b", "/below/c"]
    assert all("x-mine: yes" in head and "content-type: text/plain" in head for head in peer.heads)


def test_a_proxy_of_the_environment_is_used(made: list[Peer | Connections], monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Peer([OK])
    monkeypatch.setenv("http_proxy", f"http://us%65r:p%40ss@{peer.address}")
    connections = Connections("http://service.example:81", {})
    made += [peer, connections]
    assert connections.put("/v1", b"", "text/plain").status == 200
    assert peer.heads[0].startswith("PUT http://service.example:81/v1 HTTP/1.1")
    secret = base64.b64encode(b"user:p@ss").decode()
    assert f"proxy-authorization: Basic {secret}" in peer.heads[0]


def test_https_tunnels_through_a_proxy_that_may_refuse(
    made: list[Peer | Connections], monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    heads: list[bytes] = []

    def refuse() -> None:
        taken, _ = listener.accept()
        with taken:
            heads.append(taken.recv(4096))
            taken.sendall(b"HTTP/1.1 407 Who are you\r\ncontent-length: 0\r\n\r\n")

    thread = threading.Thread(target=refuse)
    thread.start()
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{listener.getsockname()[1]}")
    client = Client("https://service.example")
    outcome = client.put_chunk(ChunkId("p", "r", "a" * 32, 0), b"")
    thread.join()
    listener.close()
    client.close()
    assert heads[0].startswith(b"CONNECT service.example:443 ")
    assert isinstance(outcome, Failed)
    assert "407" in outcome.reason


def test_a_host_without_a_proxy_is_reached_directly(
    made: list[Peer | Connections], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = Peer([OK])
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    connections = Connections(f"http://{peer.address}", {})
    made += [peer, connections]
    assert connections.put("/v1", b"", "text/plain").status == 200


def test_a_proxy_of_another_kind_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:1080")
    with pytest.raises(ValueError, match="NO_PROXY"):
        Client("http://service.example")


@pytest.mark.parametrize("path", ["/a b", "/\r\nx: y", "/é"], ids=["space", "line", "not ASCII"])
def test_a_path_that_no_request_could_carry_is_refused_at_once(path: str) -> None:
    with pytest.raises(ValueError, match="service: "):
        Client(f"http://service.example{path}")


@pytest.mark.parametrize(
    "answer",
    [
        b"what?\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\ncut",
        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (MAX_ANSWER_BYTES + 1) + bytes(MAX_ANSWER_BYTES + 1),
        b"",
    ],
    ids=["not HTTP", "cut off", "endless", "nothing"],
)
def test_an_answer_that_is_none_is_a_failure(made: list[Peer | Connections], answer: bytes) -> None:
    peer = Peer([answer])
    made.append(peer)
    client = Client(f"http://{peer.address}")
    outcome = client.put_chunk(ChunkId("p", "r", "a" * 32, 0), b"")
    client.close()
    assert isinstance(outcome, Failed)
    assert outcome.reason
    assert len(outcome.reason) < 600
