"""The tables. `migrations/` makes them; a test keeps the two equal."""

from typing import Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

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

# The epochs of the root that were adopted, and what they are good for. `mac` is under a root-derived key over
# all other columns.
key_epochs: Final = Table(
    "key_epochs",
    metadata,
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("made_at", String(32), nullable=False),
    Column("made_by", String(256), nullable=False),
    Column("active_from", String(32), nullable=False),
    Column("retired_at", String(32), nullable=True),
    Column("retired_by", String(256), nullable=True),
    Column("mac", LargeBinary, nullable=False),
)

# The generations of the KMS identity after the first, which needs no row. `mac` as above.
key_identities: Final = Table(
    "key_identities",
    metadata,
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("made_at", String(32), nullable=False),
    Column("made_by", String(256), nullable=False),
    Column("mac", LargeBinary, nullable=False),
)

# Roots of other KMSs, sealed under a root-derived key: whoever has the database alone has none of them.
foreign_roots: Final = Table(
    "foreign_roots",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("imported_at", String(32), nullable=False),
    Column("imported_by", String(256), nullable=False),
)

# Immutable: the canonical bytes of a revision, whose SHA-256 is its name. `files` is how it was written, for
# people (zlib over JSON, name to text): whoever reads it computes the digest again.
policy_revisions: Final = Table(
    "policy_revisions",
    metadata,
    Column("revision", String(80), primary_key=True),
    Column("documents", LargeBinary, nullable=False),
    Column("files", LargeBinary, nullable=True),
    Column("created_at", String(32), nullable=False),
)

