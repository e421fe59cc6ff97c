"""The outbox of webhooks.

Revision 0004. Code of before does not know the table and is not disturbed by it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
NUMBER: sa.types.TypeEngine[float] = sa.Double().with_variant(sa.REAL(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "outbox",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("run_id", BIG, nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("destination", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("created", NUMBER, nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("not_before", NUMBER, nullable=False),
        sa.Column("done", NUMBER),
        sa.Column("outcome", sa.Text()),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_outbox_run_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
        sa.UniqueConstraint(
            "run_id", "sequence", "state", "destination", name="uq_outbox_run_id_sequence_state_destination"
        ),
    )
    op.create_index("ix_outbox_destination_done_not_before", "outbox", ["destination", "done", "not_before"])
