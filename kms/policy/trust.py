"""Whose signatures over a change of policy count, and how many are needed: the trust file.

It is a local file (`KMS_POLICY_TRUST`), like the pin of AMD's roots: never in the database, so that whoever
owns the database cannot name the operators. TOML::

    [quorum]
    widen = 2        # of the keys below
    narrow = 1
    [keys]
    alice = "ed25519:<base64url of 32 bytes>"
    bob = "ssh-ed25519 AAAAC3… bob@laptop"      # a line of an OpenSSH public key file
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nacl.bindings import crypto_core_ed25519_is_valid_point

from kms.encoding import from_base64
from kms.errors import ConfigurationError, MalformedRequest
from kms.keys.identity import PUBLIC_KEY_LENGTH, SignatureInvalid, verify_signed
from kms.labels import POLICY_STATEMENT, labelled
from kms.policy.history import Intent, PolicySignature, SignatureFormat
from kms.policy.parser import closest
from kms.policy.sshsig import SshSignature, public_key_of_line
from kms.policy.statement import Statement

_NAME: Final = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_PREFIX: Final = "ed25519:"
_REMEDY: Final = (
    "KMS_POLICY_TRUST is a TOML file: [quorum] with `widen` and `narrow`, and [keys] with a line "
    'NAME = "ed25519:…" or NAME = "ssh-ed25519 AAAA…" for each operator'
)


@dataclass(frozen=True, slots=True)
class PolicyTrust:
    """The operators' keys (name to raw Ed25519 public key, 32 bytes), and how many must sign what.

    Raises `ConfigurationError` for names, keys or numbers with which a signature would prove less than it
    seems to.
    """

    keys: Mapping[str, bytes]
    widen: int
    narrow: int
    _names: Mapping[bytes, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names: dict[bytes, str] = {}
        for name, key in self.keys.items():
            _check_key(name, key)
            if key in names:
                # One person would count for two.
                raise _wrong(f"`{names[key]}` and `{name}` have the same key")
            names[key] = name
        for what, count in (("widen", self.widen), ("narrow", self.narrow)):
            if not 1 <= count <= len(names):
                raise _wrong(f"`{what}` must be from 1 to the number of keys, {len(names)}; it is {count}")
        if self.widen < self.narrow:
            raise _wrong("`widen` must not be less than `narrow`: to grant more cannot take fewer signatures")
        object.__setattr__(self, "_names", names)

    @classmethod
    def parse(cls, text: str) -> "PolicyTrust":
        """Read the trust file. Its values are not repeated in messages.

        Raises:
            ConfigurationError: with a sentence that says what is wrong.

        """
        try:
            top = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise _wrong(f"not TOML: {error}") from None
        quorum, keys = (_table(top, name) for name in ("quorum", "keys"))
        _refuse_unknown(top, ("quorum", "keys"), "the file")
        _refuse_unknown(quorum, ("widen", "narrow"), "[quorum]")
        return cls(
            keys={name: _read_key(name, value) for name, value in keys.items()},
            widen=_count(quorum, "widen"),
            narrow=_count(quorum, "narrow"),
        )

    def needed(self, intent: Intent) -> int:
        """Give how many keys must sign a change of this intent."""
        return self.narrow if intent is Intent.NARROW else self.widen

    def name_of(self, public_key: bytes) -> str | None:
        """Give whose key it is, None if it is not in the file."""
        return self._names.get(public_key)

    def signers(self, statement: Statement, signatures: Iterable[PolicySignature]) -> tuple[str, ...]:
        """Name who signed the statement, sorted. Each key counts once, however often and in whatever form."""
        names: set[str] = set()
        for each in signatures:
            name = self.name_of(each.public_key)
            if name is not None and verify_policy_signature(statement, each):
                names.add(name)
        return tuple(sorted(names))


def verify_policy_signature(statement: Statement, signature: PolicySignature) -> bool:
    """Say whether the key that a signature names made it over this statement. Whose it is, is not asked."""
    if signature.format is SignatureFormat.SSHSIG:
        try:
            inside = SshSignature.parse(signature.signature)
        except MalformedRequest:
            return False
        # The key that counts is the one that is looked up, never another that the blob carries.
        return inside.public_key == signature.public_key and inside.is_over(statement.canonical)
    try:
        verify_signed(POLICY_STATEMENT, statement.canonical, signature.signature, signature.public_key)
    except SignatureInvalid:
        return False
    return True


def sign_statement(statement: Statement, private_key: Ed25519PrivateKey) -> PolicySignature:
    """Sign a statement with an operator's key."""
    return PolicySignature(
        SignatureFormat.ED25519,
        private_key.public_key().public_bytes_raw(),
        private_key.sign(labelled(POLICY_STATEMENT, statement.canonical)),
    )


def _check_key(name: str, key: bytes) -> None:
    if not _NAME.fullmatch(name):
        raise _wrong(f"the name `{name[:80]}` is not 1 to 64 of A-Z a-z 0-9 . _ @ -")
    if len(key) != PUBLIC_KEY_LENGTH:
        raise _wrong(
            f"the key of `{name}` has {len(key)} bytes; an Ed25519 public key has {PUBLIC_KEY_LENGTH}"
        )
    # Under a key of small order anybody can sign anything, and OpenSSL (so `cryptography`) verifies it: it
    # takes any encoding of any point. Of one point there may be two encodings, so two keys that are one.
    # libsodium refuses both, and what is no point of the prime-order group: no honest key is any of these.
    if not crypto_core_ed25519_is_valid_point(key):
        raise _wrong(f"the key of `{name}` is weak or no Ed25519 public key: anybody might sign with it")


def _read_key(name: str, value: object) -> bytes:
    if not isinstance(value, str):
        raise _wrong(f"the key of `{name}` must be a text in quotes (so must a name with a dot in it)")
    try:
        if value.startswith(_PREFIX):
            return from_base64(value.removeprefix(_PREFIX))
        return public_key_of_line(value)
    except MalformedRequest as error:
        raise _wrong(f"the key of `{name}`: {error.detail}") from None
    except ValueError as error:
        raise _wrong(f"the key of `{name}`: {error}") from None


def _table(top: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = top.get(name)
    if not isinstance(value, dict):
        others = [each for each in top if each not in {"quorum", "keys"}]
        hint = f"; {_unknown(others[0], (name,), 'the file')}" if others else ""
        raise _wrong(f"there is no table [{name}]{hint}")
    return value


def _refuse_unknown(table: Mapping[str, object], known: tuple[str, ...], where: str) -> None:
    for name in table:
        if name not in known:
            raise _wrong(_unknown(name, known, where))


def _unknown(name: str, known: tuple[str, ...], where: str) -> str:
    return f"{where} has an unknown member `{name[:80]}`: {closest(name, known)}"


def _count(quorum: Mapping[str, object], name: str) -> int:
    value = quorum.get(name)
    if type(value) is not int:  # `true` is not 1
        raise _wrong(f"[quorum] needs `{name}`, a whole number of signatures")
    return value


def _wrong(message: str) -> ConfigurationError:
    return ConfigurationError(f"trust file: {message}", remedy=_REMEDY)
