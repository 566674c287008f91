"""The certificate that guests are shown: how long it is good, and for which names."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from kms.findings import Finding, failed, ok, unknown, warning
from kms.http.tls import certificate_names
from kms.settings import Settings

_SOON: Final = timedelta(days=30)


def certificates(settings: Settings, path: Path, key: Path, now: datetime) -> Iterator[Finding]:
    """Look at the certificate in `path`, the server's first."""
    own = settings.tls_cert is not None
    if not path.exists() and not own:
        yield unknown("tls-certificate", f"{path} is not there: the server makes it when it starts")
        return
    try:
        certificate = x509.load_pem_x509_certificates(path.read_bytes())[0]
    except (OSError, ValueError) as error:
        yield failed("tls-certificate", f"{path} cannot be read: {error}", "it must be a PEM chain")
        return
    yield _life(certificate, own=own, now=now)
    yield _names(certificate, settings)
    yield _pair(certificate, key)


def _life(certificate: x509.Certificate, *, own: bool, now: datetime) -> Finding:
    name, end = "tls-certificate", certificate.not_valid_after_utc
    remedy = "renew it, and" if own else "the server makes a new one:"
    remedy += " start the server again"
    if now < certificate.not_valid_before_utc:
        begin = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M}"
        return failed(name, f"it is valid only from {begin} UTC", "is this machine's clock right?")
    if end <= now:
        return failed(name, f"it ended on {end:%Y-%m-%d %H:%M} UTC: no guest takes it", remedy)
    if end - now < _SOON:
        return warning(name, f"it ends on {end:%Y-%m-%d %H:%M} UTC, in {(end - now).days} days", remedy)
    return ok(name, f"it is good until {end:%Y-%m-%d}")


def _names(certificate: x509.Certificate, settings: Settings) -> Finding:
    name = "tls-names"
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return failed(name, "the certificate names no host", "have one made with subjectAltName")
    has = sorted(str(each.value) for each in extension.value)
    missing = sorted(set(certificate_names(settings.tls_names)) - set(has))
    if missing:
        return warning(
            name,
            f"the certificate is not for {', '.join(missing)}",
            "start the server again, or have your certificate made with the names of KMS_TLS_NAMES",
        )
    return ok(name, f"the certificate is for {', '.join(has)}")


def _pair(certificate: x509.Certificate, key: Path) -> Finding:
    name, remedy = "tls-pair", "name the key that the certificate was made for, in PEM without a passphrase"
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        return failed(name, f"the key {key} cannot be loaded ({type(error).__name__})", remedy)
    if private.public_key() != certificate.public_key():
        return failed(name, f"{key} is not the key of the certificate", remedy)
    return ok(name, "the key is the certificate's")
