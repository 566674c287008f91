"""The names of keys, as guests ask for them and as policies allow them.

A name is a kind (``disk``, ``env``, ``signing``, ``tls``) or ``custom:<path>``; its algorithm follows from
its kind, so one key never serves two algorithms (field lesson 31). Errors never repeat their input.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

from typing_extensions import override

from kms.keys.root_messages import integer

MAX_PATH_LENGTH: Final = 128  # bytes of <path>; the protocol, section 1

_CUSTOM: Final = "custom:"
_SEGMENT: Final = re.compile(r"[a-z0-9._-]+")
_PARTIAL_SEGMENT: Final = re.compile(r"[a-z0-9._-]*")


class Scope(StrEnum):
    """Who shares a key: all guests of the app, one instance, or the app on one chip."""

    APP = "app"
    INSTANCE = "instance"
    CHIP = "chip"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a scope. Raises `ValueError`, which does not repeat the text."""
        try:
            return cls(text)
        except ValueError:
            raise ValueError("a scope is app, instance or chip") from None


class Algorithm(StrEnum):
    """What a key's bytes are."""

    SYMMETRIC_256 = "symmetric-256"  # 32 bytes
    X25519 = "x25519"  # 32 bytes, RFC 7748 private key, clamped
    ED25519 = "ed25519"  # 32 bytes, RFC 8032 seed
    P_256 = "p-256"  # PKCS#8 DER
    SECP256K1 = "secp256k1"  # 32 bytes, private scalar, big-endian


class KeyKind(StrEnum):
    """What a key is for."""

    DISK = "disk"
    ENV = "env"
    SIGNING = "signing"
    TLS = "tls"
    CUSTOM = "custom"
    DSTACK_DISK = "dstack:disk"
    DSTACK_ENV = "dstack:env"
    DSTACK_K256 = "dstack:k256"


# What a dstack KMS with the same roots would give (`kms.keys.dstack`); nothing of ours is derived for them.
DSTACK_KINDS: Final = frozenset({KeyKind.DSTACK_DISK, KeyKind.DSTACK_ENV, KeyKind.DSTACK_K256})

_ALGORITHMS: Final = {
    KeyKind.DISK: Algorithm.SYMMETRIC_256,
    KeyKind.ENV: Algorithm.X25519,
    KeyKind.SIGNING: Algorithm.ED25519,
    KeyKind.TLS: Algorithm.P_256,
    KeyKind.CUSTOM: Algorithm.SYMMETRIC_256,
    KeyKind.DSTACK_DISK: Algorithm.SYMMETRIC_256,
    KeyKind.DSTACK_ENV: Algorithm.X25519,
    KeyKind.DSTACK_K256: Algorithm.SECP256K1,
}
# Kinds of one scope. The public halves of env, signing and tls are published for the app as a whole; a key of
# one instance would be nobody's. What dstack derives is by its own rule for an instance or for the app.
_ONLY_SCOPE: Final = {
    KeyKind.ENV: Scope.APP,
    KeyKind.SIGNING: Scope.APP,
    KeyKind.TLS: Scope.APP,
    KeyKind.DSTACK_DISK: Scope.INSTANCE,
    KeyKind.DSTACK_ENV: Scope.APP,
    KeyKind.DSTACK_K256: Scope.APP,
}


@dataclass(frozen=True, slots=True)
class KeyName:
    """A key's name. `path` is empty for every kind but `KeyKind.CUSTOM`."""

    kind: KeyKind
    path: str = ""

    def __post_init__(self) -> None:
        if self.kind is KeyKind.CUSTOM:
            _require_path(self.path)
        elif self.path:
            raise ValueError("only a custom key has a path")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``disk``, ``env``, ``signing``, ``tls`` or ``custom:<path>``.

        Raises:
            ValueError: anything else, with no value in the message.

        """
        if text.startswith(_CUSTOM):
            return cls(KeyKind.CUSTOM, text.removeprefix(_CUSTOM))
        return cls(_plain_kind(text))

    @property
    def algorithm(self) -> Algorithm:
        """What the key's bytes are."""
        return _ALGORITHMS[self.kind]

    @override
    def __str__(self) -> str:
        return _CUSTOM + self.path if self.kind is KeyKind.CUSTOM else self.kind.value


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """One key that a guest asks for. `epoch` is None for the app's current one.

    `certificate_for` is the guest's own P-256 public key (65 bytes, SEC 1 uncompressed) where it asks for a
    ``tls`` certificate by a certificate request, and not for the app's private key. Equal requests are the
    "exact duplicates" that the protocol refuses.
    """

    name: KeyName
    scope: Scope
    epoch: int | None = None
    certificate_for: bytes | None = None

    def __post_init__(self) -> None:
        _require_scope(self.name.kind, self.scope)
        if self.epoch is not None:
            integer(self.epoch)
            if self.name.kind in DSTACK_KINDS:
                raise ValueError("what dstack derives has no epochs")
        if self.certificate_for is not None and self.name.kind is not KeyKind.TLS:
            raise ValueError("a certificate request goes with tls only")

    @classmethod
    def parse(cls, name: str, scope: str, epoch: int | None = None) -> Self:
        """Read the members of an entry of the request's ``keys``.

        Raises:
            ValueError: an unknown name or scope, a scope that the kind does not have, or an epoch
                that is not a positive integer; with no value in the message.

        """
        return cls(KeyName.parse(name), Scope.parse(scope), epoch)


