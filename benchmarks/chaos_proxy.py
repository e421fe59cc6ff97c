"""A proxy that does to requests what a network and a tired service do; part of `benchmarks/chaos.py`."""

import http.client
import random
import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = ("500", "429", "garbage", "hang up", "slowly")


class Proxy:
    """Forwards to the service, or does what a network and a tired service do."""

    def __init__(self, target: str, chance: random.Random) -> None:
        self.badly = 0.0
        self.did: Counter[str] = Counter()
        address = urlsplit(target).netloc
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                what = chance.choice(FAULTS) if chance.random() < proxy.badly else "pass"
                proxy.did[what] += 1
                if what == "slowly":
                    time.sleep(chance.uniform(0.1, 1.0))
                if what in ("pass", "slowly", "hang up"):
                    try:
                        connection = http.client.HTTPConnection(address, timeout=20)
                        connection.request("PUT", self.path, body, dict(self.headers))
                        answer = connection.getresponse()
                        status, content = answer.status, answer.read()
                        connection.close()
                    except OSError:
                        status, content = 502, b""
                    if what == "hang up":
                        self.close_connection = True
                        self.connection.shutdown(socket.SHUT_RDWR)
                        return
                else:
                    status = {"500": 500, "429": 429, "garbage": 200}[what]
                    content = b"<html>hello</html>"
                self.send_response(status)
                if status == 429:
                    self.send_header("retry-after", "0")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
