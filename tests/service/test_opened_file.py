"""A SQLite file that is deleted or replaced under the service: nothing is acknowledged that would be gone with it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from chunk_trainer import chunks, frames
from services import Clock, run, service
from test_ingest_laws import serially, state


def deleted(path: Path, aside: Path) -> None:
    path.rename(aside)


def replaced(path: Path, aside: Path) -> None:
    path.rename(aside)
    shutil.copy(aside, path)


@pytest.mark.parametrize("happens", [deleted, replaced])
def test_nothing_is_taken_until_the_file_is_back(tmp_path: Path, happens: Callable[[Path, Path], None]) -> None:
    path, aside = tmp_path / "x.db", tmp_path / "aside.db"
    data = chunks(frames(1, 192), stop="finished")
    expected = run(serially(f"sqlite:///{tmp_path / 'serial.db'}", data))

    async def story() -> None:
        async with service(f"sqlite:///{path}", Clock()) as one:
            await one.put_all(data[:3])
            happens(path, aside)
            for _ in range(3):
                answer = await one.put(data[3])
                assert answer.status_code == 503
                assert f"{path} was {happens.__name__} while the service had it open" in answer.json()["detail"]
                assert answer.headers["retry-after"] == "2"
            assert (await one.client.get("/readyz")).status_code == 503
            aside.rename(path)
            await one.put_all(data[3:])
            assert (await one.client.get("/readyz")).status_code == 200
            assert await state(one) == expected

    run(story())
