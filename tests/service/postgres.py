"""Statements that the service itself would never run."""

import sqlalchemy as sa
from services import run


def psql(url: sa.URL, statement: str) -> None:
    """Run one statement outside any transaction."""

    async def story() -> None:
        import asyncpg

        connection = await asyncpg.connect(
            user=url.username, host=str(url.query["host"]), database=url.database or "postgres"
        )
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    run(story())
