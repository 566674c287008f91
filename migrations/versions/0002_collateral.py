"""What AMD signs: certificates, revocation lists, and who is fetching what."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "certificates",
        sa.Column("fingerprint", sa.String(64), primary_key=True),
        sa.Column("signer", sa.String(16), nullable=False),
        sa.Column("product", sa.String(16), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("chip_id", sa.String(128), nullable=True),
        sa.Column("csp_id", sa.String(128), nullable=True),
        sa.Column("tcb", sa.String(80), nullable=True),
        sa.Column("not_before", sa.String(32), nullable=False),
        sa.Column("not_after", sa.String(32), nullable=False),
        sa.Column("der", sa.LargeBinary, nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("kept_at", sa.String(32), nullable=False),
    )
    op.create_index("certificates_by_chip", "certificates", ["chip_id"])
    op.create_index("certificates_by_tcb", "certificates", ["role", "signer", "product", "tcb"])
    op.create_table(
        "revocation_lists",
        sa.Column("ark", sa.String(64), primary_key=True),
        sa.Column("signer", sa.String(16), primary_key=True),
        sa.Column("product", sa.String(16), primary_key=True),
        sa.Column("number", sa.Text, nullable=True),
        sa.Column("this_update", sa.String(32), nullable=False),
        sa.Column("next_update", sa.String(32), nullable=True),
        sa.Column("der", sa.LargeBinary, nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("kept_at", sa.String(32), nullable=False),
    )
    op.create_table(
        "collateral_claims",
        sa.Column("what", sa.String(512), primary_key=True),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("expires_at", sa.String(32), nullable=False),
    )


def downgrade() -> None:
    for table in ("collateral_claims", "revocation_lists", "certificates"):
        op.drop_table(table)
