"""A few connections to PostgreSQL for single statements that come again and again, without SQLAlchemy between.

Guarantees. Each statement is a transaction by itself and sees what is committed when it begins. A connection that
failed is given up; the caller then goes the ordinary way, which opens another one and finds the words for what is
wrong. Why: a question to the gate that is asked again takes 83 us of CPU so, and 361 through SQLAlchemy's pool; for
what is written so see docs/decisions/0409-a-chunk-in-one-statement.md.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import asyncpg  # type: ignore[import-untyped]


class NoGlance(Exception):
    """The statement or its connection failed; whether what it writes was written, nobody knows."""


class Glances:
    """The connections; opened when they are first needed.

    Args:
        options: how to reach the database, as `asyncpg.connect` takes it.
        connections: at most so many at once.
    """

    def __init__(self, options: Mapping[str, Any], connections: int) -> None:
        self._options = options
        self._free: list[Any] = []
        self._turns = asyncio.Semaphore(connections)

    async def rows(self, statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """The rows of one statement.

        Raises:
            NoGlance: see there.
        """
        async with self._turns:
            connection = None
            try:
                connection = self._free.pop() if self._free else await asyncpg.connect(**self._options)
                found = [tuple(row) for row in await connection.fetch(statement, *values)]
            except BaseException as error:
                if connection is not None:
                    connection.terminate()
                # InternalClientError: asyncpg, where the connection is cut in the moment in which a statement begins.
                known = asyncpg.PostgresError | asyncpg.InterfaceError | asyncpg.InternalClientError | OSError
                if isinstance(error, known):
                    raise NoGlance from error
                raise
            self._free.append(connection)
            return found

    async def close(self) -> None:
        """Close what is open."""
        while self._free:
            await self._free.pop().close(timeout=5)
