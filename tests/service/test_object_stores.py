"""The object stores themselves: what they give back, and which URLs name one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from object_storage import Proxy
from services import Uvicorn, run

from lossguard.cli.doctor import of_service
from lossguard_service.settings import Settings
from lossguard_service.store.bytes import BytesLost, ByteStore, BytesUnavailable
from lossguard_service.store.objects import BytesUrlError, open_objects


@pytest.fixture
def google_url(s3_environment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Google's client before moto: it speaks the XML API that Google's store has in common with S3."""
    between = Proxy(s3_environment, signs=True)
    account = {"gcs_base_url": between.url, "disable_oauth": True}
    file = tmp_path / "account.json"
    file.write_text(json.dumps(account | dict.fromkeys(("client_email", "private_key", "private_key_id"), "")))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(file))
    try:
        yield f"gs://lossguard/{uuid4().hex}"
    finally:
        between.close()


def test_a_store_gives_back_what_was_put_and_nothing_else(
    s3_environment: str, s3_url: str, folder_url: str, google_url: str
) -> None:
    async def story() -> None:
        for url in (s3_url, folder_url, google_url):
            store = open_objects(url)
            await store.put("a/b", b"0123456789")
            await store.put("a/c", b"")
            assert await store.get("a/b") == [b"0123456789"]
            assert await store.get("a/b", [(0, 2), (8, 2), (3, 0)]) == [b"01", b"89", b""]
            assert await store.get("a/c") == [b""]
            for key, ranges in (("a/none", None), ("a/none", [(0, 1)]), ("a/b", [(8, 5)])):
                with pytest.raises(BytesLost):
                    await store.get(key, ranges)
            assert {one.key: one.size async for page in store.listed("a") for one in page} == {"a/b": 10, "a/c": 0}
            await store.delete(["a/none", "a/b", "a/c", "a/b"])
            assert [page async for page in store.listed("a") if page] == []

    run(story())


@pytest.mark.parametrize(
    ("url", "part", "place"),
    [("az://container/a/b", "container_name", "container"), ("gs://bucket/a/b", "bucket", "bucket")],
)
def test_container_or_bucket_come_first_in_the_url_and_the_account_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, url: str, part: str, place: str
) -> None:
    """Azure's laws were run by hand against Azurite."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    store = open_objects(url)._store
    assert (store.config[part], store.prefix) == (place, "a/b")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://host/bucket", "is no object store"),
        ("bucket", "is no object store"),
        ("s3:///folder", "names no bucket"),
        ("s3://key:secret@bucket/folder", "credentials come from"),
        ("s3://bucket/folder?secret=x", "credentials come from"),
        ("file://folder", "names no folder"),
        ("file:///", "names no folder"),
        ("file:///proc/version/x", "cannot be used"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_with_a_sentence(url: str, words: str) -> None:
    with pytest.raises(BytesUrlError, match=words) as raised:
        open_objects(url)
    assert "secret" not in str(raised.value)


@pytest.mark.usefixtures("all_in_objects")
def test_an_object_that_waited_too_long_is_not_named_any_more() -> None:
    now = [0.0]

    class Anywhere:
        async def put(self, key: str, data: bytes) -> None:
            pass

    async def story() -> None:
        store = ByteStore(Anywhere(), keep_seconds=100, clock=lambda: now[0])  # type: ignore[arg-type]
        kept = await store.keep("run", "name", b"bytes")
        now[0] = 49.0
        store.check(kept)
        now[0] = 51.0
        with pytest.raises(BytesUnavailable):
            store.check(kept)

    run(story())


def test_the_doctor_says_whether_the_object_store_answers(
    proxy: Proxy, sqlite_url: str, s3_url: str, tmp_path: Path
) -> None:
    def bytes_finding(**settings: Any) -> Any:
        with Uvicorn(Settings(database=sqlite_url, port=0, log_level="error", **settings)) as running:
            found = {one.name: one for one in of_service(running.url, None, None, lambda: 0.0)}
        assert found["database"].state == "ok"
        return found["bytes"]

    assert (bytes_finding().state, bytes_finding().seen) == ("ok", "in the database")
    there = bytes_finding(bytes_url=s3_url)
    assert (there.state, there.seen) == ("ok", "in an object store, which answers")
    proxy.fault = lambda method, path: "500"
    away = bytes_finding(bytes_url=s3_url)
    assert away.state == "error"
    assert "LOSSGUARD_BYTES_URL" in away.advice
