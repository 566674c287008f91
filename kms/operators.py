"""Who operates this KMS: roles, what each may do, and the one who is acting.

Deny by default: what a role may do is written here, and nowhere else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Role(StrEnum):
    """What somebody was entrusted with."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    AUDITOR = "auditor"
    ADMIN = "admin"


class Permission(StrEnum):
    """One kind of thing that can be done. The words are those of refusals and of the audit log."""

    READ_POLICY = "read-policy"  # policies, their history, images
    CHANGE_POLICY = "change-policy"  # apply, roll back, revoke, propose, sign
    READ_LEDGER = "read-ledger"  # every entry, as it was recorded
    READ_RECORD = "read-record"  # releases with their values, explanations, what-if
    VERIFY_EVIDENCE = "verify-evidence"
    READ_OPERATORS = "read-operators"  # operators, and what they did
    CHANGE_OPERATORS = "change-operators"
    READ_KEYS = "read-keys"  # epochs, generations of the identity, which guest took which epoch
    CHANGE_KEYS = "change-keys"  # rotate, schedule, retire; and the identity


_MAY: Final[Mapping[Role, frozenset[Permission]]] = {
    Role.VIEWER: frozenset({Permission.READ_POLICY}),
    Role.OPERATOR: frozenset(
        {
            Permission.READ_POLICY,
            Permission.CHANGE_POLICY,
            Permission.READ_RECORD,
            Permission.VERIFY_EVIDENCE,
            Permission.READ_KEYS,
        }
    ),
    Role.AUDITOR: frozenset(
        {
            Permission.READ_POLICY,
            Permission.READ_LEDGER,
            Permission.READ_RECORD,
            Permission.VERIFY_EVIDENCE,
            Permission.READ_OPERATORS,
            Permission.READ_KEYS,
        }
    ),
    Role.ADMIN: frozenset(Permission),
}


class Proof(StrEnum):
    """How somebody showed who they are."""

    COMMAND_LINE = "command-line"  # whoever can read the root key and write the database where they run
    TOKEN = "token"  # noqa: S105 -- a word, not a secret
    CERTIFICATE = "certificate"
    OIDC = "oidc"
    FOLDER = "watched-folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Who acts: a name (at most 256 characters), a role, how that was proven, and from which address.

    `proof_id` names the token, certificate or OIDC subject; never a secret.
    """

    name: str
    role: Role
    proof: Proof
    proof_id: str | None = None
    client: str | None = None

    def may(self, permission: Permission) -> bool:
        """Say whether the role includes this."""
        return permission in _MAY[self.role]
