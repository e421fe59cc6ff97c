"""A service on loopback that keeps the HTTP contract of chunks in memory, and can be told to misbehave."""

import json
import ssl
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any
from urllib.parse import unquote

from lossguard.wire.chunk import Chunk, ChunkError, decode
from lossguard.wire.replies import Advice, ChunkReply


@dataclass
class Answer:
    """What to answer in place of the truth. `stored` says whether the chunk is kept all the same."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    stored: bool = False


class LoopbackService:
    """Listens at once, or when `listen` is called; `url` says where."""

    def __init__(self, tls: ssl.SSLContext | None = None, *, listens: bool = True) -> None:
        self.stored: dict[tuple[str, str, str, int], bytes] = {}
        self.arrivals: list[tuple[str, str, str, int]] = []
        self.duplicates = 0
        self.conflicts = 0
        self.heartbeats: list[tuple[str, str, dict[str, Any]]] = []
        self.authorizations: set[str | None] = set()
        self.next_answers: deque[Answer] = deque()
        self.always: Callable[[tuple[str, str, str, int]], Answer | None] = lambda identity: None
        self.changed = threading.Condition()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status, answer, headers = service._put(self.path, body, self.headers)
                self.send_response(status)
                for name, value in {"content-length": str(len(answer)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a killed client is an ordinary event here

        # Bound from the first moment, so that nobody else gets the port; whoever connects before `listen` is refused.
        self._server = Server(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self._server.server_bind()
        self._closed = False
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        if listens:
            self.listen()

    def listen(self) -> None:
        """Answer from now on."""
        self._server.server_activate()
        self._thread.start()

    def _put(self, path: str, body: bytes, headers: Any) -> tuple[int, bytes, dict[str, str]]:
        parts = [unquote(part) for part in path.split("/")[1:]]
        with self.changed:
            self.authorizations.add(headers.get("authorization"))
            try:
                return self._put_locked(parts, body)
            finally:
                self.changed.notify_all()

    def _put_locked(self, parts: list[str], body: bytes) -> tuple[int, bytes, dict[str, str]]:
        if parts[-1] == "heartbeat":
            self.heartbeats.append((parts[2], parts[4], json.loads(body)))
            return 204, b"", {}
        assert parts[:2] == ["v1", "projects"], parts
        assert (parts[3], parts[5], parts[7]) == ("runs", "attempts", "chunks"), parts
        identity = (parts[2], parts[4], parts[6], int(parts[8]))
        self.arrivals.append(identity)
        lie = self.next_answers.popleft() if self.next_answers else self.always(identity)
        if lie is not None:
            if lie.stored:
                self.stored.setdefault(identity, body)
            return lie.status, lie.body, lie.headers
        try:
            found = decode(body).id
        except ChunkError as error:
            return _problem(422, str(error))
        if (found.project, found.run, found.attempt, found.index) != identity:
            return _problem(422, "the chunk's identity is not the URL's")
        known = self.stored.get(identity)
        if known is not None and known != body:
            self.conflicts += 1
            return _problem(409, "a different chunk has this identity")
        self.duplicates += known is not None
        self.stored[identity] = body
        missing = next(index for index in count() if (*identity[:3], index) not in self.stored)
        reply = ChunkReply(known is not None, 1, missing, None, "healthy", Advice("continue", None, ""))
        return 200, json.dumps(reply.to_json()).encode(), {"content-type": "application/json"}

    def wait_for(self, fact: Callable[[], bool], timeout_seconds: float = 30.0) -> None:
        with self.changed:
            assert self.changed.wait_for(fact, timeout_seconds), "the service waited in vain"

    def chunks(self, run: str) -> dict[str, list[Chunk]]:
        """Stored chunks of a run by attempt, in the order of their indices."""
        found: dict[str, list[Chunk]] = {}
        with self.changed:
            for (_, name, attempt, _), body in sorted(self.stored.items(), key=lambda item: item[0]):
                if name == run:
                    found.setdefault(attempt, []).append(decode(body))
        return found

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._thread.ident is not None:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def _problem(status: int, detail: str) -> tuple[int, bytes, dict[str, str]]:
    return (
        status,
        json.dumps({"status": status, "detail": detail}).encode(),
        {"content-type": "application/problem+json"},
    )