@dataclass(frozen=True, slots=True)
class KeyPattern:
    """What an app policy allows: ``disk``, ``disk@chip``, ``custom:db/main``, ``custom:db/*``, ``custom:*``.

    Without ``@`` the scope is app: a policy never allows a scope that it does not name. A `*` stands only
    at the end of a custom path and matches every path that begins with what precedes it, at any depth.
    Policies do not name epochs here: which are available is decided elsewhere.
    """

    kind: KeyKind
    path: str
    wildcard: bool
    scope: Scope

    def __post_init__(self) -> None:
        _require_scope(self.kind, self.scope)
        if self.wildcard:
            _require_path_prefix(self.path)
        else:
            KeyName(self.kind, self.path)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a pattern of a policy's ``keys``.

        Raises:
            ValueError: an unknown kind or scope, a `*` anywhere but at the end of a custom path, or a
                prefix that no path can have; with no value in the message.

        """
        name, at, scope_text = text.partition("@")
        if not name.startswith(_CUSTOM):
            kind = _plain_kind(name)
            # dstack's names have one scope each, which need not be written out.
            usual = _ONLY_SCOPE.get(kind, Scope.APP)
            return cls(kind, "", wildcard=False, scope=Scope.parse(scope_text) if at else usual)
        scope = Scope.parse(scope_text) if at else Scope.APP
        path = name.removeprefix(_CUSTOM)
        return cls(KeyKind.CUSTOM, path.removesuffix("*"), wildcard=path.endswith("*"), scope=scope)

    def allows(self, request: KeyRequest) -> bool:
        """Say whether the request is one of those that the pattern allows."""
        if (request.name.kind, request.scope) != (self.kind, self.scope):
            return False
        if self.wildcard:
            return request.name.path.startswith(self.path)
        return request.name.path == self.path

    @override
    def __str__(self) -> str:
        name = _CUSTOM + self.path if self.kind is KeyKind.CUSTOM else self.kind.value
        usual = _ONLY_SCOPE.get(self.kind, Scope.APP)
        scope = "" if self.scope is usual else f"@{self.scope.value}"
        return name + ("*" if self.wildcard else "") + scope


def _plain_kind(text: str) -> KeyKind:
    if text == KeyKind.CUSTOM or text not in set(KeyKind):
        raise ValueError(
            "a key is disk, env, signing, tls, custom:<path> or, of dstack, dstack:disk, env or k256"
        )
    return KeyKind(text)


def _require_scope(kind: KeyKind, scope: Scope) -> None:
    only = _ONLY_SCOPE.get(kind, scope)
    if scope is not only:
        raise ValueError(f"{kind} is of scope {only} only")


def _require_path(path: str) -> None:
    # The characters are ASCII once every segment matches, so characters are bytes.
    if len(path) > MAX_PATH_LENGTH:
        raise ValueError(f"a custom path has at most {MAX_PATH_LENGTH} bytes")
    for segment in path.split("/"):
        if not _SEGMENT.fullmatch(segment) or segment in {".", ".."}:
            raise ValueError("a custom path is segments of [a-z0-9._-] joined by `/`, none `.` or `..`")


def _require_path_prefix(prefix: str) -> None:
    """Refuse a prefix that no path has: it would be a rule that silently allows nothing (lesson 23)."""
    *whole, partial = prefix.split("/")
    if whole:
        _require_path("/".join(whole))
    if not _PARTIAL_SEGMENT.fullmatch(partial) or len(prefix) >= MAX_PATH_LENGTH:
        raise ValueError("what precedes `*` must be the beginning of a custom path")
