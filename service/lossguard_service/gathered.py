"""Answers that leave in one piece: what is written within one turn of the event loop is sent by one system call.

uvicorn writes the head of an answer and its body one after the other, and uvloop sends each at once: two packets, for
each of which the client wakes up. Of a small request that was a quarter of both sides' CPU (docs/decisions/
0417-fewer-turns-for-a-chunk.md). Long answers go out in pieces as before, so that flow control sees them.
"""

import asyncio
from typing import Any, Final, cast

from uvicorn.config import HTTPProtocolType

HELD_BYTES: Final = 65_536
"""More is sent without waiting for the turn's end."""


class Gathering:
    """A transport that gathers what is written; all else is the transport's own.

    Args:
        transport: a connection's.
        loop: whose turns count.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self._size = 0
        # Asked for at each request, so without the way through `__getattr__`.
        self.is_closing = transport.is_closing
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading

    def __getattr__(self, name: str) -> Any:
        """What is not gathered is the transport's."""
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send at the end of this turn."""
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(data)
        self._size += len(data)
        if self._size > HELD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send what is held."""
        held, self._held, self._size = self._held, [], 0
        if held and not self._transport.is_closing():
            self._transport.write(held[0] if len(held) == 1 else b"".join(held))

    def close(self) -> None:
        """Send what is held, then close."""
        self.flush()
        self._transport.close()


def protocol() -> type[asyncio.Protocol] | HTTPProtocolType:
    """What uvicorn shall speak HTTP with: its own way where httptools is not installed."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return "auto"

    class GatheringProtocol(HttpToolsProtocol):
        """uvicorn's, over a transport that gathers."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            """See `asyncio.Protocol`."""
            super().connection_made(cast("asyncio.Transport", Gathering(transport, self.loop)))

    return GatheringProtocol
