"""Who moved first in an incident, and how far.

Revision 0007. The column may be empty, so code of before goes on writing incidents; those have no ranking until the
detectors say something new about them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("incidents", sa.Column("movers", sa.Text()))


def downgrade() -> None:
    with op.batch_alter_table("incidents") as table:
        table.drop_column("movers")
