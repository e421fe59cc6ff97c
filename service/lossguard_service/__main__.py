"""`python -m lossguard_service`: listens, then serves until a signal. What stops it from starting is one sentence.

Exit codes: 0 after a signal, 2 if it cannot start as asked.
"""

import argparse
import gc
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from pydantic import SecretStr, ValidationError

from lossguard_service import gathered
from lossguard_service.addressed import Addressed
from lossguard_service.app import create_app
from lossguard_service.memory import share_arenas
from lossguard_service.settings import Settings, is_loopback
from lossguard_service.store.database import DatabaseUrlError, open_database
from lossguard_service.store.migrate import migrate
from lossguard_service.store.objects import BytesUrlError
from lossguard_service.store.tokens import list_tokens


class Unstartable(Exception):
    """The service cannot start as asked; the message says what to change."""


class Server(uvicorn.Server):
    """Says where it listens, once it does.

    Attributes:
        url: where.
        told: called when it listens and has said so.
    """

    def __init__(self, config: uvicorn.Config, url: str, address_file: Path | None) -> None:
        super().__init__(config)
        self.url = url
        self._address_file = address_file
        self.told: Callable[[], None] = lambda: None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take a signal as the wish to stop; having stopped is success, so it is not raised once more at the end."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then tell."""
        await super().startup(sockets)
        if not self.started:
            return
        if self._address_file is not None:
            # Whoever waits for the file must never read half of it.
            draft = self._address_file.with_name(self._address_file.name + ".part")
            draft.write_text(self.url + "\n")
            os.replace(draft, self._address_file)
        print(f"Lossguard listens on {self.url}", flush=True)
        self.told()


def settle() -> None:
    """Leave out of later garbage collections what starting has made and stays: each would look through it for 90 ms."""
    gc.collect()
    gc.freeze()


def main(arguments: list[str] | None = None) -> int:
    """Run the service; returns the exit code."""
    share_arenas()
    try:
        settings = Settings(**_options(arguments))
        server, listener = prepare(settings)
    except ValidationError as error:
        for one in error.errors():
            print(f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}", file=sys.stderr)
        return 2
    except (Unstartable, DatabaseUrlError, BytesUrlError) as error:
        print(error, file=sys.stderr)
        return 2
    server.told = settle
    with listener:
        server.run(sockets=[listener])
    return 0 if server.started else 2


def prepare(settings: Settings) -> tuple[Server, socket.socket]:
    """A server and the socket that it will listen on.

    Raises:
        Unstartable: the address is taken or not ours, or it is open to others and no token is set.
        DatabaseUrlError, BytesUrlError: see there.
    """
    app = create_app(settings)
    if not is_loopback(settings.host) and settings.admin_token is None and not has_tokens(settings):
        raise Unstartable(
            f"{settings.host} can be reached by others and no token is set: set LOSSGUARD_ADMIN_TOKEN, create a token "
            "with `lossguard token create`, or listen on 127.0.0.1"
        )
    listener = bind(settings.host, settings.port)
    address, port = listener.getsockname()[:2]
    url = f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
    allowed = frozenset((settings.allowed_hosts or "").lower().split())
    addressed = Addressed(app, app.state.guard.needs_tokens, allowed) if is_loopback(settings.host) else app
    config = uvicorn.Config(
        addressed, http=gathered.protocol(), log_level=settings.log_level, access_log=False, server_header=False
    )
    return Server(config, url, settings.address_file), listener


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address, not listening yet.

    Raises:
        Unstartable: it is taken, or not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
    except OSError as error:
        listener.close()
        raise Unstartable(
            f"cannot listen on {host} port {port} ({error.strerror or error}): stop what uses it, or choose another "
            "with --port (0 picks a free one)"
        ) from None
    return listener


def has_tokens(settings: Settings) -> bool:
    """True if the database holds a token that is not revoked."""
    import asyncio

    async def look() -> bool:
        database = open_database(settings.database, connections=1)
        try:
            await migrate(database)
            return any(token.revoked is None for token in await list_tokens(database))
        finally:
            await database.close()

    return asyncio.run(look())


def _options(arguments: list[str] | None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="lossguard serve",
        description="Run the Lossguard service. Every setting can also come from the environment: LOSSGUARD_PORT for "
        "--port, and so on; secrets only from there: " + ", ".join(_secrets()) + ".",
        epilog="Example: lossguard serve --port 8080 --database postgresql://lossguard@db/lossguard",
    )
    for name, field in Settings.model_fields.items():
        if f"LOSSGUARD_{name.upper()}" in _secrets():
            continue  # an argument can be read by everybody on the machine
        shown = f"{field.description} Default: {field.default}." if field.default is not None else field.description
        parser.add_argument(
            "--" + name.replace("_", "-"), default=argparse.SUPPRESS, help=(shown or "").replace("%", "%%")
        )
    return vars(parser.parse_args(arguments))


def _secrets() -> list[str]:
    fields = Settings.model_fields.items()
    return [f"LOSSGUARD_{name.upper()}" for name, field in fields if field.annotation == SecretStr | None]


if __name__ == "__main__":
    sys.exit(main())
