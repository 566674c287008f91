"""Everything that can be said of the settings before anything is made on disk.

A start that is refused leaves nothing behind: no fresh root key beside a policy that has errors, no data
folder for a certificate that cannot be loaded.
"""

import ssl
from dataclasses import dataclass
from typing import Final

from kms import vault_anchor
from kms.anchor import Anchor, FileAnchor
from kms.database.engine import check_database_url, sqlite_url
from kms.errors import ConfigurationError
from kms.http.tls import ask_for_certificates, certificate_names, server_context
from kms.oidc import Issuer
from kms.policy.trust import PolicyTrust
from kms.policy_folder.watching import Files, read_policy
from kms.root_access import root_access
from kms.rootkey import RootAccess, check_uri
from kms.settings import Settings
from kms.snp.roots import TrustedRoots
from kms.trust import load_roots

_ROOT_KEY_FILE: Final = "root-key.json"
_ANCHOR_FILE: Final = "anchor.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What the settings name, read and found usable.

    `policy_files` are those of the watched folder, None when there is none. `trust` are the operators whose
    signatures count, and `oidc` is their identity provider, None where there is none. `tls` is the operator's
    certificate, None when the server makes its own.
    """

    database_url: str
    root_key_uri: str
    root_access: RootAccess
    roots: TrustedRoots
    policy_files: Files | None
    trust: PolicyTrust | None
    anchor: Anchor
    oidc: Issuer | None
    tls: ssl.SSLContext | None


def check_settings(settings: Settings, *, serving: bool) -> Checked:
    """Check the settings and what they name; nothing is written.

    What only a server needs is read where one is `serving`: a folder with errors must not keep an operator
    from revoking a chip.

    Raises:
        ConfigurationError: the operator must change something; it says what.

    """
    root_key_uri = settings.root_key or f"file:{settings.data_dir / _ROOT_KEY_FILE}"
    access = root_access(settings)
    check_uri(root_key_uri, access)
    certificate_names(settings.tls_names)
    policy_files = None
    if serving and settings.policy_dir is not None:
        policy_files, _ = read_policy(settings.policy_dir, development=settings.development)
    return Checked(
        database_url=checked_database_url(settings),
        root_key_uri=root_key_uri,
        root_access=access,
        roots=load_roots(settings.development_roots),
        policy_files=policy_files,
        trust=policy_trust(settings),
        anchor=configured_anchor(settings, access),
        oidc=Issuer.configured(
            issuer=settings.oidc_issuer,
            audience=settings.oidc_audience,
            role_claim=settings.oidc_role_claim,
            roles=settings.oidc_roles,
            development=settings.development,
        ),
        tls=_checked_tls(settings) if serving else None,
    )


def checked_database_url(settings: Settings) -> str:
    """Give the URL of the database.

    Raises:
        ConfigurationError: not one that this version supports.

    """
    url = settings.database_url or sqlite_url(settings.data_dir)
    check_database_url(url)
    return url


def policy_trust(settings: Settings) -> PolicyTrust | None:
    """Read the trust file, if there is to be one.

    Raises:
        ConfigurationError: it cannot be read, or makes no sense.

    """
    if settings.policy_trust is None:
        return None
    try:
        return PolicyTrust.parse(settings.policy_trust.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"KMS_POLICY_TRUST: {settings.policy_trust}: {error}") from error


def configured_anchor(settings: Settings, access: RootAccess) -> Anchor:
    """Give where this server keeps what it has used and seen last; whoever uses it closes it.

    Raises:
        ConfigurationError: not a place that it can be kept in.

    """
    scheme, _, rest = (settings.ledger_anchor or "").partition(":")
    if scheme == vault_anchor.SCHEME:
        return vault_anchor.VaultAnchor.from_setting(rest, access)
    return FileAnchor.from_setting(settings.ledger_anchor, settings.data_dir / _ANCHOR_FILE)


def _checked_tls(settings: Settings) -> ssl.SSLContext | None:
    """Give the operator's own certificate; for one that is still to be made, check what goes with it."""
    if settings.tls_cert is None and settings.tls_key is None:
        if settings.operator_ca is not None:
            ask_for_certificates(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), settings.operator_ca)
        return None
    if settings.tls_cert is None or settings.tls_key is None:
        raise ConfigurationError("KMS_TLS_CERT and KMS_TLS_KEY go together: set both or neither")
    return server_context(settings.tls_cert, settings.tls_key, settings.tls_minimum, settings.operator_ca)
