"""How to get at the root key: what the settings say of passphrases and Vault, made into a `RootAccess`."""

import ipaddress
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from kms import private_files
from kms.errors import ConfigurationError
from kms.keys.root_messages import Mode
from kms.rootkey import RootAccess
from kms.rootkey.vault_access import AppRole, Kubernetes, TokenFile, VaultAccess
from kms.settings import Settings

_CREDENTIAL: Final = "credential:"
_AT_MOST: Final = 4096  # bytes of a passphrase
_LOGINS: Final = (
    "KMS_VAULT_TOKEN_FILE, KMS_VAULT_ROLE_ID with KMS_VAULT_SECRET_ID_FILE, or KMS_VAULT_KUBERNETES_ROLE"
)


def root_access(settings: Settings) -> RootAccess:
    """Give what providers need; nothing of it is read yet.

    Raises:
        ConfigurationError: settings that do not go together, or that would do nothing.

    """
    _refuse_without_effect(settings)
    return RootAccess(
        mode=Mode.DEVELOPMENT if settings.development else Mode.PRODUCTION,
        passphrase=_passphrase(settings.root_key_passphrase_file),
        vault=_vault(settings),
    )


def _refuse_without_effect(settings: Settings) -> None:
    """Refuse what an operator set and would believe in: a passphrase that encrypts nothing, another Vault."""
    scheme = (settings.root_key or "file:").partition(":")[0]
    named = [name for name in Settings.model_fields if name in settings.model_fields_set]
    vault = [name for name in named if name.startswith("vault_")]
    if vault and settings.vault_addr is None:
        raise _without_effect(vault, "KMS_VAULT_ADDR is not set", "set it, or unset them")
    anchored = (settings.ledger_anchor or "").startswith("vault-")
    if vault and not anchored and not scheme.startswith("vault-"):
        raise _without_effect(
            vault,
            "neither KMS_ROOT_KEY nor KMS_LEDGER_ANCHOR is in Vault",
            "set KMS_ROOT_KEY to vault-transit:MOUNT/KEY or vault-kv:MOUNT/PATH, or unset them",
        )
    if settings.root_key_passphrase_file is not None and scheme != "file":
        raise _without_effect(
            ["root_key_passphrase_file"],
            "KMS_ROOT_KEY is no file",
            "only a file: root key is encrypted by us",
        )
    if settings.vault_auth_mount is not None and settings.vault_token_file is not None:
        raise _without_effect(["vault_auth_mount"], "a token is used as it is", f"set one of {_LOGINS}")
    if "vault_kubernetes_token_file" in vault and settings.vault_kubernetes_role is None:
        raise _without_effect(
            ["vault_kubernetes_token_file"], "KMS_VAULT_KUBERNETES_ROLE is not set", "set it, or unset both"
        )


def _without_effect(names: Iterable[str], why: str, remedy: str) -> ConfigurationError:
    listed = ", ".join(f"KMS_{name.upper()}" for name in names)
    return ConfigurationError(f"no effect: {listed}, because {why}", remedy=remedy)


def _passphrase(setting: str | None) -> Callable[[], bytes] | None:
    if setting is None:
        return None
    return lambda: read_passphrase(setting)


def read_passphrase(setting: str) -> bytes:
    """Read a passphrase from ``PATH`` or ``credential:NAME``, without its final line end.

    systemd puts a service's credentials into a folder of its own (systemd.exec(5), LoadCredential=).

    Raises:
        ConfigurationError: it is not there, or others can read it.

    """
    path = Path(setting)
    if setting.startswith(_CREDENTIAL):
        name, folder = setting.removeprefix(_CREDENTIAL), os.environ.get("CREDENTIALS_DIRECTORY")
        if folder is None or not name or "/" in name or name in {".", ".."}:
            raise ConfigurationError(
                "KMS_ROOT_KEY_PASSPHRASE_FILE names a credential, and systemd gave this process none",
                remedy="start the server as a unit with LoadCredential= or LoadCredentialEncrypted=",
            )
        path = Path(folder) / name
    content = private_files.read_secret(path, what="passphrase", at_most=_AT_MOST)
    return bytes(content).removesuffix(b"\n").removesuffix(b"\r")


def _vault(settings: Settings) -> VaultAccess | None:
    if settings.vault_addr is None:
        return None
    _check_address(settings.vault_addr)
    logins: list[TokenFile | AppRole | Kubernetes] = []
    if settings.vault_token_file is not None:
        logins.append(TokenFile(settings.vault_token_file))
    if settings.vault_role_id is not None or settings.vault_secret_id_file is not None:
        if settings.vault_role_id is None or settings.vault_secret_id_file is None:
            raise ConfigurationError("KMS_VAULT_ROLE_ID and KMS_VAULT_SECRET_ID_FILE go together")
        mount = settings.vault_auth_mount or "approle"
        logins.append(AppRole(settings.vault_role_id, settings.vault_secret_id_file, mount))
    if settings.vault_kubernetes_role is not None:
        mount = settings.vault_auth_mount or "kubernetes"
        role, token_file = settings.vault_kubernetes_role, settings.vault_kubernetes_token_file
        logins.append(Kubernetes(role, token_file, mount))
    if len(logins) != 1:
        raise ConfigurationError("KMS_VAULT_ADDR needs one way to log in", remedy=f"set {_LOGINS}")
    return VaultAccess(
        address=settings.vault_addr.rstrip("/"),
        login=logins[0],
        ca=settings.vault_ca,
        namespace=settings.vault_namespace,
        timeout=settings.vault_timeout,
    )


def _check_address(address: str) -> None:
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    plain = parts.scheme == "http" and parts.hostname is not None and _is_loopback(parts.hostname)
    if not parts.hostname or not (parts.scheme == "https" or plain) or port == 0:
        raise ConfigurationError(
            "KMS_VAULT_ADDR is no address of a Vault server", remedy="write https://HOST:PORT"
        )
    if parts.path not in {"", "/"} or parts.query or parts.fragment or parts.username or parts.password:
        raise ConfigurationError("KMS_VAULT_ADDR has more than a scheme, host and port")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name, `localhost` too, is whatever somebody says that it is
