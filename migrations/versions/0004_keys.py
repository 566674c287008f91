"""Epochs, generations of the KMS identity, and imported roots.

A database from before has one epoch at most: its row is made by the first server that starts, which has the
root key that the row's MAC needs.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "key_epochs",
        sa.Column("epoch", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("made_at", sa.String(32), nullable=False),
        sa.Column("made_by", sa.String(256), nullable=False),
        sa.Column("active_from", sa.String(32), nullable=False),
        sa.Column("retired_at", sa.String(32), nullable=True),
        sa.Column("retired_by", sa.String(256), nullable=True),
        sa.Column("mac", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "key_identities",
        sa.Column("generation", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("made_at", sa.String(32), nullable=False),
        sa.Column("made_by", sa.String(256), nullable=False),
        sa.Column("mac", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "foreign_roots",
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("imported_at", sa.String(32), nullable=False),
        sa.Column("imported_by", sa.String(256), nullable=False),
    )


def downgrade() -> None:
    for table in ("foreign_roots", "key_identities", "key_epochs"):
        op.drop_table(table)
