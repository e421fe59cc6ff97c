"""The tables, as SQLAlchemy knows them. `migrations/` makes them; a test compares the two.

Every table that grows is keyed by its run first. Times are Unix seconds by the service's clock, but for `started`,
`stopped` and a checkpoint's `time`, which are the trainer's.
"""

from typing import Final

import sqlalchemy as sa

from lossguard_service.store.columns import Document, Number, Words

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)
Big: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""64 bits; SQLite wants the word INTEGER for a primary key that counts by itself."""

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", Big, primary_key=True, autoincrement=True),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("created", Number, nullable=False),
    sa.Column("config", Document, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("stop_reason", sa.Text),
    sa.Column("first_step", sa.BigInteger),
    sa.Column("last_step", sa.BigInteger),
    sa.Column("judged_step", sa.BigInteger),
    sa.Column("heard_step", sa.BigInteger),
    sa.Column("last_seen", Number, nullable=False),
    sa.Column("last_progress", Number, nullable=False),
    sa.Column("loss_last", Number),
    sa.Column("frames", sa.BigInteger, nullable=False),
    sa.Column("dropped_frames", sa.BigInteger, nullable=False),
    sa.Column("waiting_chunks", sa.Integer, nullable=False),
    sa.Column("summary", Document, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("project", "name"),
)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("run_id", Big, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("start_step", sa.BigInteger),
    sa.Column("started", Number),
    sa.Column("stopped", Number),
    sa.Column("stop_reason", sa.Text),
    sa.Column("next_index", sa.Integer, nullable=False),
    sa.Column("last_step", sa.BigInteger),
    sa.Column("skipped_steps", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("config", Document, nullable=False),
    sa.UniqueConstraint("run_id", "key"),
    sqlite_with_rowid=False,
)

chunks = sa.Table(
    "chunks",
    metadata,
    sa.Column("run_id", Big, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("index", sa.Integer, primary_key=True),
    sa.Column("first_step", sa.BigInteger),
    sa.Column("last_step", sa.BigInteger),
    sa.Column("frames", sa.Integer, nullable=False),
    sa.Column("schema", sa.Integer, nullable=False),
    sa.Column("missing", Document, nullable=False),
    sa.Column("drops", Document, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("received", Number, nullable=False),
    sqlite_with_rowid=False,
)

chunk_bytes = sa.Table(
    "chunk_bytes",
    metadata,
    sa.Column("run_id", Big, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("index", sa.Integer, primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("object", sa.Text),
)
"""Where `object` is set, the bytes are there and not here; see `lossguard_service.store.bytes`."""

chunk_summaries = sa.Table(
    "chunk_summaries",
    metadata,
    sa.Column("run_id", Big, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("index", sa.Integer, primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
)
"""Not written any more (docs/decisions/0405-hot-statements.md); replicas of the version before still write it."""

segments = sa.Table(
    "segments",
    metadata,
    sa.Column("run_id", Big, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("first_index", sa.Integer, primary_key=True),
    sa.Column("next_index", sa.Integer, nullable=False),
    sa.Column("first_step", sa.BigInteger, nullable=False),
    sa.Column("last_step", sa.BigInteger, nullable=False),
    sa.Column("frames", sa.Integer, nullable=False),
    sa.Column("schema", sa.Integer, nullable=False),
    sa.Column("is_full", sa.Boolean, nullable=False),
    sa.Column("created", Number, nullable=False),
    sqlite_with_rowid=False,
)

segment_parts = sa.Table(
    "segment_parts",
    metadata,
    sa.Column("run_id", Big, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("first_index", sa.Integer, primary_key=True),
    sa.Column("part", sa.Integer, primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("object", sa.Text),
)

pyramid = sa.Table(
    "pyramid",
    metadata,
    sa.Column("run_id", Big, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("first_index", sa.Integer, primary_key=True),
    sa.Column("part", sa.Integer, primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("object", sa.Text),
)

doomed_objects = sa.Table(
    "doomed_objects",
    metadata,
    sa.Column("run_id", Big, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("first_index", sa.Integer, primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("objects", Document, nullable=False),
    sa.Column("since", Number, nullable=False),
    sa.Index(None, "since"),
)
"""Objects that no row names any more, since when; `lossguard_service.store.cleanup` deletes them."""

object_folders = sa.Table(
    "object_folders",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("swept", Number, nullable=False),
    sa.Column("secret", sa.Text),
    sa.Column("next_secret", sa.Text),
    sa.Column("renewed", Number, nullable=False, server_default="0"),
)
"""One row: this database's own folder in the object store, when it was last looked through for orphans, and what its
mark says (`ownership`): the secret, the one that is to follow, and when it was renewed."""

schemas = sa.Table(
    "schemas",
    metadata,
    sa.Column("run_id", Big, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("document", Document, nullable=False),
)
"""The column names of a run's chunks, each set once; `chunks.schema` says which."""

