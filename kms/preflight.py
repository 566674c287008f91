"""Everything that can be said of the settings before anything is made on disk.

A start that is refused leaves nothing behind: no fresh root key beside a policy that has errors, no data
folder for a certificate that cannot be loaded.
"""

import ssl
from dataclasses import dataclass
from typing import Final

from kms.database.engine import check_database_url, sqlite_url
from kms.errors import ConfigurationError
from kms.http.tls import certificate_names, server_context
from kms.policy_folder.watching import Files, read_policy
from kms.rootkey import check_uri
from kms.settings import Settings
from kms.snp.roots import TrustedRoots
from kms.trust import load_roots

_ROOT_KEY_FILE: Final = "root-key.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What the settings name, read and found usable.

    `policy_files` are those of the watched folder, None when there is none. `tls` is the operator's
    certificate, None when the server makes its own.
    """

    database_url: str
    root_key_uri: str
    roots: TrustedRoots
    policy_files: Files | None
    tls: ssl.SSLContext | None


def check_settings(settings: Settings) -> Checked:
    """Check the settings and what they name; nothing is written.

    Raises:
        ConfigurationError: the operator must change something; it says what.

    """
    _refuse_unbuilt(settings)
    root_key_uri = settings.root_key or f"file:{settings.data_dir / _ROOT_KEY_FILE}"
    check_uri(root_key_uri)
    certificate_names(settings.tls_names)
    policy_files = None
    if settings.policy_dir is not None:
        policy_files, _ = read_policy(settings.policy_dir, development=settings.development)
    return Checked(
        database_url=checked_database_url(settings),
        root_key_uri=root_key_uri,
        roots=load_roots(settings.development_roots),
        policy_files=policy_files,
        tls=_operators_tls(settings),
    )


def checked_database_url(settings: Settings) -> str:
    """Give the URL of the database.

    Raises:
        ConfigurationError: not one that this version supports.

    """
    url = settings.database_url or sqlite_url(settings.data_dir)
    check_database_url(url)
    return url


def _operators_tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls_cert is None and settings.tls_key is None:
        return None
    if settings.tls_cert is None or settings.tls_key is None:
        raise ConfigurationError("KMS_TLS_CERT and KMS_TLS_KEY go together: set both or neither")
    return server_context(settings.tls_cert, settings.tls_key, settings.tls_minimum)


def _refuse_unbuilt(settings: Settings) -> None:
    """Refuse settings that would promise a protection which this version does not have."""
    if settings.policy_trust is not None:
        raise ConfigurationError("KMS_POLICY_TRUST: this version does not check signatures of policies yet")
    if settings.workers != 1:
        raise ConfigurationError("KMS_WORKERS: this version runs one server process")
    if settings.ledger_anchor is not None:
        raise ConfigurationError("KMS_LEDGER_ANCHOR: this version keeps no anchor outside the database yet")
