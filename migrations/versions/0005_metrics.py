"""Dropped frames by reason, and the indexes by which `/metrics` finds verdicts.

Revision 0005. What was dropped before is counted again from the chunks. Code of before does not know the table: what it
stores while both run is in the run's total and has no reason.
"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    dropped = op.create_table(
        "dropped",
        sa.Column("run_id", BIG, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("frames", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_dropped_run_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "reason", name="pk_dropped"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_verdicts_created", "verdicts", ["created"])
    op.create_index("ix_verdicts_project_outcome", "verdicts", ["project", "outcome"])
    found: dict[tuple[int, str], int] = {}
    chunks = sa.text(
        "SELECT chunks.run_id, chunks.drops FROM chunks JOIN runs ON runs.id = chunks.run_id "
        "WHERE runs.dropped_frames > 0 AND chunks.drops <> '{}'"
    )
    for run_id, drops in op.get_bind().execute(chunks):
        for reason, frames in json.loads(drops).items():
            key = run_id, reason[:64].replace("\x00", "�").encode("utf-8", "replace").decode()
            found[key] = found.get(key, 0) + frames
    rows = [{"run_id": run_id, "reason": reason, "frames": frames} for (run_id, reason), frames in found.items()]
    if rows:
        op.bulk_insert(dropped, rows)
