"""Bytes that are compressed already are no longer compressed a second time by PostgreSQL.

Revision 0010. PostgreSQL tries `pglz` on every value above 2 KB: half of its CPU time for a chunk, and nothing gained
on bytes that Zstandard has made (docs/decisions/0407-no-second-compression.md). EXTERNAL keeps the bytes out of line
as they are. It holds for what is written from now on and rewrites nothing, so it takes no time and code of before
works on. SQLite never compresses.
"""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

COLUMNS = (("chunk_bytes", "data"), ("segment_parts", "data"), ("pyramid", "data"), ("detector_states", "state"))


def upgrade() -> None:
    _store("EXTERNAL")


def downgrade() -> None:
    _store("EXTENDED")


def _store(how: str) -> None:
    if op.get_bind().dialect.name == "postgresql":
        for table, column in COLUMNS:
            op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STORAGE {how}")
