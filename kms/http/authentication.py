"""From a request to the operator who makes it: a token, or else a client certificate."""

from collections.abc import Callable
from typing import Final, Protocol

import structlog
from starlette.requests import Request

from kms.administration.authentication import Authentication, CredentialsNotAccepted
from kms.administration.token import PREFIX
from kms.errors import Unauthenticated, Unavailable
from kms.http.client_certificates import ClientCertificate, client_certificate
from kms.http.limits import AddressLimiter
from kms.operators import Actor
from kms.ports import Clock

_log = structlog.get_logger("kms.operators")

_FAILURES_PER_SECOND: Final = 5
_FAILURES_AT_ONCE: Final = 20


class ForeignTokens(Protocol):
    """Verifies tokens that are not ours."""

    async def by_token(self, token: str, client: str) -> Actor:
        """Give the actor of a token.

        Raises:
            CredentialsNotAccepted: the token gives nobody access.
            Unavailable: that cannot be told now.

        """
        ...


class TooManyFailures(Unavailable):
    """This address has shown credentials that are not accepted too often."""

    code = "rate-limited"


class RequestAuthentication:
    """Knows who makes a request. `oidc` is None where no provider is configured.

    What fails is counted for each network address, and beyond 20 at once, or 5 a second, nothing of it is
    looked at any more: so nobody can guess, or make us verify signatures for ever.
    """

    def __init__(
        self,
        authentication: Authentication,
        *,
        oidc: ForeignTokens | None,
        clock: Clock,
        monotonic: Callable[[], float],
    ) -> None:
        self._authentication = authentication
        self._oidc = oidc
        self._clock = clock
        self._failures = AddressLimiter(_FAILURES_PER_SECOND, _FAILURES_AT_ONCE, monotonic)

    async def __call__(self, request: Request) -> Actor:
        """Give the actor. Credentials in the header decide, whatever certificate there is.

        Raises:
            Unauthenticated: there are no credentials, or none that are accepted.
            TooManyFailures: too many were not, lately.
            Unavailable: the register, or the provider's keys, cannot be had.

        """
        client = request.client.host if request.client else "unknown"
        headers = request.headers.getlist("authorization")
        certificate = client_certificate(request.scope)
        if not headers and certificate is None:
            raise Unauthenticated("a token or a client certificate is needed", reason="credentials-missing")
        wait = self._failures.retry_after(client)
        # Our own tokens cost one look-up, and nobody guesses 256 bits; certificates were verified by TLS.
        # These are always looked at: nobody can lock out the operators who share an address with him.
        if wait is not None and headers and not _is_our_token(headers):
            raise TooManyFailures("too many failed attempts", retry_after=int(wait) + 1)
        try:
            actor = await self._identify(headers, certificate, client)
        except CredentialsNotAccepted as refused:
            _log.warning("operator-not-authenticated", why=refused.why, who=refused.who, client=client)
            raise
        except Unavailable:
            self._give_back(client, wait)
            raise
        self._give_back(client, wait)
        return actor

    def _give_back(self, client: str, wait: float | None) -> None:
        if wait is None:
            self._failures.give_back(client)

    async def _identify(
        self, headers: list[str], certificate: ClientCertificate | None, client: str
    ) -> Actor:
        if certificate is None or headers:
            return await self._by_token(headers, client)
        if not certificate.is_valid_at(self._clock()):
            raise CredentialsNotAccepted("certificate-outlived", who=certificate.subject)
        return await self._authentication.by_certificate(certificate.subject, client)

    async def _by_token(self, headers: list[str], client: str) -> Actor:
        scheme, _, token = headers[0].partition(" ")
        if len(headers) != 1 or scheme.lower() != "bearer":
            raise CredentialsNotAccepted("header-malformed")
        token = token.strip(" ")
        if token.startswith(PREFIX):
            return await self._authentication.by_token(token, client)
        if self._oidc is None:
            raise CredentialsNotAccepted("token-malformed")
        return await self._oidc.by_token(token, client)


def _is_our_token(headers: list[str]) -> bool:
    return len(headers) == 1 and headers[0].partition(" ")[2].strip(" ").startswith(PREFIX)
