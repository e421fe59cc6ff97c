"""Connections to one service, kept open between requests, each used by one thread at a time.

Guarantees. A request ends in an answer or in an `OSError`; no answer longer than `MAX_ANSWER_BYTES` is read. Requests
are PUTs that may be sent twice, so one that fails on a connection from before, which the service may have closed in
the meantime, is tried once more on a new one. The proxies of the environment (`HTTPS_PROXY`, `NO_PROXY`) are used.

The odd choice: the standard library and not httpx, which costs the trainer's machine three times the CPU a request
(docs/decisions/0305-http-by-the-standard-library.md).
"""

import base64
import http.client
import ssl
from collections import deque
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

MAX_ANSWER_BYTES: Final = 1 << 20
CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 30.0


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


class Connections:
    """Sends PUTs; safe from several threads.

    Args:
        service: the service's URL, checked.
        headers: sent with every request.
        trust: for https; what certificates are checked against.

    Raises:
        ValueError: the environment names a proxy that this cannot use.
    """

    def __init__(self, service: str, headers: dict[str, str], trust: ssl.SSLContext | None = None) -> None:
        self._service = urlsplit(service)
        self._headers = dict(headers)
        self._trust = trust
        self._idle: deque[http.client.HTTPConnection] = deque()
        self._proxy = _proxy(self._service)
        if self._proxy is not None and self._service.scheme == "http":
            self._headers |= _authorization(self._proxy)

    def put(self, path: str, body: bytes, content_type: str) -> Answer:
        """Send a PUT to the service's path, which begins with a slash.

        Raises:
            OSError: no answer came; nothing is known about what the service did.
        """
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            try:
                return self._put(connection, path, body, content_type)
            except TimeoutError:
                raise
            except OSError:
                continue
        return self._put(self._connect(), path, body, content_type)

    def _put(self, connection: http.client.HTTPConnection, path: str, body: bytes, content_type: str) -> Answer:
        try:
            target = self._service.path + path
            if self._proxy is not None and self._service.scheme == "http":
                target = f"http://{self._service.netloc}{target}"
            connection.request("PUT", target, body, self._headers | {"content-type": content_type})
            answer = connection.getresponse()
            content = answer.read(MAX_ANSWER_BYTES + 1)
            if len(content) > MAX_ANSWER_BYTES:
                raise ConnectionError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
            headers = {name.lower(): value for name, value in answer.getheaders()}
            found = Answer(answer.status, answer.reason, headers, content)
        except (http.client.HTTPException, ValueError) as error:
            connection.close()
            raise ConnectionError(str(error) or type(error).__name__) from error
        except BaseException:
            connection.close()
            raise
        if connection.sock is not None:  # None: the service asked for its end
            self._idle.append(connection)
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
        """Close what is not in use."""
        while self._idle:
            self._idle.pop().close()


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
