"""From ``KMS_ROOT_KEY`` to a provider."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from kms.errors import ConfigurationError
from kms.keys.root_messages import Mode
from kms.ports import RootKey
from kms.rootkey.file import FileRootKey, create

_PLANNED: Final = frozenset({"vault-transit", "vault-kv", "pkcs11"})


def open_root_key(uri: str, *, mode: Mode) -> RootKey:
    """Open the root key at `uri` (``file:PATH``), which must be marked with `mode`.

    Raises:
        RootKeyMissing: there is none; making one is the caller's decision (`create_root_key`).
        ConfigurationError: an unknown or unbuilt provider, or a root that cannot be used.

    """
    return FileRootKey.load(_path(uri), mode)


def create_root_key(uri: str, *, mode: Mode, now: datetime, random: Callable[[int], bytes]) -> RootKey:
    """Make a new root at `uri`, never over an existing one, and open it.

    Call it only where no key-check value exists. `random` gives that many bytes of the system's
    randomness (`secrets.token_bytes`).

    Raises:
        ConfigurationError: an unknown or unbuilt provider, something is already there, or it cannot be
            written.

    """
    path = _path(uri)
    create(path, mode, now, random)
    return FileRootKey.load(path, mode)


def check_uri(uri: str) -> None:
    """Check that `uri` names a provider of this version, without touching what it names.

    Raises:
        ConfigurationError: it does not.

    """
    _path(uri)


def _path(uri: str) -> Path:
    # The rest of a URI may hold a PIN (pkcs11) or a path: only a known scheme is ever repeated.
    scheme, colon, rest = uri.partition(":")
    if colon and scheme in _PLANNED:
        raise ConfigurationError(
            f"this version has no root key provider {scheme}:",
            remedy="Set KMS_ROOT_KEY to file:PATH.",
        )
    if not colon or scheme != "file":
        raise ConfigurationError("KMS_ROOT_KEY names no known provider", remedy="Set it to file:PATH.")
    if not rest or "\0" in rest or (rest.startswith("//") and not rest.startswith("///")):
        raise ConfigurationError(
            "KMS_ROOT_KEY=file: needs the path of a file on this machine",
            remedy="Write file:/var/lib/kms/root.key or file:///var/lib/kms/root.key.",
        )
    return Path(rest)
