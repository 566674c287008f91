"""HTTPS to one server that somebody named: its address, the CA that speaks for it, and what TLS said of it.

For guests and for operators, whose secrets go to that server and to nobody else.
"""

import ssl
from pathlib import Path

import httpx2

from kms.errors import ConfigurationError


def https_url(text: str) -> httpx2.URL:
    """Read a server's address: HTTPS, without user, query or fragment.

    Raises:
        ConfigurationError: anything else.

    """
    remedy = "write https://HOST:PORT"
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL:
        raise ConfigurationError("the server's address is not a URL", remedy=remedy) from None
    if url.scheme != "https" or not url.host or url.userinfo or url.query or url.fragment:
        raise ConfigurationError("the server's address is not plain HTTPS", remedy=remedy)
    return url


def client_context(ca_file: Path | None) -> ssl.SSLContext:
    """Make a client's TLS context that trusts one CA (PEM), or the system's where None is given.

    Raises:
        ConfigurationError: the file cannot be used.

    """
    try:
        # With a file, nothing else is loaded: no public CA can speak for this server.
        return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"the CA file {ca_file} cannot be used: {error.strerror or error}", remedy="it must be PEM"
        ) from error


def certificate_fault(error: BaseException) -> str | None:
    """Tell a certificate that does not verify, which no retry will change, from a network that fails."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message or "it does not verify"
        cause = cause.__cause__ or cause.__context__
    return None