detector_states = sa.Table(
    "detector_states",
    metadata,
    sa.Column("run_id", Big, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("position", Document, nullable=False),
    sa.Column("frames", sa.BigInteger, nullable=False),
    sa.Column("state", sa.LargeBinary, nullable=False),
)

incidents = sa.Table(
    "incidents",
    metadata,
    sa.Column("run_id", Big, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("onset_step", sa.BigInteger, nullable=False),
    sa.Column("detected_step", sa.BigInteger, nullable=False),
    sa.Column("declared_full_step", sa.BigInteger),
    sa.Column("end_step", sa.BigInteger),
    sa.Column("peak_step", sa.BigInteger, nullable=False),
    sa.Column("peak", Number, nullable=False),
    sa.Column("residual", Number, nullable=False),
    sa.Column("first_signal_step", sa.BigInteger),
    sa.Column("first_layer", Words),
    sa.Column("tasks", Document, nullable=False),
    sa.Column("confidence", Number, nullable=False),
    sa.Column("explanation", Words, nullable=False),
    sa.Column("advice", Words, nullable=False),
    sa.Column("movers", Document),
    sa.Column("superseded", sa.Boolean, nullable=False),
    sa.Column("opened", Number, nullable=False),
    sa.Column("updated", Number, nullable=False),
    sa.Index(None, "run_id", "superseded", "end_step"),
)

dropped = sa.Table(
    "dropped",
    metadata,
    sa.Column("run_id", Big, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("reason", sa.Text, primary_key=True),
    sa.Column("frames", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

checkpoints = sa.Table(
    "checkpoints",
    metadata,
    sa.Column("run_id", Big, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("step", sa.BigInteger, primary_key=True),
    sa.Column("path", Words, primary_key=True),
    sa.Column("has_slots", sa.Boolean, nullable=False),
    sa.Column("time", Number, nullable=False),
)

verdicts = sa.Table(
    "verdicts",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("step", sa.BigInteger, nullable=False),
    sa.Column("artifact_digest", sa.Text, nullable=False),
    sa.Column("policy", sa.Text, nullable=False),
    sa.Column("policy_version", sa.Integer, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("created", Number, nullable=False),
    sa.Column("document", Document, nullable=False),
    sa.Column("signature", Document),
    sa.Column("model", sa.Text),
    sa.Column("metrics", Document),
    sa.Index(None, "project", "run", "created"),
    sa.Index(None, "project", "model", "created", "artifact_digest"),
    sa.Index(None, "artifact_digest"),
    sa.Index(None, "created"),
    sa.Index(None, "project", "outcome"),
)
"""`model` and `metrics` are set for versions that passed with metrics only: what the next version is compared with.

No foreign key: a verdict about a run that is not known is a verdict too, and it outlives a run's retention."""

policies = sa.Table(
    "policies",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("document", Document, nullable=False),
    sa.Column("created", Number, nullable=False),
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("project", sa.Text),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("scopes", Document, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("created", Number, nullable=False),
    sa.Column("expires", Number),
    sa.Column("revoked", Number),
    sa.UniqueConstraint("sha256"),
)

signing_keys = sa.Table(
    "signing_keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("public", sa.Text, nullable=False),
    sa.Column("private", sa.Text),
    sa.Column("created", Number, nullable=False),
    sa.Column("retired", Number),
    sa.Column("revoked", Number),
)
"""Private keys leave the row when their key is retired or revoked: nothing is signed with them any more."""

waivers = sa.Table(
    "waivers",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("first_step", sa.BigInteger),
    sa.Column("last_step", sa.BigInteger),
    sa.Column("checks", Document, nullable=False),
    sa.Column("author", Words, nullable=False),
    sa.Column("reason", Words, nullable=False),
    sa.Column("created", Number, nullable=False),
    sa.Column("expires", Number, nullable=False),
    sa.Column("revoked", Number),
    sa.Index(None, "project", "run"),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("sequence", Big, primary_key=True, autoincrement=True),
    sa.Column("time", Number, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("project", sa.Text),
    sa.Column("actor", Words, nullable=False),
    sa.Column("document", Document, nullable=False),
    sa.Index(None, "project", "sequence"),
)
"""Append-only: verdicts, waivers, keys, policies and tokens, as they were made; triggers refuse everything else."""

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", Big, primary_key=True, autoincrement=True),
    sa.Column("run_id", Big, sa.ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("destination", sa.Text, nullable=False),
    sa.Column("document", Document, nullable=False),
    sa.Column("created", Number, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("not_before", Number, nullable=False),
    sa.Column("done", Number),
    sa.Column("outcome", Words),
    sa.UniqueConstraint("run_id", "sequence", "state", "destination"),
    sa.Index(None, "destination", "done", "not_before"),
)
"""What webhooks tell: written with the incident, sent after the commit; rows stay, so that nothing is told again."""
