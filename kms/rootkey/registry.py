"""From ``KMS_ROOT_KEY`` to a provider: one scheme, one module, imported only when it is used."""

import importlib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, cast

from kms.errors import ConfigurationError
from kms.rootkey.provider import Opener, RootAccess, RootProvider

# Each module has `OPENER`, a `kms.rootkey.provider.Opener`.
_MODULES: Final[Mapping[str, str]] = {
    "file": "kms.rootkey.file",
    "vault-transit": "kms.rootkey.vault_transit",
    "vault-kv": "kms.rootkey.vault_kv",
    "pkcs11": "kms.rootkey.pkcs11",
}
SCHEMES: Final = tuple(_MODULES)


def check_uri(uri: str, access: RootAccess) -> None:
    """Check that `uri` names a root key that this version can use, without touching what it names.

    Raises:
        ConfigurationError: it does not.

    """
    opener, rest = _opener(uri)
    opener.check(rest, access)


async def open_provider(uri: str, access: RootAccess) -> RootProvider:
    """Open the root key at `uri`; see `Opener.open`."""
    opener, rest = _opener(uri)
    return await opener.open(rest, access)


async def create_provider(
    uri: str, access: RootAccess, *, now: datetime, random: Callable[[int], bytes]
) -> RootProvider:
    """Make a new root at `uri`, never over an existing one, and open it; see `Opener.create`.

    Call it only where no key-check value exists. `random` is `secrets.token_bytes`.
    """
    opener, rest = _opener(uri)
    return await opener.create(rest, access, now=now, random=random)


async def restore_provider(
    uri: str, access: RootAccess, secrets: Mapping[int, bytes], *, now: datetime
) -> RootProvider:
    """Make a root of the secrets of a backup at `uri`, never over an existing one; see `Opener.restore`."""
    opener, rest = _opener(uri)
    return await opener.restore(rest, access, secrets, now=now)


def _opener(uri: str) -> tuple[Opener, str]:
    # The rest of a URI may hold what is no business of a log: only a known scheme is ever repeated.
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme not in _MODULES:
        raise ConfigurationError(
            "KMS_ROOT_KEY names no known provider",
            remedy="Set it to file:PATH, vault-transit:MOUNT/KEY, vault-kv:MOUNT/PATH or pkcs11:…",
        )
    return cast("Opener", importlib.import_module(_MODULES[scheme]).OPENER), rest
