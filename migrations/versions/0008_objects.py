"""Bytes in object storage: where they are, what is to be deleted there, and which folder is ours.

Revision 0008. The columns may be empty, so code of before goes on writing bytes into rows. It cannot read rows whose
bytes are elsewhere: set `bytes_url` when all replicas have this version.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
NUMBER: sa.types.TypeEngine[float] = sa.Double().with_variant(sa.REAL(), "sqlite")
TABLES = ("chunk_bytes", "segment_parts", "pyramid")


def upgrade() -> None:
    for table in TABLES:
        op.add_column(table, sa.Column("object", sa.Text()))
    op.create_table(
        "doomed_objects",
        sa.Column("run_id", BIG, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("first_index", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("objects", sa.Text(), nullable=False),
        sa.Column("since", NUMBER, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_doomed_objects_run_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "attempt", "first_index", "kind", name="pk_doomed_objects"),
    )
    op.create_index("ix_doomed_objects_since", "doomed_objects", ["since"])
    op.create_table(
        "object_folders",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("swept", NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_object_folders"),
    )


def downgrade() -> None:
    op.drop_table("object_folders")
    op.drop_table("doomed_objects")
    for name in TABLES:
        with op.batch_alter_table(name) as table:
            table.drop_column("object")
