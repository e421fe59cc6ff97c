"""Connections to one service, kept open between requests, each used by one thread at a time.

Guarantees. A request ends in an answer or in an `OSError`; no answer longer than `MAX_ANSWER_BYTES` is read. Requests
are PUTs that may be sent twice, so one that fails on a connection from before, which the service may have closed in
the meantime, is tried once more on a new one. The proxies of the environment (`HTTPS_PROXY`, `NO_PROXY`) are used.

The odd choice: the standard library makes the connections and reads unusual answers, the usual ones are read by
`lossguard.sidecar.exchange` (docs/decisions/0305-http-by-the-standard-library.md, 0306-requests-by-hand.md).
"""

import base64
import http.client
import ssl
from collections import deque
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from lossguard.sidecar.exchange import Answer, receive, send

MAX_ANSWER_BYTES: Final = 1 << 20
CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 30.0


class Connections:
    """Sends PUTs; safe from several threads.

    Args:
        service: the service's URL, checked.
        headers: sent with every request; printable ASCII.
        trust: for https; what certificates are checked against.

    Raises:
        ValueError: the environment names a proxy that this cannot use.
    """

    def __init__(self, service: str, headers: dict[str, str], trust: ssl.SSLContext | None = None) -> None:
        self._service = urlsplit(service)
        self._trust = trust
        self._idle: deque[http.client.HTTPConnection] = deque()
        self._closed = False
        self._proxy = _proxy(self._service)
        self._before, host = self._service.path, _host(self._service)
        if self._proxy is not None and self._service.scheme == "http":
            self._before = f"http://{host}{self._before}"
            headers = headers | _authorization(self._proxy)
        fixed = {"host": host, "accept-encoding": "identity", **headers}
        self._head = "".join(f"{name}: {value}\r\n" for name, value in fixed.items())

    def put(self, path: str, body: bytes, content_type: str) -> Answer:
        """Send a PUT to the service's path, which begins with a slash and is quoted where it must be.

        Raises:
            OSError: no answer came; nothing is known about what the service did.
        """
        head = (
            f"PUT {self._before}{path} HTTP/1.1\r\n{self._head}"
            f"content-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode("ascii")
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            try:
                return self._put(connection, head, body)
            except TimeoutError:
                raise
            except OSError:
                continue
        return self._put(self._connect(), head, body)

    def _put(self, connection: http.client.HTTPConnection, head: bytes, body: bytes) -> Answer:
        try:
            send(connection.sock, head, body)
            found, stays = receive(connection.sock, MAX_ANSWER_BYTES)
        except (http.client.HTTPException, ValueError) as error:
            connection.close()
            raise ConnectionError(str(error) or type(error).__name__) from error
        except BaseException:
            connection.close()
            raise
        if stays:
            self._idle.append(connection)
            if self._closed:
                self.close()
        else:
            connection.close()
        return found

    def _connect(self) -> http.client.HTTPConnection:
        to = self._service if self._proxy is None else self._proxy
        is_tls = self._service.scheme == "https"
        host, port = to.hostname or "", to.port or (443 if to is self._service and is_tls else 80)
        if is_tls:
            secure = http.client.HTTPSConnection(host, port, timeout=CONNECT_SECONDS, context=self._trust)
            connection: http.client.HTTPConnection = secure
            if self._proxy is not None:
                secure.set_tunnel(self._service.hostname or "", self._service.port or 443, _authorization(self._proxy))
        else:
            connection = http.client.HTTPConnection(host, port, timeout=CONNECT_SECONDS)
        try:
            connection.connect()
        except http.client.HTTPException as error:
            connection.close()
            raise ConnectionError(str(error) or type(error).__name__) from error
        except BaseException:
            connection.close()
            raise
        connection.sock.settimeout(ANSWER_SECONDS)
        return connection

    def close(self) -> None:
        """Close what is not in use; what is in use closes with its answer."""
        self._closed = True
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            connection.close()


def _host(service: SplitResult) -> str:
    name = service.hostname or ""
    name = f"[{name}]" if ":" in name else name.encode("idna").decode()
    usual = {"http": 80, "https": 443}[service.scheme]
    return name if service.port in (None, usual) else f"{name}:{service.port}"


def _proxy(service: SplitResult) -> SplitResult | None:
    proxies = getproxies_environment()
    named = proxies.get(service.scheme) or proxies.get("all")
    if not named or proxy_bypass(service.hostname or ""):
        return None
    proxy = urlsplit(named if "://" in named else f"http://{named}")
    if proxy.scheme != "http" or not proxy.hostname:
        raise ValueError(
            f"the environment's proxy for {service.scheme} must begin with http://, got a {proxy.scheme} one: change "
            f"it, or name {service.hostname} in NO_PROXY"
        )
    return proxy


def _authorization(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    secret = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"proxy-authorization": "Basic " + base64.b64encode(secret.encode()).decode()}
