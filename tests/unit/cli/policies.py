"""Small policies for the tests of policy commands, and the answers that an honest office gives about them."""

from typing import Any

from kms.encoding import b64url
from kms.policy.diff import differences, intent_of
from kms.policy.history import Intent
from kms.policy.revision import Revision, documents_of

IDENTITY = b"k" * 32
CHIP_A, CHIP_B = "0a" * 64, "0b" * 64


def files(*chips: str, **more: bytes) -> dict[str, bytes]:
    """Give the files of a policy that lists these chips."""
    lines = "".join(f'  - "{chip}"\n' for chip in chips)
    return {"chips.yaml": f"kind: chips\nname: rack\nchips:\n{lines}".encode(), **more}


def policy(*chips: str) -> Revision:
    return Revision.from_files(files(*chips), development=False)


def revision_answer(revision: Revision, written: dict[str, bytes] | None = None) -> Any:
    texts = {name: content.decode() for name, content in (written or {}).items()}
    return {"revision": revision.digest, "documents": documents_of(revision), "files": texts}


def diff_answer(old: Revision | None, new: Revision) -> Any:
    found = differences(old, new)
    return {
        "from": None if old is None else old.digest,
        "to": new.digest,
        "intent": intent_of(found).value if found else None,
        "changes": [each.to_json() for each in found],
    }


def change_answer(revision: Revision, **changes: Any) -> Any:
    return {
        "sequence": 4,
        "revision": revision.digest,
        "previous": None,
        "intent": "widen",
        "kind": "apply",
        "author": "alice (token)",
        "message": "first",
        "made_at": "2026-11-22T08:00:00.000000Z",
        "signatures": [],
        **changes,
    }


def status_answer(revision: Revision | None) -> Any:
    active = None if revision is None else change_answer(revision)
    return {
        "active": active,
        "trusted": True,
        "untrusted": None,
        "documents": {} if revision is None else {"chips": 1},
        "trust": None,
        "proposals": 0,
    }


def proposal_answer(
    old: Revision | None,
    new: Revision,
    *,
    intent: Intent | None = None,
    sequence: int = 5,
    signed_by: tuple[str, ...] = (),
    needed: int | None = 2,
    **changes: Any,
) -> Any:
    intent = intent or intent_of(differences(old, new))
    return {
        "statement": {
            "revision": new.digest,
            "sequence": sequence,
            "previous": None if old is None else old.digest,
            "kms_identity": b64url(IDENTITY),
            "intent": intent.value,
        },
        "kind": "apply",
        "author": "alice (token)",
        "message": "one more chip",
        "made_at": "2026-11-22T09:00:00.000000Z",
        "signatures": [
            {"key": name, "format": "ed25519", "public_key": "", "valid": True} for name in signed_by
        ],
        "needed": needed,
        "ready": needed is None or len(signed_by) >= needed,
        "stale": False,
        "diff": diff_answer(old, new),
        **changes,
    }


def outcome_answer(old: Revision | None, new: Revision, *, proposal: Any = None, changed: bool = True) -> Any:
    return {
        "applied": proposal is None,
        "changed": changed and proposal is None,
        "revision": new.digest,
        "sequence": 5 if proposal is None else None,
        "intent": "widen",
        "diff": diff_answer(old, new),
        "proposal": proposal,
    }
