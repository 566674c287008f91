"""Every string that separates one use of a hash, MAC, KDF or signature from another, and the framing.

A labelled message is ``label || 0x00 || body``; no label contains a zero byte and none is a prefix of
another with its terminator, so two uses can never hash the same bytes. Fields inside a body are framed
by length (`frame`), never concatenated bare (field lessons 27 and 31).
"""

from typing import Final

# --- the wire (docs/reference/protocol.md; guests compute these too) ---
REQUEST: Final = "attested-kms/v1/request"  # REPORT_DATA = SHA-512 over it and the request bytes
RELEASE: Final = "attested-kms/v1/release"  # HPKE info
PAYLOAD: Final = "attested-kms/v1/payload"  # identity signature over a released payload
RECEIPT: Final = "attested-kms/v1/receipt"  # identity signature over a receipt
SIGNING_STATEMENT: Final = "attested-kms/v1/signing-statement"  # identity's word for an app's signing key

ENV_KEY: Final = "attested-kms/v1/env-key"  # identity signature over an app's published env key
ENV: Final = "attested-kms/v1/env"  # HPKE info of an environment sealed to an app
LEDGER_KEY: Final = "attested-kms/v1/ledger-key"  # an identity's signature over the ledger's public key
HAND_OVER: Final = "attested-kms/v1/hand-over"  # an identity's signature over the one that follows it

# --- operators' signatures and backups ---
POLICY_STATEMENT: Final = "attested-kms/v1/policy"  # Ed25519 over a change of policy; the SSHSIG namespace
BACKUP: Final = "attested-kms/v1/backup"  # HPKE info of a root sealed to a recovery key

# --- under the root secret (PRF messages) ---
ROOT_CHECK: Final = "attested-kms/v1/root-check"  # key-check value of an epoch
ROOT_IDENTITY: Final = "attested-kms/v1/root-identity"  # seed of the KMS identity
ROOT_CHALLENGE: Final = "attested-kms/v1/root-challenge"  # MAC key of challenges
ROOT_ROWS: Final = "attested-kms/v1/root-rows"  # MAC key of database rows that give power
ROOT_APPS_CA: Final = "attested-kms/v1/root-apps-ca"  # private key of the CA of all apps' certificates
ROOT_FOREIGN: Final = "attested-kms/v1/root-foreign"  # key under which imported roots are kept
ROOT_ENTRIES: Final = "attested-kms/v1/root-entries"  # MAC key of the ledger's entries
ROOT_LEDGER: Final = "attested-kms/v1/root-ledger"  # seed of the key that signs the ledger's checkpoints
ROOT_DEVELOPMENT: Final = "attested-kms/v1/root-development"  # wraps all of these where a root has no mark
ROOT_APP: Final = "attested-kms/v1/root-app"  # secret of one app in one epoch

# --- expansion of an app's secret, and MACs ---
APP_CA: Final = "attested-kms/v1/app-ca"  # HKDF-Expand info of an app's certificate authority
APP_KEY: Final = "attested-kms/v1/app-key"  # HKDF-Expand info of one released key
CHALLENGE: Final = "attested-kms/v1/challenge"  # MAC over a challenge
ROW: Final = "attested-kms/v1/row"  # MAC over a database row
ENTRY: Final = "attested-kms/v1/entry"  # MAC over an entry of the ledger

# --- a transparency log's own formats: the origin of checkpoints is their label (C2SP tlog-checkpoint) ---
LEDGER_ORIGIN: Final = "attested-kms/v1/ledger"  # then "/" and 16 hex digits that name the KMS


def labelled(label: str, body: bytes) -> bytes:
    """Give ``label || 0x00 || body``."""
    return label.encode("ascii") + b"\x00" + body


def frame(*fields: bytes) -> bytes:
    """Join fields so that no two different lists give the same bytes: each as u32 BE length, then bytes."""
    return b"".join([len(field).to_bytes(4, "big") + field for field in fields])
