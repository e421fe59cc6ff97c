"""PostgreSQL: transactions in a greenlet on the event loop over asyncpg; see `lossguard_service.store.database`.

What is one statement goes without SQLAlchemy, BEGIN and COMMIT, on connections of its own. A connection of the pool is
tried before each use; those are not: when one is lost, the ordinary way opens another one, or finds the words for what
is wrong.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from sqlalchemy.engine import URL, Connection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from lossguard_service.store.bytes import BYTES_OPTION, ByteStore
from lossguard_service.store.glances import Glances, NoGlance
from lossguard_service.store.hot import Guarded, Hot

T = TypeVar("T")
GLANCES: Final = 2
"""A glance takes less than a millisecond; two connections let one go while the other waits."""
_POSTGRES: Final = {"server_settings": {"application_name": "lossguard", "jit": "off"}}


class PostgresDatabase:
    """PostgreSQL through asyncpg; see `lossguard_service.store.database`."""

    name = "postgresql"
    is_far = True

    def __init__(self, url: URL, *, connections: int = 8, bytes: ByteStore) -> None:
        self.bytes = bytes
        self.engine: AsyncEngine = create_async_engine(
            url.set(drivername="postgresql+asyncpg"),
            pool_size=connections,
            max_overflow=0,
            pool_pre_ping=True,
            execution_options={BYTES_OPTION: bytes},
            connect_args=_POSTGRES,
        )
        options = {**self.engine.dialect.create_connect_args(self.engine.url)[1], **_POSTGRES}
        self._glances, self._alone = Glances(options, GLANCES), Glances(options, connections)

    async def read(self, function: Callable[[Connection], T]) -> T:
        """See `Database`."""
        async with self.engine.connect() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            return await connection.run_sync(function)

    async def glance(self, select: Hot, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """See `Database`; without BEGIN and ROLLBACK, each of which would be a way there and back."""
        try:
            return await self._glances.rows(*select.plain(self.engine.dialect, values))
        except NoGlance:
            pass
        async with self.engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            return await connection.run_sync(lambda one: select.run(one, values))

    async def write(self, function: Callable[[Connection], T]) -> T:
        """See `Database`."""
        return await asyncio.shield(self._write(function))

    async def _write(self, function: Callable[[Connection], T]) -> T:
        async with self.engine.begin() as connection:
            return await connection.run_sync(function)

    async def at_once(
        self, guarded: Guarded, values: Mapping[str, Any], size: int, *, together: bool = False
    ) -> bool | None:
        """See `Database`."""
        try:
            # A caller that goes away must not cut off a statement that may already be under way.
            return bool(await asyncio.shield(self._alone.rows(*guarded.one.plain(self.engine.dialect, values))))
        except NoGlance:
            return None

    async def close(self) -> None:
        """See `Database`."""
        await self._glances.close()
        await self._alone.close()
        await self.engine.dispose()
