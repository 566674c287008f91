"""The first schema: marks, policy revisions, spent challenges, decisions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "installation",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("mode", sa.String(16), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.CheckConstraint("id = 1", name="installation_is_one_row"),
    )
    op.create_table(
        "root_checks",
        sa.Column("epoch", sa.Integer, primary_key=True),
        sa.Column("check_value", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
    )
    op.create_table(
        "policy_revisions",
        sa.Column("revision", sa.String(80), primary_key=True),
        sa.Column("documents", sa.LargeBinary, nullable=False),
        sa.Column("author", sa.String(256), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
    )
    op.create_table(
        "active_policy",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("revision", sa.String(80), nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("activated_at", sa.String(32), nullable=False),
        sa.Column("folder_revision", sa.String(80), nullable=True),
        sa.CheckConstraint("id = 1", name="active_policy_is_one_row"),
    )
    op.create_table(
        "spent_challenges",
        sa.Column("challenge", sa.LargeBinary, primary_key=True),
        sa.Column("expires_at", sa.Integer, nullable=False),
    )
    op.create_index("spent_challenges_by_expiry", "spent_challenges", ["expires_at"])
    op.create_table(
        "decisions",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("decided_at", sa.String(32), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("code", sa.String(64), nullable=True),
        sa.Column("app_id", sa.String(64), nullable=True),
        sa.Column("chip_id", sa.String(128), nullable=True),
        sa.Column("policy_revision", sa.String(80), nullable=True),
        sa.Column("entry", sa.LargeBinary, nullable=False),
        sa.Column("salt", sa.LargeBinary, nullable=False),
    )
    op.create_index("decisions_by_time", "decisions", ["decided_at"])
    op.create_index("decisions_by_app", "decisions", ["app_id", "decided_at"])


def downgrade() -> None:
    for table in (
        "decisions",
        "spent_challenges",
        "active_policy",
        "policy_revisions",
        "root_checks",
        "installation",
    ):
        op.drop_table(table)
