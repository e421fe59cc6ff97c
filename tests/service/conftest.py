"""Databases: SQLite in a folder of its own, and a real PostgreSQL; object storage: a folder, and a real S3 endpoint."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from object_storage import Proxy, s3_endpoint
from postgres import psql
from services import Clock
from sqlalchemy.engine import make_url

from lossguard_service.store import bytes as bytes_module
from lossguard_service.store import objects
from postgres_cluster import cluster


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a private PostgreSQL cluster on a Unix socket."""
    folder = Path(tempfile.mkdtemp(prefix="lossguard-pg-"))
    try:
        server = cluster(folder)
        try:
            yield server.get_uri()
        finally:
            server.cleanup()
    finally:
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


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of a real S3 endpoint with the bucket `lossguard`."""
    pytest.importorskip("moto.server", reason='pip install "moto[server]"')
    with s3_endpoint() as url:
        yield url


@pytest.fixture
def s3_environment(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment in which a service finds the endpoint, as AWS's own tools would; the endpoint's URL."""
    for name, value in (
        ("AWS_ENDPOINT_URL", s3_server),
        ("AWS_ACCESS_KEY_ID", "testing"),
        ("AWS_SECRET_ACCESS_KEY", "testing"),
        ("AWS_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
def s3_url() -> str:
    """A part of the bucket that is this test's own."""
    return f"s3://lossguard/{uuid4().hex}"


@pytest.fixture
def folder_url(tmp_path: Path) -> str:
    """A folder of this machine as an object store."""
    return f"file://{tmp_path / 'objects'}"


@pytest.fixture
def proxy(s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Between the service and a real S3 endpoint; requests are tried once, and not for long."""
    between = Proxy(s3_environment)
    monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
    monkeypatch.setattr(objects, "RETRIES", 0)
    try:
        yield between
    finally:
        between.close()


@pytest.fixture
def all_in_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small chunks of tests are worth an object each."""
    monkeypatch.setattr(bytes_module, "LEAST_BYTES", 0)


@pytest.fixture(params=["sqlite", "postgresql", "sqlite, bytes in a folder", "postgresql, bytes in S3"])
def stored_url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The laws of what is stored hold wherever it is; the service finds the object store by its environment."""
    if request.param.endswith("in a folder"):
        monkeypatch.setenv("LOSSGUARD_BYTES_URL", f"file://{tmp_path / 'objects'}")
    elif request.param.endswith("in S3"):
        request.getfixturevalue("s3_environment")
        monkeypatch.setenv("LOSSGUARD_BYTES_URL", f"s3://lossguard/{uuid4().hex}")
    if "bytes" in request.param:
        request.getfixturevalue("all_in_objects")
    if request.param.startswith("sqlite"):
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
