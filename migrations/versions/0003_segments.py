"""Segments and the pyramid: chunks' bytes laid out by series.

Revision 0003.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
NUMBER: sa.types.TypeEngine[float] = sa.Double().with_variant(sa.REAL(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "segments",
        sa.Column("run_id", BIG, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("first_index", sa.Integer(), nullable=False),
        sa.Column("next_index", sa.Integer(), nullable=False),
        sa.Column("first_step", sa.BigInteger(), nullable=False),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.Column("frames", sa.Integer(), nullable=False),
        sa.Column("schema", sa.Integer(), nullable=False),
        sa.Column("is_full", sa.Boolean(), nullable=False),
        sa.Column("created", NUMBER, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_segments_run_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "attempt", "first_index", name="pk_segments"),
        sqlite_with_rowid=False,
    )
    for name in ("segment_parts", "pyramid"):
        op.create_table(
            name,
            sa.Column("run_id", BIG, nullable=False),
            sa.Column("attempt", sa.Integer(), nullable=False),
            sa.Column("first_index", sa.Integer(), nullable=False),
            sa.Column("part", sa.Integer(), nullable=False),
            sa.Column("data", sa.LargeBinary(), nullable=False),
            sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=f"fk_{name}_run_id", ondelete="CASCADE"),
            sa.PrimaryKeyConstraint("run_id", "attempt", "first_index", "part", name=f"pk_{name}"),
        )
