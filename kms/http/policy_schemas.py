"""The shapes of `/v1/policy`, for the OpenAPI document: each with an examples."""

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field

from kms.http import examples
from kms.http.schemas import Shape

# Examples: a policy of two documents, and a change of it that widens.

Revision: TypeAlias = Annotated[
    str, Field(description="`sha256:` and 64 hex digits", examples=[examples.REVISION])
]
Intent = Literal["widen", "narrow"]


class SignatureBody(Shape):
    """A signature over a change's statement."""

    key: str | None = Field(description="name of the key in the trust file, null when it is in none")
    format: Literal["ed25519", "sshsig"]
    public_key: str = Field(description="Ed25519, base64url, 32 bytes")
    valid: bool


class ChangeBody(Shape):
    """One change of the policy in force."""

    sequence: int = Field(description="begins at 1 and only grows")
    revision: Revision
    previous: str | None = Field(description="the revision before; null for the first change")
    intent: Intent
    kind: Literal["apply", "folder", "rollback", "revoke"]
    author: str
    message: str
    made_at: str
    signatures: list[SignatureBody]

    example: ClassVar[dict[str, Any]] = {
        "sequence": 3,
        "revision": examples.REVISION,
        "previous": examples.OLD_REVISION,
        "intent": "widen",
        "kind": "apply",
        "author": "alice",
        "message": examples.MESSAGE,
        "made_at": examples.AT,
        "signatures": [
            {"key": "alice", "format": "ed25519", "public_key": examples.PUBLIC_KEY, "valid": True}
        ],
    }


class TrustBody(Shape):
    """How many signatures a change needs, and of whom."""

    widen: int
    narrow: int
    keys: list[str]


class StatusAnswer(Shape):
    """What is in force."""

    active: ChangeBody | None
    trusted: bool = Field(description="false: what the database names may not be used")
    untrusted: str | None = Field(description="why not, as a sentence; null when it may")
    documents: dict[str, int] = Field(description="how many of each kind")
    trust: TrustBody | None = Field(description="null where no signatures are asked for")
    proposals: int = Field(description="how many wait for signatures")

    example: ClassVar[dict[str, Any]] = {
        "active": ChangeBody.example,
        "trusted": True,
        "untrusted": None,
        "documents": {"app": 1, "image": 1, "tcb": 1},
        "trust": {"widen": 2, "narrow": 1, "keys": ["alice", "bob", "carol"]},
        "proposals": 0,
    }


class HistoryAnswer(Shape):
    """Changes, newest first."""

    changes: list[ChangeBody]
    next: int | None = Field(description="`before` of the next page; null where there is none")

    example: ClassVar[dict[str, Any]] = {"changes": [ChangeBody.example], "next": 3}


class RevisionAnswer(Shape):
    """A revision."""

    revision: Revision
    documents: list[dict[str, Any]] = Field(description="as written, without comments and defaults")
    files: dict[str, str] | None = Field(description="as they were written; null where that is not known")

    example: ClassVar[dict[str, Any]] = {
        "revision": examples.REVISION,
        "documents": [{"kind": "chips", "name": "rack-7", "chips": [examples.CHIP]}],
        "files": {"rack-7.yaml": f'kind: chips\nname: rack-7\nchips: ["{examples.CHIP}"]\n'},
    }


class DifferenceBody(Shape):
    """One difference, in words."""

    document: str = Field(examples=["app payments"])
    member: str | None
    effect: Literal["widens", "narrows", "neither"]
    text: str


class DiffAnswer(Shape):
    """What one policy changes of another."""

    from_: str | None = Field(alias="from", description="null: there was no policy")
    to: Revision
    intent: Intent | None = Field(description="null: nothing changes")
    changes: list[DifferenceBody]

    example: ClassVar[dict[str, Any]] = {
        "from": examples.OLD_REVISION,
        "to": examples.REVISION,
        "intent": "widen",
        "changes": [
            {
                "document": "app payments",
                "member": "chips",
                "effect": "widens",
                "text": "chip 38d16f6f6f6f6f6f… added",
            }
        ],
    }


class StatementBody(Shape):
    """What is signed: the RFC 8785 form of this object."""

    revision: Revision
    sequence: int
    previous: str | None
    kms_identity: str = Field(description="Ed25519 public key of the KMS, base64url")
    intent: Intent


class ProposalAnswer(Shape):
    """A change that waits for signatures."""

    statement: StatementBody
    kind: Literal["apply", "folder", "rollback", "revoke"]
    author: str
    message: str
    made_at: str
    signatures: list[SignatureBody]
    needed: int | None = Field(description="how many signatures; null where none are asked for")
    ready: bool = Field(description="there are enough: it can be applied")
    stale: bool = Field(description="another change came into force since: it must be proposed again")
    diff: DiffAnswer | None = Field(
        description="null of one that is stale, or of which no documents are stored"
    )

    example: ClassVar[dict[str, Any]] = {
        "statement": {
            "revision": examples.REVISION,
            "sequence": 3,
            "previous": examples.OLD_REVISION,
            "kms_identity": examples.PUBLIC_KEY,
            "intent": "widen",
        },
        "kind": "apply",
        "author": "alice",
        "message": examples.MESSAGE,
        "made_at": examples.AT,
        "signatures": ChangeBody.example["signatures"],
        "needed": 2,
        "ready": False,
        "stale": False,
        "diff": DiffAnswer.example,
    }


class ProposalsAnswer(Shape):
    """What waits for signatures."""

    proposals: list[ProposalAnswer]

    example: ClassVar[dict[str, Any]] = {"proposals": [ProposalAnswer.example]}


class OutcomeAnswer(Shape):
    """What came of a change."""

    applied: bool = Field(description="it is in force")
    changed: bool = Field(description="false: it was in force already")
    revision: Revision
    sequence: int | None
    intent: Intent | None
    diff: DiffAnswer
    proposal: ProposalAnswer | None = Field(description="where the change waits for signatures")

    example: ClassVar[dict[str, Any]] = {
        "applied": True,
        "changed": True,
        "revision": examples.REVISION,
        "sequence": 3,
        "intent": "widen",
        "diff": DiffAnswer.example,
        "proposal": None,
    }


class RollbackBody(Shape):
    """An earlier revision to put in force again."""

    revision: Revision
    message: str = Field(max_length=4096)
    expect: str | None = Field(None, description="the revision that must be in force, or `none`")

    example: ClassVar[dict[str, Any]] = {
        "revision": examples.OLD_REVISION,
        "message": "the new chip was not ours",
    }


class RevocationBody(Shape):
    """One thing to revoke."""

    kind: Literal["chip", "measurement", "image", "app", "compose", "product"]
    value: str = Field(description="the id, hash or name, as in a `revoked` document")
    reason: str = Field(max_length=4096)

    example: ClassVar[dict[str, Any]] = {
        "kind": "chip",
        "value": examples.CHIP,
        "reason": "rack 7 was opened",
    }


class NewSignatureBody(Shape):
    """A signature over a proposal's statement."""

    format: Literal["ed25519", "sshsig"]
    public_key: str | None = Field(None, description="ed25519 only: base64url, 32 bytes")
    signature: str = Field(
        description="ed25519: base64url, 64 bytes; sshsig: as `ssh-keygen -Y sign` writes it"
    )

    example: ClassVar[dict[str, Any]] = {
        "format": "ed25519",
        "public_key": examples.PUBLIC_KEY,
        "signature": "A" * 86,
    }
