"""Reads the bodies of `/v1/policy`: candidates, messages, signatures. What is wrong is `MalformedRequest`."""

from datetime import timedelta
from typing import Final

from kms.administration.office import Files
from kms.http.operator_parameters import LONGEST_SPAN, printable, prose, revision
from kms.keys.identity import PUBLIC_KEY_LENGTH, SIGNATURE_LENGTH
from kms.policy.file_names import is_policy_file
from kms.policy.history import PolicySignature, SignatureFormat
from kms.policy.sshsig import parse_armored
from kms.strict_json import Fields

_NO_REVISION: Final = "none"


def candidate(body: Fields) -> str | Files:
    """Read a policy: its files, or the name of a revision."""
    if body.has("files") == body.has("revision"):
        body.fail("either `files` or `revision` must be there")
    return policy_files(body) if body.has("files") else revision_in(body, "revision")


def policy_files(body: Fields) -> Files:
    """Read a policy folder's files."""
    files: dict[str, bytes] = {}
    for name, text in body.members("files").items():
        if not is_policy_file(name):
            body.fail("`files` has a name that no policy file has")
        if not isinstance(text, str):
            body.fail("`files` holds something else than text")
        files[name] = text.encode("utf-8")
    return files


def revision_in(body: Fields, name: str) -> str:
    """Read the name of a revision."""
    return body.convert(name, body.text(name), revision)


def optional_revision_in(body: Fields, name: str) -> str | None:
    """Read the name of a revision, if it is there."""
    return revision_in(body, name) if body.has(name) else None


def expected(body: Fields) -> str | None:
    """Read which revision must be in force: None for any."""
    if not body.has("expect"):
        return None
    text = body.text("expect")
    return text if text == _NO_REVISION else body.convert("expect", text, revision)


def prose_in(body: Fields, name: str) -> str:
    """Read a message."""
    return body.convert(name, body.text(name), prose)


def line_in(body: Fields, name: str) -> str:
    """Read a line of text."""
    return body.convert(name, body.text(name), printable)


def span_in(body: Fields, name: str) -> timedelta:
    """Read a number of seconds, at most ten years."""
    return timedelta(seconds=body.integer(name, minimum=1, maximum=LONGEST_SPAN))


def lifts_revocations(body: Fields) -> bool:
    """Read whether a policy may lack revocations that stand."""
    return body.boolean("lift_revocations") if body.has("lift_revocations") else False


def signature_in(body: Fields) -> PolicySignature:
    """Read a signature over a statement. Raises `MalformedRequest`."""
    kind = body.text("format", at_most=16)
    if kind == SignatureFormat.SSHSIG:
        return parse_armored(body.text("signature"))
    if kind != SignatureFormat.ED25519:
        body.fail(f"`format` must be one of {', '.join(SignatureFormat)}")
    public_key = body.base64("public_key", at_most=PUBLIC_KEY_LENGTH)
    signature = body.base64("signature", at_most=SIGNATURE_LENGTH)
    if (len(public_key), len(signature)) != (PUBLIC_KEY_LENGTH, SIGNATURE_LENGTH):
        body.fail(f"an Ed25519 key has {PUBLIC_KEY_LENGTH} bytes, and a signature {SIGNATURE_LENGTH}")
    return PolicySignature(SignatureFormat.ED25519, public_key, signature)
