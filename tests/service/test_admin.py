"""`lossguard token` and `lossguard db` beside a running service."""

import asyncio
import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from chunk_trainer import chunks, frames
from services import Clock, run, service
from test_ingest_laws import state

from lossguard_service import admin
from lossguard_service.store.backup import BackupError, back_up, restore


def test_a_token_is_made_listed_and_revoked(sqlite_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = ["token", "create", "--name", "trainer", "--scope", "ingest", "--scope", "read", "--project", "video"]
    assert admin.main([*made, "--database", sqlite_url]) == 0
    secret = capsys.readouterr().out.strip()
    assert secret.startswith("lg_")
    assert admin.main(["token", "list", "--database", sqlite_url]) == 0
    (token,) = json.loads(capsys.readouterr().out)["tokens"]
    assert (token["name"], token["scopes"], token["project"]) == ("trainer", ["ingest", "read"], "video")
    assert secret not in json.dumps(token)
    assert admin.main(["token", "revoke", token["id"], "--database", sqlite_url]) == 0
    assert admin.main(["token", "revoke", token["id"], "--database", sqlite_url]) == 1
    assert "no valid token" in capsys.readouterr().err


def test_a_bad_database_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert admin.main(["db", "upgrade", "--database", "mysql://x/y"]) == 2
    assert "not supported" in capsys.readouterr().err


def test_a_backup_taken_under_writes_restores_to_a_whole_moment(tmp_path: Path, clock: Clock) -> None:
    url, copy = f"sqlite:///{tmp_path / 'a.db'}", tmp_path / "copy.db"
    data = chunks(frames(1, 640), size=8)

    async def story() -> None:
        async with service(url, clock) as one:
            for chunk in data[:40]:
                await one.put(chunk)
            rest = asyncio.gather(*(one.put(chunk) for chunk in data[40:]))
            await back_up(one.app.state.database, copy)
            await rest
            with pytest.raises(BackupError, match="exists: name a file"):
                await back_up(one.app.state.database, copy)

    run(story())
    place = restore(copy, f"sqlite:///{tmp_path / 'b' / 'lossguard.db'}")

    async def look() -> None:
        async with service(f"sqlite:///{place}", clock) as one:
            document = (await state(one))["run"]
            assert document["last_step"] == document["judged_step"]
            assert document["last_step"] % 8 == 0
            assert 320 <= document["last_step"] <= 640
            # What the backup does not have is sent again, as after any loss of acknowledgements.
            for chunk in data:
                assert (await one.put(chunk)).status_code == 200
            assert (await one.get("/v1/projects/video/runs/ranker"))["judged_step"] == 640

    run(look())


def test_a_restore_overwrites_nothing_and_takes_no_rubbish(sqlite_url: str, tmp_path: Path) -> None:
    rubbish, other = tmp_path / "rubbish", tmp_path / "other.db"
    rubbish.write_bytes(b"not a database at all" * 1000)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE x (y)")
    connection.close()
    for file, words in (
        (rubbish, "cannot be copied"),
        (other, "not a Lossguard database"),
        (tmp_path / "no", "not a file"),
    ):
        with pytest.raises(BackupError, match=words):
            restore(file, sqlite_url)
    (tmp_path / "lossguard.db").write_bytes(b"precious")
    with pytest.raises(BackupError, match="move it away first"):
        restore(other, sqlite_url)
    assert (tmp_path / "lossguard.db").read_bytes() == b"precious"
    shutil.rmtree(tmp_path)


def test_postgresql_is_left_to_its_own_tools(postgres_url: str, tmp_path: Path, clock: Clock) -> None:
    async def story() -> None:
        async with service(postgres_url, clock) as one:
            with pytest.raises(BackupError, match="pg_dump"):
                await back_up(one.app.state.database, tmp_path / "x")

    run(story())
    with pytest.raises(BackupError, match="pg_restore"):
        restore(tmp_path / "x", postgres_url)
