"""What a passed version reached, where the next one looks for it: the model and the held-out metrics of verdicts.

Revision 0006. Both columns may be empty, so code of before goes on writing verdicts; those it writes while this
migration runs are versions that nothing is compared with.
"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

INDEX = "ix_verdicts_project_model_created_artifact_digest"
_PREFIX = "metric:"


def upgrade() -> None:
    op.add_column("verdicts", sa.Column("model", sa.Text()))
    op.add_column("verdicts", sa.Column("metrics", sa.Text()))
    op.create_index(INDEX, "verdicts", ["project", "model", "created", "artifact_digest"])
    _fill(op.get_bind())


def _fill(connection: sa.Connection) -> None:
    """The metrics of verdicts that passed stand in their checks; a run's model was not asked for before."""
    names = ("id", "outcome", "document", "model", "metrics")
    verdicts = sa.table("verdicts", *(sa.column(name, sa.Text) for name in names))
    passed = sa.select(verdicts.c.id, verdicts.c.document).where(verdicts.c.outcome == "pass")
    for verdict, document in connection.execute(passed).all():
        content = json.loads(document) if isinstance(document, str) else document
        metrics = {
            check["name"].removeprefix(_PREFIX): check["observed"]
            for check in content["checks"]
            if check["name"].startswith(_PREFIX) and isinstance(check["observed"], int | float)
        }
        if metrics:
            values = {"model": "", "metrics": json.dumps(metrics)}
            connection.execute(sa.update(verdicts).where(verdicts.c.id == verdict).values(**values))


def downgrade() -> None:
    op.drop_index(INDEX, table_name="verdicts")
    with op.batch_alter_table("verdicts") as table:
        table.drop_column("metrics")
        table.drop_column("model")
