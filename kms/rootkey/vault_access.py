"""How to reach a Vault (or OpenBao) server, and as whom: the ``KMS_VAULT_…`` settings, parsed."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A token in a file (0600), read again when it is written anew, and when Vault refuses the one in use."""

    path: Path


@dataclass(frozen=True, slots=True)
class AppRole:
    """AppRole: the role id, and a file (0600) with the secret id."""

    role_id: str
    secret_id_file: Path
    mount: str = "approle"


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """The service account's token (a projected file that is renewed), for a role of Vault's."""

    role: str
    token_file: Path
    mount: str = "kubernetes"


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultAccess:
    """`address` is ``https://HOST:PORT``; `ca` a PEM file, None: the system's; `timeout` is of each call."""

    address: str
    login: TokenFile | AppRole | Kubernetes
    ca: Path | None = None
    namespace: str | None = None
    timeout: timedelta = timedelta(seconds=3)
