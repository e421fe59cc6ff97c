"""Runs, attempts, chunks, incidents, checkpoints, verdicts, policies, tokens.

Revision 0001. Released migrations are never edited.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# The types as they were at this revision, spelled out: a migration does not change when the schema module does.
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
NUMBER: sa.types.TypeEngine[float] = sa.Double().with_variant(sa.REAL(), "sqlite")
DOCUMENT = sa.Text()


def upgrade() -> None:
    op.create_table(
        "policies",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("document", DOCUMENT, nullable=False),
        sa.Column("created", NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("name", "version", name="pk_policies"),
    )
    op.create_table(
        "runs",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created", NUMBER, nullable=False),
        sa.Column("config", DOCUMENT, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("stop_reason", sa.Text()),
        sa.Column("first_step", sa.BigInteger()),
        sa.Column("last_step", sa.BigInteger()),
        sa.Column("judged_step", sa.BigInteger()),
        sa.Column("heard_step", sa.BigInteger()),
        sa.Column("last_seen", NUMBER, nullable=False),
        sa.Column("last_progress", NUMBER, nullable=False),
        sa.Column("loss_last", NUMBER),
        sa.Column("frames", sa.BigInteger(), nullable=False),
        sa.Column("dropped_frames", sa.BigInteger(), nullable=False),
        sa.Column("waiting_chunks", sa.Integer(), nullable=False),
        sa.Column("summary", DOCUMENT, nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
        sa.UniqueConstraint("project", "name", name="uq_runs_project_name"),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project", sa.Text()),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("scopes", DOCUMENT, nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("created", NUMBER, nullable=False),
        sa.Column("expires", NUMBER),
        sa.Column("revoked", NUMBER),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.UniqueConstraint("sha256", name="uq_tokens_sha256"),
    )
    op.create_table(
        "verdicts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("artifact_digest", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("policy_version", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("created", NUMBER, nullable=False),
        sa.Column("document", DOCUMENT, nullable=False),
        sa.Column("signature", DOCUMENT),
        sa.PrimaryKeyConstraint("id", name="pk_verdicts"),
    )
    op.create_index("ix_verdicts_artifact_digest", "verdicts", ["artifact_digest"])
    op.create_index("ix_verdicts_project_run_created", "verdicts", ["project", "run", "created"])
    op.create_table(
        "attempts",
        sa.Column("run_id", BIG, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("start_step", sa.BigInteger()),
        sa.Column("started", NUMBER),
        sa.Column("stopped", NUMBER),
        sa.Column("stop_reason", sa.Text()),
        sa.Column("next_index", sa.Integer(), nullable=False),
        sa.Column("last_step", sa.BigInteger()),
        sa.Column("config", DOCUMENT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_attempts_run_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "number", name="pk_attempts"),
        sa.UniqueConstraint("run_id", "key", name="uq_attempts_run_id_key"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "checkpoints",
        sa.Column("run_id", BIG, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("has_slots", sa.Boolean(), nullable=False),
        sa.Column("time", NUMBER, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_checkpoints_run_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "attempt", "step", "path", name="pk_checkpoints"),
    )
    op.create_table(
        "chunk_bytes",
        sa.Column("run_id", BIG, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_chunk_bytes_run_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "attempt", "index", name="pk_chunk_bytes"),
    )
    op.create_table(
        "chunk_summaries",
        sa.Column("run_id", BIG, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_chunk_summaries_run_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "attempt", "index", name="pk_chunk_summaries"),
    )
    op.create_table(
        "chunks",
        sa.Column("run_id", BIG, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("first_step", sa.BigInteger()),
        sa.Column("last_step", sa.BigInteger()),
        sa.Column("frames", sa.Integer(), nullable=False),
        sa.Column("schema", sa.Integer(), nullable=False),
        sa.Column("missing", DOCUMENT, nullable=False),
        sa.Column("drops", DOCUMENT, nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("received", NUMBER, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_chunks_run_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "attempt", "index", name="pk_chunks"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "detector_states",
        sa.Column("run_id", BIG, nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("position", DOCUMENT, nullable=False),
        sa.Column("frames", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_detector_states_run_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "sequence", name="pk_detector_states"),
    )
    op.create_table(
        "incidents",
        sa.Column("run_id", BIG, nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("onset_step", sa.BigInteger(), nullable=False),
        sa.Column("detected_step", sa.BigInteger(), nullable=False),
        sa.Column("declared_full_step", sa.BigInteger()),
        sa.Column("end_step", sa.BigInteger()),
        sa.Column("peak_step", sa.BigInteger(), nullable=False),
        sa.Column("peak", NUMBER, nullable=False),
        sa.Column("residual", NUMBER, nullable=False),
        sa.Column("first_signal_step", sa.BigInteger()),
        sa.Column("first_layer", sa.Text()),
        sa.Column("tasks", DOCUMENT, nullable=False),
        sa.Column("confidence", NUMBER, nullable=False),
        sa.Column("explanation", sa.Text(), nullable=False),
        sa.Column("advice", sa.Text(), nullable=False),
        sa.Column("superseded", sa.Boolean(), nullable=False),
        sa.Column("opened", NUMBER, nullable=False),
        sa.Column("updated", NUMBER, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_incidents_run_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "sequence", name="pk_incidents"),
    )
    op.create_index("ix_incidents_run_id_superseded_end_step", "incidents", ["run_id", "superseded", "end_step"])
    op.create_table(
        "schemas",
        sa.Column("run_id", BIG, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("document", DOCUMENT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_schemas_run_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "number", name="pk_schemas"),
    )
