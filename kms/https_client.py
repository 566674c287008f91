"""HTTPS to one server that somebody named: its address, its CA, what TLS said of it, and what time it has.

For guests and for operators, whose secrets go to that server and to nobody else.
"""

import ssl
from email.utils import parsedate_to_datetime
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
        plain = url.scheme == "https" and url.host and not (url.userinfo or url.query or url.fragment)
        # As the resolver will: a name that it cannot take would be tried again until the deadline.
        url.raw_host.decode("ascii").encode("idna")
    except (httpx2.InvalidURL, UnicodeError):
        raise ConfigurationError("the server's address is not a URL", remedy=remedy) from None
    if not plain:
        raise ConfigurationError("the server's address is not plain HTTPS", remedy=remedy)
    return url


def client_context(ca_file: Path | None) -> ssl.SSLContext:
    """Make a client's TLS context that trusts one CA (PEM), or the system's where None is given.

    Raises:
        ConfigurationError: the file cannot be used.

    """
    # Not `ssl.create_default_context`: it would write every session's secrets to the file that the
    # environment names (SSLKEYLOGFILE), which may be on a disk of the host's.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # asks for a certificate, and for its name
    try:
        if ca_file is None:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        else:
            # With a file, nothing else is loaded: no public CA can speak for this server.
            context.load_verify_locations(ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"the CA file {ca_file} cannot be used: {error.strerror or error}", remedy="it must be PEM"
        ) from error
    return context


def certificate_fault(error: BaseException) -> str | None:
    """Tell a certificate that does not verify, which no retry will change, from a network that fails."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message or "it does not verify"
        cause = cause.__cause__ or cause.__context__
    return None


def seconds_ahead(date: str | None, now: float) -> float | None:
    """Say how far a server's clock is before ours, `now` (seconds since 1970), by the `Date` of its answer.

    None where it says no time. An HTTP date is cut to whole seconds (RFC 9110, section 5.6.7).
    """
    try:
        theirs = parsedate_to_datetime(date or "")
    except (ValueError, OverflowError):
        return None
    return None if theirs.tzinfo is None else theirs.timestamp() + 0.5 - now
