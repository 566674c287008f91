"""History of policy, signatures, operators and what they do.

The pointer to the policy in force is emptied: no authentic change puts it there, so it counts no more, and a
policy has to be applied again. Revisions stay.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_column("policy_revisions", "author")
    op.drop_column("policy_revisions", "message")
    op.add_column("policy_revisions", sa.Column("files", sa.LargeBinary, nullable=True))
    op.execute("DELETE FROM active_policy")
    op.drop_column("active_policy", "activated_at")
    op.drop_column("active_policy", "folder_revision")
    op.add_column("decisions", sa.Column("image", sa.String(128), nullable=True))
    op.add_column("decisions", sa.Column("measurement", sa.String(96), nullable=True))
    op.create_index("decisions_by_chip", "decisions", ["chip_id", "decided_at"])
    op.create_table(
        "policy_changes",
        sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
        *_change_columns(),
    )
    op.create_table(
        "policy_proposals",
        sa.Column("statement", sa.String(64), primary_key=True),
        sa.Column("sequence", sa.Integer, nullable=False),
        *_change_columns(),
    )
    op.create_table(
        "policy_signatures",
        sa.Column("statement", sa.String(64), primary_key=True),
        sa.Column("public_key", sa.String(64), primary_key=True),
        sa.Column("format", sa.String(16), nullable=False),
        sa.Column("signature", sa.LargeBinary, nullable=False),
        sa.Column("added_at", sa.String(32), nullable=False),
    )
    op.create_table(
        "operators",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("token_id", sa.String(32), nullable=True, unique=True),
        sa.Column("token_hash", sa.String(64), nullable=True),
        sa.Column("subject", sa.String(512), nullable=True, unique=True),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("created_by", sa.String(256), nullable=False),
        sa.Column("expires_at", sa.String(32), nullable=True),
        sa.Column("revoked_at", sa.String(32), nullable=True),
        sa.Column("last_used_at", sa.String(32), nullable=True),
        sa.Column("mac", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "operator_actions",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("operator", sa.String(256), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("outcome", sa.String(64), nullable=False),
        sa.Column("entry", sa.LargeBinary, nullable=False),
        sa.Column("salt", sa.LargeBinary, nullable=False),
    )
    op.create_index("operator_actions_by_time", "operator_actions", ["at"])


def _change_columns() -> tuple[sa.Column[object], ...]:
    return (
        sa.Column("revision", sa.String(80), nullable=False),
        sa.Column("previous", sa.String(80), nullable=True),
        sa.Column("folder", sa.String(80), nullable=True),
        sa.Column("intent", sa.String(16), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("author", sa.String(256), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("made_at", sa.String(32), nullable=False),
        sa.Column("mac", sa.LargeBinary, nullable=False),
    )


def downgrade() -> None:
    for table in ("operator_actions", "operators", "policy_signatures", "policy_proposals", "policy_changes"):
        op.drop_table(table)
    op.drop_index("decisions_by_chip", "decisions")
    op.drop_column("decisions", "measurement")
    op.drop_column("decisions", "image")
    op.execute("DELETE FROM active_policy")
    op.add_column("active_policy", sa.Column("folder_revision", sa.String(80), nullable=True))
    op.add_column(
        "active_policy", sa.Column("activated_at", sa.String(32), nullable=False, server_default="")
    )
    op.drop_column("policy_revisions", "files")
    op.add_column("policy_revisions", sa.Column("message", sa.Text, nullable=False, server_default=""))
    op.add_column("policy_revisions", sa.Column("author", sa.String(256), nullable=False, server_default=""))
