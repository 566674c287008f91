"""What a command line says of a guest beside its evidence: the KMS to trust, and the app it names."""

from pathlib import Path
from typing import Final

from kms import private_files
from kms.cli.output import Unreadable, WrongUse
from kms.encoding import from_base64
from kms.errors import ConfigurationError
from kms.identifiers import AppId, ComposeHash
from kms.keys.identity import PUBLIC_KEY_LENGTH
from kms.policy.question import AppClaim

_MAX_FILE: Final = 256  # bytes


def read_identity(text: str) -> bytes:
    """Read a KMS identity, 32 bytes as base64url, or ``@FILE`` that holds it.

    Raises:
        ConfigurationError: it is none.
        Unreadable: the file cannot be read, or is no regular file of at most 256 bytes.

    """
    if text.startswith("@"):
        text = _read_small(Path(text[1:])).decode("ascii", "replace").strip()
    try:
        identity = from_base64(text)
    except ValueError:
        identity = b""
    if len(identity) != PUBLIC_KEY_LENGTH:
        raise ConfigurationError(
            f"--identity is not base64url of {PUBLIC_KEY_LENGTH} bytes",
            remedy="`GET /v1/identity` of the right server shows it",
        )
    return identity


def _read_small(path: Path) -> bytes:
    # A pipe in the file's place would hold a booting guest past every deadline.
    try:
        return bytes(private_files.read(path, at_most=_MAX_FILE, owners=None, foreign=0, follow=True))
    except private_files.Unfit as error:
        raise Unreadable(f"{path} {error}") from None
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error


def app_claim(app_id: str | None, compose_hash: str | None) -> AppClaim | None:
    """Give the app that a measured command line names, None where neither part is given.

    Raises:
        WrongUse: only one of them, or not hex of its length.

    """
    if app_id is None and compose_hash is None:
        return None
    if app_id is None or compose_hash is None:
        raise WrongUse("--app-id and --compose-hash go together")
    try:
        return AppClaim(app_id=AppId.from_hex(app_id), compose_hash=ComposeHash.from_hex(compose_hash))
    except ValueError as error:
        raise WrongUse(f"--app-id or --compose-hash: {error}") from None
