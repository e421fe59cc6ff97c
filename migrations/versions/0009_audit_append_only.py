"""The audit log is only added to, and the database says so: triggers refuse everything but an insert.

Revision 0009. Code of before only inserts, so it works on. Nothing that deletes touches the table: retention deletes
frames, and an entry names its project and run in words, with no foreign key that a deletion could follow.

SQLite runs no delete trigger for what `INSERT OR REPLACE` puts out of the way, so a trigger of its own looks for the
row. A later migration that lets Alembic rebuild `audit` on SQLite (batch mode) loses the triggers and must make them
again; tests/service/test_audit.py sees it.
"""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

REFUSAL = "the audit log is only added to"


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION audit_only_grows() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{REFUSAL}'; END $$"
        )
        op.execute(
            "CREATE TRIGGER audit_only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
            "FOR EACH STATEMENT EXECUTE FUNCTION audit_only_grows()"
        )
        return
    for event in ("update", "delete"):
        op.execute(
            f"CREATE TRIGGER audit_refuses_{event} BEFORE {event.upper()} ON audit "
            f"BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"
        )
    op.execute(
        "CREATE TRIGGER audit_refuses_replace BEFORE INSERT ON audit "
        "WHEN EXISTS (SELECT 1 FROM audit WHERE sequence = NEW.sequence) "
        f"BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"
    )


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER audit_only_grows ON audit")
        op.execute("DROP FUNCTION audit_only_grows()")
        return
    for event in ("update", "delete", "replace"):
        op.execute(f"DROP TRIGGER audit_refuses_{event}")
