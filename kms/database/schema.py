"""The tables. `migrations/` makes them; a test keeps the two equal."""

from typing import Final

from sqlalchemy import CheckConstraint, Column, Index, Integer, LargeBinary, MetaData, String, Table, Text

metadata: Final = MetaData()

# One row: what this database was made for. A server of another mode refuses it.
installation: Final = Table(
    "installation",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("mode", String(16), nullable=False),
    Column("created_at", String(32), nullable=False),
    CheckConstraint("id = 1", name="installation_is_one_row"),
)

# The key-check value of each epoch of the root: what notices a lost, damaged or other root.
root_checks: Final = Table(
    "root_checks",
    metadata,
    Column("epoch", Integer, primary_key=True),
    Column("check_value", LargeBinary, nullable=False),
    Column("created_at", String(32), nullable=False),
)

# Immutable: the canonical bytes of a revision, whose SHA-256 is its name.
policy_revisions: Final = Table(
    "policy_revisions",
    metadata,
    Column("revision", String(80), primary_key=True),
    Column("documents", LargeBinary, nullable=False),
    Column("author", String(256), nullable=False),
    Column("message", Text, nullable=False),
    Column("created_at", String(32), nullable=False),
)

# One row: the revision in force. `sequence` grows with every change; `folder_revision` is the digest of
# the watched folder when it was applied last, so that an unchanged folder does not undo a later apply.
active_policy: Final = Table(
    "active_policy",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("revision", String(80), nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("activated_at", String(32), nullable=False),
    Column("folder_revision", String(80), nullable=True),
    CheckConstraint("id = 1", name="active_policy_is_one_row"),
)

# The primary key is what gives a challenge exactly one winner.
spent_challenges: Final = Table(
    "spent_challenges",
    metadata,
    Column("challenge", LargeBinary, primary_key=True),
    Column("expires_at", Integer, nullable=False),
    Index("spent_challenges_by_expiry", "expires_at"),
)

# The audit record. `entry` is the canonical JSON; the other columns repeat parts of it for look-ups.
decisions: Final = Table(
    "decisions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("decided_at", String(32), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("code", String(64), nullable=True),
    Column("app_id", String(64), nullable=True),
    Column("chip_id", String(128), nullable=True),
    Column("policy_revision", String(80), nullable=True),
    Column("entry", LargeBinary, nullable=False),
    Column("salt", LargeBinary, nullable=False),
    Index("decisions_by_time", "decided_at"),
    Index("decisions_by_app", "app_id", "decided_at"),
)