# The history. `mac` is under a root-derived key over all other columns: a row written by hand is ignored.
# `folder` is the digest of the watched folder when it was applied last, so that an unchanged folder does not
# undo a later apply, and what a command revoked outlives an edit of it.
policy_changes: Final = Table(
    "policy_changes",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("revision", String(80), nullable=False),
    Column("previous", String(80), nullable=True),
    Column("folder", String(80), nullable=True),
    Column("intent", String(16), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("author", String(256), nullable=False),
    Column("message", Text, nullable=False),
    Column("made_at", String(32), nullable=False),
    Column("mac", LargeBinary, nullable=False),
)

# One row: the change in force. What it names counts only with an authentic row in `policy_changes`.
active_policy: Final = Table(
    "active_policy",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("revision", String(80), nullable=False),
    Column("sequence", Integer, nullable=False),
    CheckConstraint("id = 1", name="active_policy_is_one_row"),
)

# Changes that wait for signatures. `statement` is the SHA-256 (hex) of what is signed, `mac` as above: the
# owner of the database must not choose what a folder may take back, nor who is said to have asked.
policy_proposals: Final = Table(
    "policy_proposals",
    metadata,
    Column("statement", String(64), primary_key=True),
    Column("revision", String(80), nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("previous", String(80), nullable=True),
    Column("folder", String(80), nullable=True),
    Column("intent", String(16), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("author", String(256), nullable=False),
    Column("message", Text, nullable=False),
    Column("made_at", String(32), nullable=False),
    Column("mac", LargeBinary, nullable=False),
)

# Over proposals and changes alike; verified by whoever reads them.
policy_signatures: Final = Table(
    "policy_signatures",
    metadata,
    Column("statement", String(64), primary_key=True),
    Column("public_key", String(64), primary_key=True),
    Column("format", String(16), nullable=False),
    Column("signature", LargeBinary, nullable=False),
    Column("added_at", String(32), nullable=False),
)

# Who may operate the KMS. `mac` as above, over all columns but `last_used_at`. `token_hash` is the SHA-256
# (hex) of a random token of 256 bits; `subject` is that of a client certificate (RFC 4514).
operators: Final = Table(
    "operators",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("token_id", String(32), nullable=True, unique=True),
    Column("token_hash", String(64), nullable=True),
    Column("subject", String(512), nullable=True, unique=True),
    Column("created_at", String(32), nullable=False),
    Column("created_by", String(256), nullable=False),
    Column("expires_at", String(32), nullable=True),
    Column("revoked_at", String(32), nullable=True),
    Column("last_used_at", String(32), nullable=True),
    Column("mac", LargeBinary, nullable=False),
)

# What operators did: for look-ups. What was recorded of it is in `entries`, under the same id.
operator_actions: Final = Table(
    "operator_actions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("at", String(32), nullable=False),
    Column("operator", String(256), nullable=False),
    Column("action", String(64), nullable=False),
    Column("outcome", String(64), nullable=False),
    Index("operator_actions_by_time", "at"),
)

# The primary key is what gives a challenge exactly one winner.
spent_challenges: Final = Table(
    "spent_challenges",
    metadata,
    Column("challenge", LargeBinary, primary_key=True),
    Column("expires_at", BigInteger, nullable=False),
    Index("spent_challenges_by_expiry", "expires_at"),
)

# Everything that was decided or done, in the order in which it was recorded: `place` counts from 1 without a
# gap, under the write lock. `entry` is canonical JSON (RFC 8785), `mac` under a root-derived key over all but
# the place; NULL for what was recorded before there was a ledger, until the first start after that seals it.
entries: Final = Table(
    "entries",
    metadata,
    Column("place", BigInteger, primary_key=True, autoincrement=False),
    Column("id", String(64), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    Column("server", String(64), nullable=False),
    Column("entry", LargeBinary, nullable=False),
    Column("salt", LargeBinary, nullable=False),
    Column("mac", LargeBinary, nullable=True),
)

# Which entry is which leaf of the ledger's tree, from 0 on.
ledger_leaves: Final = Table(
    "ledger_leaves",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("place", BigInteger, nullable=False, unique=True),
)

# The tree, as tiles of up to 256 hashes (C2SP tlog-tiles). Level -1 has the digests that the leaves are of.
ledger_tiles: Final = Table(
    "ledger_tiles",
    metadata,
    Column("level", Integer, primary_key=True, autoincrement=False),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("hashes", LargeBinary, nullable=False),
)

# Every checkpoint ever made, as the signed note that it is. The largest says how far the ledger has come;
# `place` is that of the last entry that was looked at for it.
ledger_checkpoints: Final = Table(
    "ledger_checkpoints",
    metadata,
    Column("size", BigInteger, primary_key=True, autoincrement=False),
    Column("place", BigInteger, nullable=False),
    Column("note", Text, nullable=False),
    Column("made_at", String(32), nullable=False),
)

# What each server's heavy networks, chips and apps took of their limits, period by period, for the others.
rate_takings: Final = Table(
    "rate_takings",
    metadata,
    Column("server", String(64), primary_key=True),
    Column("bucket", String(64), primary_key=True),
    Column("period", BigInteger, primary_key=True, autoincrement=False),
    Column("taken", BigInteger, nullable=False),
    Index("rate_takings_by_period", "period"),
)

# What was decided: for look-ups. What was recorded of it is in `entries`, under the same id.
decisions: Final = Table(
    "decisions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("decided_at", String(32), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("code", String(64), nullable=True),
    Column("app_id", String(64), nullable=True),
    Column("chip_id", String(128), nullable=True),
    Column("image", String(128), nullable=True),
    Column("measurement", String(96), nullable=True),
    Column("policy_revision", String(80), nullable=True),
    Index("decisions_by_time", "decided_at"),
    Index("decisions_by_app", "app_id", "decided_at"),
    Index("decisions_by_chip", "chip_id", "decided_at"),
)

# Certificates that verified once, kept for ever (of a chip's key at a TCB the one that lives longest). The
# DER is the certificate; the other columns repeat parts of it for look-ups, and nobody believes either:
# whoever reads one verifies it again. `chip_id` is the hex of all 64 bytes, `tcb` a text such as
# `bootloader=4 tee=0 snp=24 microcode=219`.
certificates: Final = Table(
    "certificates",
    metadata,
    Column("fingerprint", String(64), primary_key=True),  # SHA-256 of the DER, hex
    Column("signer", String(16), nullable=False),
    Column("product", String(16), nullable=False),
    Column("role", String(16), nullable=False),
    Column("chip_id", String(128), nullable=True),
    Column("csp_id", String(128), nullable=True),
    Column("tcb", String(80), nullable=True),
    Column("not_before", String(32), nullable=False),
    Column("not_after", String(32), nullable=False),
    Column("der", LargeBinary, nullable=False),
    Column("source", String(16), nullable=False),
    Column("kept_at", String(32), nullable=False),
    Index("certificates_by_chip", "chip_id"),
    # The signer stands in it so that the few VLEKs of a TCB are not looked for among all the VCEKs of it.
    Index("certificates_by_tcb", "role", "signer", "product", "tcb"),
)

# The newest revocation list of each ARK (SHA-256 of its public key, hex) and line. `number` is decimal text:
# RFC 5280 (section 5.2.3) allows 20 bytes, more than an integer column holds.
revocation_lists: Final = Table(
    "revocation_lists",
    metadata,
    Column("ark", String(64), primary_key=True),
    Column("signer", String(16), primary_key=True),
    Column("product", String(16), primary_key=True),
    Column("number", Text, nullable=True),
    Column("this_update", String(32), nullable=False),
    Column("next_update", String(32), nullable=True),
    Column("der", LargeBinary, nullable=False),
    Column("source", String(16), nullable=False),
    Column("kept_at", String(32), nullable=False),
)

# Who is fetching what (a KDS path) right now, of all servers on this database. The primary key gives each
# fetch one owner.
collateral_claims: Final = Table(
    "collateral_claims",
    metadata,
    Column("what", String(512), primary_key=True),
    Column("owner", String(128), nullable=False),
    Column("expires_at", String(32), nullable=False),
)
