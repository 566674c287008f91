"""Where in Vault something is: what follows ``vault-transit:`` or ``vault-kv:`` in a setting."""

import re
from dataclasses import dataclass
from typing import Final, Self

from kms.errors import ConfigurationError
from kms.https_client import client_context
from kms.rootkey.provider import RootAccess
from kms.rootkey.vault_access import VaultAccess
from kms.rootkey.vault_login import check_credentials

# What Vault takes as the name of a transit key, too. It goes into a URL as it is: no `..`, `%`, `?` or space.
_SEGMENT: Final = re.compile(r"\w(?:[\w.-]*\w)?", re.ASCII)
_AT_MOST: Final = 256  # characters
_ROOT_KEY: Final = "KMS_ROOT_KEY"


@dataclass(frozen=True, slots=True)
class Location:
    """The path of a secrets engine's mount, and the name of something in it."""

    mount: str
    name: str

    @classmethod
    def of_key(cls, rest: str) -> Self:
        """Read ``MOUNT/KEY``: the mount may have slashes. Raises `ConfigurationError`."""
        mount, _, key = _checked(rest, _ROOT_KEY).rpartition("/")
        return cls(mount, key)

    @classmethod
    def of_secret(cls, rest: str, *, setting: str = _ROOT_KEY) -> Self:
        """Read ``MOUNT/PATH``: the path may have slashes. Raises `ConfigurationError`."""
        mount, _, path = _checked(rest, setting).partition("/")
        return cls(mount, path)


def require_vault(access: RootAccess, *, setting: str = _ROOT_KEY) -> VaultAccess:
    """Give how to reach Vault. Raises `ConfigurationError` where nobody said it."""
    if access.vault is None:
        raise ConfigurationError(
            f"{setting} is in Vault, and no Vault is named", remedy="set KMS_VAULT_ADDR and a way to log in"
        )
    return access.vault


def check_vault(access: RootAccess, *, setting: str = _ROOT_KEY) -> None:
    """Check how to reach Vault, without asking it. Raises `ConfigurationError`."""
    vault = require_vault(access, setting=setting)
    if vault.ca is not None:
        client_context(vault.ca)
    check_credentials(vault.login)


def _checked(rest: str, setting: str) -> str:
    segments = rest.split("/")
    wanted = "vault-kv:MOUNT/PATH"
    if setting == _ROOT_KEY:
        wanted = f"vault-transit:MOUNT/KEY or {wanted}"
    if len(segments) < 2 or len(rest) > _AT_MOST or not all(map(_SEGMENT.fullmatch, segments)):
        raise ConfigurationError(
            f"{setting} names no place in Vault",
            remedy=f"write {wanted}, of letters, digits, _ - and .",
        )
    return rest
