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
    assert admin.main(["token", "list", "--format", "json", "--database", sqlite_url]) == 0
    (token,) = json.loads(capsys.readouterr().out)["tokens"]
    assert (token["name"], token["scopes"], token["project"]) == ("trainer", ["ingest", "read"], "video")
    assert secret not in json.dumps(token)
    assert admin.main(["token", "revoke", token["id"], "--database", sqlite_url]) == 0
    assert admin.main(["token", "revoke", token["id"], "--database", sqlite_url]) == 1
    assert "no valid token" in capsys.readouterr().err


def test_who_made_and_revoked_a_token_stands_in_the_audit_log(
    sqlite_url: str, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    made = ["token", "create", "--name", "ops", "--scope", "admin", "--format", "json", "--database", sqlite_url]
    assert admin.main(made) == 0
    document = json.loads(capsys.readouterr().out)
    header = {"authorization": f"Bearer {document['secret']}"}

    async def story() -> list[dict[str, object]]:
        async with service(sqlite_url) as one:
            body = {"name": "trainer", "scopes": ["ingest"], "project": "video", "seconds": 60.0}
            answer = await one.client.post("/v1/tokens", json=body, headers=header)
            assert answer.status_code == 201, answer.text
            trainer = answer.json()
            assert trainer["secret"].startswith("lg_")
            found = (await one.client.get("/v1/tokens", headers=header)).json()["tokens"]
            assert {token["name"] for token in found} == {"ops", "trainer"}
            assert "secret" not in found[0]
            for wanted in (204, 404):
                gone = await one.client.delete(f"/v1/tokens/{trainer['id']}", headers=header)
                assert gone.status_code == wanted, gone.text
            last = await one.client.delete(f"/v1/tokens/{document['token']['id']}", headers=header)
            assert last.status_code == 422
            assert "make another one first" in last.json()["detail"]
            return (await one.client.get("/v1/audit", headers=header)).json()["entries"]

    entries = run(story())
    assert [(one["kind"], one["project"], one["document"]["name"]) for one in entries] == [
        ("token_created", None, "ops"), ("token_created", "video", "trainer"), ("token_revoked", "video", "trainer")
    ]  # fmt: skip
    assert str(entries[0]["actor"]).endswith("command line)")
    assert entries[1]["actor"] == f"token ops ({document['token']['id']})"
    assert document["secret"] not in json.dumps(entries)


def test_the_first_token_over_http_must_be_one_for_admins(sqlite_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with service(sqlite_url, clock) as one:
            for body in ({"scopes": ["read"]}, {"scopes": ["admin"], "project": "video"}):
                answer = await one.client.post("/v1/tokens", json={"name": "x", **body})
                assert answer.status_code == 422
                assert "the first token" in answer.json()["detail"]
            assert (await one.client.get("/v1/tokens")).json() == {"tokens": []}

    run(story())


def test_every_command_prints_one_document_for_programs(
    sqlite_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(code: int, *arguments: str) -> dict[str, object]:
        assert admin.main([*arguments, "--format", "json", "--database", sqlite_url]) == code
        document: dict[str, object] = json.loads(capsys.readouterr().out)
        return document

    assert "there is no database" in str(ask(2, "db", "backup", str(tmp_path / "copy.db"))["error"])
    first = ask(0, "db", "upgrade")
    assert first["before"] is None
    assert ask(0, "db", "upgrade") == {"schema": first["schema"], "before": first["schema"]}
    assert "--project" in str(ask(2, "token", "create", "--name", "x", "--scope", "read", "--project", "a/b")["error"])
    assert "--days" in str(ask(2, "token", "create", "--name", "x", "--scope", "read", "--days", "-1")["error"])
    assert "no valid token" in str(ask(1, "token", "revoke", "x")["error"])
    copied = ask(0, "db", "backup", str(tmp_path / "copy.db"))
    assert copied["bytes"] == (tmp_path / "copy.db").stat().st_size
    assert "exists" in str(ask(2, "db", "restore", str(tmp_path / "copy.db"))["error"])


def test_a_list_for_people_says_which_tokens_count(sqlite_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert admin.main(["token", "list", "--database", sqlite_url]) == 0
    assert "everybody on this machine" in capsys.readouterr().out
    admin.main(["token", "create", "--name", "[bold]x", "--scope", "read", "--days", "1", "--database", sqlite_url])
    capsys.readouterr()
    assert admin.main(["token", "list", "--database", sqlite_url]) == 0
    shown = capsys.readouterr().out
    assert "[bold]x" in shown
    assert "until " in shown


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
            await back_up(url, copy)
            await rest
            with pytest.raises(BackupError, match="exists: name a file"):
                await back_up(url, copy)

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
        async with service(postgres_url, clock):
            with pytest.raises(BackupError, match="pg_dump"):
                await back_up(postgres_url, tmp_path / "x")

    run(story())
    with pytest.raises(BackupError, match="pg_restore"):
        restore(tmp_path / "x", postgres_url)
