"""The ledger: entries of decisions and actions in one order, the tree over them, its checkpoints.

What was recorded before moves into `entries`, in the order of its times, without a MAC: that needs the root
key, so the first server that starts seals it (kms/database/ledger.py).
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_RECORDED = ("decisions", "operator_actions")


def upgrade() -> None:
    op.create_table(
        "entries",
        sa.Column("place", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("server", sa.String(64), nullable=False),
        sa.Column("entry", sa.LargeBinary, nullable=False),
        sa.Column("salt", sa.LargeBinary, nullable=False),
        sa.Column("mac", sa.LargeBinary, nullable=True),
    )
    op.execute(
        """
        INSERT INTO entries (place, id, kind, server, entry, salt, mac)
        SELECT row_number() OVER (ORDER BY at, id), id, kind, '', entry, salt, NULL FROM (
            SELECT decided_at AS at, id, 'decision' AS kind, entry, salt FROM decisions
            UNION ALL SELECT at, id, 'action', entry, salt FROM operator_actions
        ) AS recorded
        """
    )
    for table in _RECORDED:
        with op.batch_alter_table(table) as altered:
            altered.drop_column("entry")
            altered.drop_column("salt")
    with op.batch_alter_table("spent_challenges") as altered:
        altered.alter_column("expires_at", type_=sa.BigInteger, existing_type=sa.Integer)
    op.create_table(
        "ledger_leaves",
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("place", sa.BigInteger, nullable=False, unique=True),
    )
    op.create_table(
        "ledger_tiles",
        sa.Column("level", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("hashes", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "ledger_checkpoints",
        sa.Column("size", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("place", sa.BigInteger, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("made_at", sa.String(32), nullable=False),
    )
    op.create_table(
        "rate_takings",
        sa.Column("server", sa.String(64), primary_key=True),
        sa.Column("bucket", sa.String(64), primary_key=True),
        sa.Column("period", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("taken", sa.BigInteger, nullable=False),
        sa.Index("rate_takings_by_period", "period"),
    )


def downgrade() -> None:
    """Give the record back to its tables. The tree is lost, and with it every proof."""
    for table in _RECORDED:
        op.add_column(table, sa.Column("entry", sa.LargeBinary, nullable=True))
        op.add_column(table, sa.Column("salt", sa.LargeBinary, nullable=True))
        for column in ("entry", "salt"):
            op.execute(
                f"UPDATE {table} SET {column} ="  # noqa: S608 -- names from above
                f" (SELECT {column} FROM entries WHERE entries.id = {table}.id)"
            )
        with op.batch_alter_table(table) as altered:
            altered.alter_column("entry", nullable=False, existing_type=sa.LargeBinary)
            altered.alter_column("salt", nullable=False, existing_type=sa.LargeBinary)
    with op.batch_alter_table("spent_challenges") as altered:
        altered.alter_column("expires_at", type_=sa.Integer, existing_type=sa.BigInteger)
    for table in ("rate_takings", "ledger_checkpoints", "ledger_tiles", "ledger_leaves", "entries"):
        op.drop_table(table)
