"""Attempts have the steps that loss scaling left out behind their last frame.

Revision 0012. Code of before writes the default; what an attempt said before this revision stays in its last chunk.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("skipped_steps", sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    with op.batch_alter_table("attempts") as table:
        table.drop_column("skipped_steps")
