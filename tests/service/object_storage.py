"""A real S3 endpoint on loopback (moto's server), and a proxy before it that does what a network does."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Fault = Callable[[str, str], str | None]
"""From method and path to what happens: None (nothing), `500`, `hang up`, `truncate` or `swallow` (no answer)."""


SIGNED = "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"


class Proxy:
    """Forwards to the endpoint, or does not.

    Args:
        target: the endpoint's URL.
        signs: put what moto takes for a signature in the place of another provider's token.

    Attributes:
        fault: what happens to requests from now on.
        seen: method and path of every request.
        released: set to let go of requests that get no answer.
    """

    def __init__(self, target: str, *, signs: bool = False) -> None:
        self.fault: Fault = lambda method, path: None
        self.seen: list[tuple[str, str]] = []
        self.released = threading.Event()
        address, proxy = urlsplit(target).netloc, self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                proxy.seen.append((self.command, self.path))
                what = proxy.fault(self.command, self.path)
                if what == "swallow":
                    proxy.released.wait()
                if what in ("hang up", "swallow"):
                    self.close_connection = True
                    return
                if what == "500":
                    status, headers, content = 500, {}, b"<html>hello</html>"
                else:
                    connection = http.client.HTTPConnection(address, timeout=60)
                    given = {k.lower(): v for k, v in self.headers.items()} | (
                        {"authorization": SIGNED} if signs else {}
                    )
                    connection.request(self.command, self.path, body, given)
                    reply = connection.getresponse()
                    status, headers, content = reply.status, dict(reply.getheaders()), reply.read()
                    connection.close()
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                        self.send_header(name, value)
                self.send_header("content-length", headers.get("Content-Length", str(len(content))))
                self.end_headers()
                if what == "truncate":
                    content, self.close_connection = content[: len(content) // 2], True
                self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def s3_endpoint() -> Iterator[str]:
    """moto's server with the bucket `lossguard`; its URL."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        connection = http.client.HTTPConnection(host, port, timeout=60)
        connection.request("PUT", "/lossguard")
        assert connection.getresponse().status == 200
        connection.close()
        yield f"http://{host}:{port}"
    finally:
        server.stop()
