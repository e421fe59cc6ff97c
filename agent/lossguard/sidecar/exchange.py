"""One request out and its answer in, over a connected socket (RFC 9112, HTTP/1.1).

Guarantees. An exchange ends in an answer or in an error; no more than the stated number of bytes of an answer's body is
kept. The head and the body of a request leave in one system call. An answer whose head came whole, with a
content-length and nothing that needs more care, is read here; every other one, in pieces, of unstated length or without
one, is read by `http.client` from its first byte, which therefore decides what is HTTP.

The odd choice: twenty lines that read what one's own service sends. `http.client` parses headers as those of an e-mail,
which took half of a small request's CPU (docs/decisions/0306-requests-by-hand.md).
"""

import http.client
import io
import re
import socket
import ssl
from dataclasses import dataclass
from typing import Any, Final

_PIECE: Final = 65_536
_STATUS: Final = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9])(?: ([ -~]*))?")
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(rb"[\t -~]*")
_LENGTH: Final = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        status: the HTTP status.
        reason: its words.
        headers: names in lower case.
        content: the body.
    """

    status: int
    reason: str
    headers: dict[str, str]
    content: bytes


def send(to: socket.socket, head: bytes, body: bytes) -> None:
    """Send a request.

    Raises:
        OSError: not all of it could be sent.
    """
    if isinstance(to, ssl.SSLSocket):  # it has no way to gather
        to.sendall(head + body)
        return
    sent = to.sendmsg([head, body])
    if sent < len(head):
        to.sendall(head[sent:])
        sent = len(head)
    if sent < len(head) + len(body):
        to.sendall(memoryview(body)[sent - len(head) :])


def receive(source: socket.socket, most: int) -> tuple[Answer, bool]:
    """The answer, and whether the connection stays.

    Args:
        source: where a request was sent.
        most: the answer's body must not have more bytes.

    Raises:
        OSError: the connection ended early, or the body has more than `most` bytes.
        http.client.HTTPException: these bytes are no HTTP.
    """
    data = source.recv(_PIECE)
    end = data.find(b"\r\n\r\n")
    usual = _usual(data[:end]) if end > 0 else None
    if usual is None:
        return _unusual(source, data, most)
    status, reason, headers, length = usual
    if length > most:
        raise ConnectionError(f"an answer of {length} bytes, at most {most} are read")
    content = data[end + 4 :]
    stays = "close" not in headers.get("connection", "").lower() and len(content) <= length
    parts, missing = [content[:length]], length - len(content)
    while missing > 0:
        parts.append(source.recv(min(missing, _PIECE)))
        if not parts[-1]:
            raise ConnectionError(f"the answer ends {missing} bytes early")
        missing -= len(parts[-1])
    return Answer(status, reason, headers, b"".join(parts)), stays


def _usual(head: bytes) -> tuple[int, str, dict[str, str], int] | None:
    """Status, its words, headers and the body's length; None if this takes more than we know."""
    first, *lines = head.split(b"\r\n")
    began = _STATUS.fullmatch(first)
    if began is None:
        return None
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        key = name.decode("latin-1").lower()
        if not colon or key in headers or _NAME.fullmatch(name) is None or _VALUE.fullmatch(value) is None:
            return None
        headers[key] = value.decode().strip(" \t")
    status = int(began[1])
    length = "0" if status in (204, 304) else headers.get("content-length", "")
    if "transfer-encoding" in headers or not _LENGTH.fullmatch(length):
        return None
    return status, (began[2] or b"").decode(), headers, int(length)


class _Rest(io.RawIOBase):
    """What was read already, then what still comes. Closing it leaves the socket open."""

    def __init__(self, data: bytes, source: socket.socket) -> None:
        self._data = data
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        if not self._data:
            return self._source.recv_into(into)
        count = min(len(into), len(self._data))
        into[:count], self._data = self._data[:count], self._data[count:]
        return count

    def makefile(self, mode: str) -> io.BufferedReader:
        """What `http.client` asks of a socket."""
        return io.BufferedReader(self)


def _unusual(source: socket.socket, data: bytes, most: int) -> tuple[Answer, bool]:
    if not data:
        raise http.client.RemoteDisconnected("the connection was closed without an answer")
    answer = http.client.HTTPResponse(_Rest(data, source), method="PUT")  # type: ignore[arg-type]
    try:
        answer.begin()
        content = answer.read(most + 1)
        if len(content) <= most:
            content += answer.read(1)  # the end of the last chunk, if it came in chunks
        if len(content) > most:
            raise ConnectionError(f"an answer of more than {most} bytes")
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, answer.reason, headers, content), answer.isclosed() and not answer.will_close
    finally:
        answer.close()
