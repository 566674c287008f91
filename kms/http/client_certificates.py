"""Client certificates that TLS has verified, on their way to the application.

They travel as ASGI's TLS extension says (asgi.readthedocs.io/en/latest/specs/tls.html), which uvicorn does
not implement. A proxy in front of the server would end TLS, and no header is ever believed in its place.
"""

import ssl
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from starlette.types import Scope

_VERSIONS: Final = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """A verified certificate: the RFC 4514 string of its subject, and when it is valid."""

    subject: str
    not_before: datetime
    not_after: datetime

    def is_valid_at(self, now: datetime) -> bool:
        """Say whether it is valid now; TLS asked that only when the session began."""
        return self.not_before <= now <= self.not_after


def tls_extension(connection: ssl.SSLObject | None) -> dict[object, object] | None:
    """Give ``scope["extensions"]["tls"]`` of a connection after its handshake; None without TLS."""
    if connection is None:
        return None
    # With `ssl.CERT_OPTIONAL` there is one only if it was verified; else the handshake has failed.
    der = connection.getpeercert(binary_form=True)
    subject = None if der is None else _subject(der)
    return {
        "server_cert": None,
        "client_cert_chain": [] if der is None or subject is None else [ssl.DER_cert_to_PEM_cert(der)],
        "client_cert_name": subject,
        "client_cert_error": None,
        "tls_version": _VERSIONS.get(connection.version() or ""),
        "cipher_suite": None,
    }


def client_certificate(scope: Scope) -> ClientCertificate | None:
    """Give the verified certificate of a request's client; None if it showed none."""
    tls = scope.get("extensions", {}).get("tls", {})
    if not tls.get("client_cert_chain"):
        return None
    certificate = x509.load_pem_x509_certificate(tls["client_cert_chain"][0].encode("ascii"))
    return ClientCertificate(
        tls["client_cert_name"], certificate.not_valid_before_utc, certificate.not_valid_after_utc
    )


def _subject(der: bytes) -> str | None:
    try:
        return x509.load_der_x509_certificate(der).subject.rfc4514_string()
    except ValueError:
        return None  # what OpenSSL reads and this library does not: it names nobody
