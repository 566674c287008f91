"""Signatures that people make with the SSH key they already have: ``ssh-keygen -Y sign``.

The formats are OpenSSH's: the signature as in its file PROTOCOL.sshsig, the public key's line as in sshd(8),
"AUTHORIZED_KEYS FILE FORMAT" (without options), strings as in RFC 4251 section 5, Ed25519 keys and signatures
as in RFC 8709 sections 4 and 6. Only plain Ed25519 keys are read: one kind of key in the trust file, one
algorithm to get right. Keys on a hardware token (``sk-ssh-ed25519@openssh.com``) sign other bytes, with flags
and a counter, and are refused.
"""

import hashlib
from base64 import b64encode
from dataclasses import dataclass, field
from typing import Final, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from kms.encoding import from_base64
from kms.errors import MalformedRequest
from kms.keys.identity import PUBLIC_KEY_LENGTH, SIGNATURE_LENGTH
from kms.labels import frame
from kms.policy.history import PolicySignature, SignatureFormat
from kms.policy.statement import SSH_NAMESPACE

# PROTOCOL.sshsig sections 1 and 2.
_HEADER: Final = "-----BEGIN SSH SIGNATURE-----"
_FOOTER: Final = "-----END SSH SIGNATURE-----"
_LINE: Final = 70  # characters, as ssh-keygen breaks them
_MAGIC: Final = b"SSHSIG"
_VERSION: Final = 1
_HASHES: Final = {b"sha256": hashlib.sha256, b"sha512": hashlib.sha512}

_ED25519: Final = b"ssh-ed25519"
_SECURITY_KEY: Final = b"sk-"  # OpenSSH's PROTOCOL.u2f
_AT_MOST: Final = 4096  # characters; an Ed25519 signature takes about 350, a key's line 80 and its comment


@dataclass(frozen=True, slots=True)
class SshSignature:
    """An SSH signature of our namespace, read and not yet verified.

    `public_key` is raw (32 bytes), `hash_name` ``sha256`` or ``sha512``, `signature` Ed25519's 64 bytes.
    """

    public_key: bytes
    hash_name: bytes
    signature: bytes = field(repr=False)

    @classmethod
    def parse(cls, blob: bytes) -> "SshSignature":
        """Read the binary form (PROTOCOL.sshsig section 2).

        Raises:
            MalformedRequest: not that, of another kind of key, or made for another namespace.

        """
        wire = _Wire(blob, "the SSH signature")
        if wire.take(len(_MAGIC)) != _MAGIC:
            wire.fail("does not begin with SSHSIG")
        if (version := wire.number()) != _VERSION:
            wire.fail(f"has version {version}; only {_VERSION} is known")
        public_key = _public_key(wire.string())
        if wire.string() != SSH_NAMESPACE.encode("ascii"):
            # What was signed for something else, a file or a commit, is no word on a policy.
            wire.fail(f"was made for another namespace: sign with `ssh-keygen -Y sign -n {SSH_NAMESPACE}`")
        if wire.string():
            wire.fail("has something in its reserved field")
        if (hash_name := wire.string()) not in _HASHES:
            wire.fail("hashes with something else than sha256 or sha512")
        inner = _Wire(wire.string(), "the signature inside the SSH signature")
        wire.end()
        inner.require_ed25519()
        signature = inner.string()
        inner.end()
        if len(signature) != SIGNATURE_LENGTH:
            inner.fail(f"has {len(signature)} bytes instead of {SIGNATURE_LENGTH}")
        return cls(public_key, hash_name, signature)

    def is_over(self, message: bytes) -> bool:
        """Say whether the public key that it names made it over `message`, in our namespace."""
        digest = _HASHES[self.hash_name](message).digest()
        # PROTOCOL.sshsig section 3; `frame` writes fields as SSH writes strings. These are never the bytes of
        # `labelled(POLICY_STATEMENT, …)`, nor what SSH signs at a login: neither begins with SSHSIG.
        signed = _MAGIC + frame(SSH_NAMESPACE.encode("ascii"), b"", self.hash_name, digest)
        try:
            Ed25519PublicKey.from_public_bytes(self.public_key).verify(self.signature, signed)
        except (InvalidSignature, ValueError):
            return False
        return True


def parse_armored(text: str) -> PolicySignature:
    """Read a signature file as ``ssh-keygen -Y sign`` writes it (PROTOCOL.sshsig section 1).

    Raises:
        MalformedRequest: not one signature and nothing else, or one that `SshSignature.parse` refuses.

    """
    if len(text) > _AT_MOST:
        raise MalformedRequest(f"longer than any SSH signature ({_AT_MOST} characters)")
    lines = text.rstrip().splitlines()
    if len(lines) < 3 or lines[0] != _HEADER or lines[-1] != _FOOTER:
        raise MalformedRequest(f"not an SSH signature: it begins with {_HEADER} and ends with {_FOOTER}")
    blob = _base64("".join(lines[1:-1]), "the SSH signature")
    return PolicySignature(SignatureFormat.SSHSIG, SshSignature.parse(blob).public_key, blob)


def armored(signature: PolicySignature) -> str:
    """Give the signature file that `parse_armored` reads as this signature."""
    text = b64encode(signature.signature).decode("ascii")
    lines = [text[start : start + _LINE] for start in range(0, len(text), _LINE)]
    return "\n".join([_HEADER, *lines, _FOOTER, ""])


def public_key_of_line(line: str) -> bytes:
    """Give the raw key (32 bytes) of a line of an OpenSSH public key file, ``ssh-ed25519 AAAA… comment``.

    Raises:
        MalformedRequest: not such a line, or another kind of key.

    """
    words = line.split(maxsplit=2)
    if len(line) > _AT_MOST or len(words) < 2 or len(line.splitlines()) != 1:
        raise MalformedRequest("not the line of an OpenSSH public key file, `ssh-ed25519 AAAA… comment`")
    _require_ed25519(words[0].encode(), "the SSH key")
    return _public_key(_base64(words[1], "the SSH key"))


class _Wire:
    """Reads SSH's binary encoding from the front; `what` names it in messages."""

    __slots__ = ("_data", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what

    def fail(self, message: str) -> NoReturn:
        raise MalformedRequest(f"{self._what} {message}")

    def take(self, count: int) -> bytes:
        if len(self._data) < count:
            self.fail("ends too early")
        taken, self._data = self._data[:count], self._data[count:]
        return taken

    def number(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def string(self) -> bytes:
        return self.take(self.number())

    def require_ed25519(self) -> None:
        _require_ed25519(self.string(), self._what)

    def end(self) -> None:
        if self._data:
            self.fail(f"has {len(self._data)} bytes too many")


def _public_key(blob: bytes) -> bytes:
    """Read a key (RFC 8709 section 4)."""
    wire = _Wire(blob, "the SSH key")
    wire.require_ed25519()
    key = wire.string()
    wire.end()
    if len(key) != PUBLIC_KEY_LENGTH:
        wire.fail(f"has {len(key)} bytes instead of {PUBLIC_KEY_LENGTH}")
    return key


def _require_ed25519(kind: bytes, what: str) -> None:
    if kind.startswith(_SECURITY_KEY):
        raise MalformedRequest(
            f"{what} is of a hardware token (sk-…), which signs in another way; use a plain ssh-ed25519 key"
        )
    if kind != _ED25519:
        raise MalformedRequest(
            f"{what} is of another kind than ssh-ed25519; make one with `ssh-keygen -t ed25519`"
        )


def _base64(text: str, what: str) -> bytes:
    try:
        return from_base64(text)
    except ValueError:
        raise MalformedRequest(f"{what} is not base64") from None
