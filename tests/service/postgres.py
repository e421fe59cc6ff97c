"""Statements that the service itself would never run."""

import asyncio

import sqlalchemy as sa


def psql(url: sa.URL, statement: str) -> None:
    """Run one statement outside any transaction."""

    async def run() -> None:
        import asyncpg

        connection = await asyncpg.connect(
            user=url.username, host=str(url.query["host"]), database=url.database or "postgres"
        )
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run())
