"""Objects have an owner: a secret that a database shares with a mark in its object store (`store.ownership`).

Revision 0011. Code of before neither reads nor writes the new columns, which are empty until a replica of this version
starts: it marks the store then.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

NUMBER: sa.types.TypeEngine[float] = sa.Double().with_variant(sa.REAL(), "sqlite")


def upgrade() -> None:
    op.add_column("object_folders", sa.Column("secret", sa.Text()))
    op.add_column("object_folders", sa.Column("next_secret", sa.Text()))
    op.add_column("object_folders", sa.Column("renewed", NUMBER, nullable=False, server_default="0"))


def downgrade() -> None:
    with op.batch_alter_table("object_folders") as table:
        for name in ("renewed", "next_secret", "secret"):
            table.drop_column(name)
