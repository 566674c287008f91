"""Who is asking: from a token or a verified client certificate to an actor.

Every refusal looks the same from outside: whether a token is unknown, expired or revoked helps only whoever
tries tokens.
"""

import hmac
from dataclasses import dataclass
from typing import Final

from kms.administration.register import Operator, Register, Standing
from kms.administration.token import OperatorToken
from kms.errors import Unauthenticated
from kms.operators import Actor, Proof
from kms.ports import Clock

NOT_ACCEPTED: Final = "credentials-not-accepted"
_NO_HASH: Final = "0" * 64


class CredentialsNotAccepted(Unauthenticated):
    """The credentials give nobody access here.

    `why` is the reason for the log (``token-expired``) and `who` the operator's name or the certificate's
    subject, where one is known. Neither is in what a stranger is told.
    """

    def __init__(self, why: str, *, who: str | None = None) -> None:
        super().__init__("the credentials are not accepted", reason=NOT_ACCEPTED)
        self.why = why
        self.who = who


@dataclass(frozen=True, slots=True, kw_only=True)
class Authentication:
    """Knows the register of operators."""

    register: Register
    clock: Clock

    async def by_token(self, token: str, client: str) -> Actor:
        """Give the actor of a token; `client` is the address that it came from.

        Raises:
            CredentialsNotAccepted: for one of ``token-malformed``, ``token-unknown``, ``token-expired`` and
                ``token-revoked``.
            LedgerUnavailable: the register did not answer.

        """
        try:
            shown = OperatorToken.parse(token)
        except ValueError:
            raise CredentialsNotAccepted("token-malformed") from None
        operator = await self.register.by_token_id(shown.token_id)
        # An unknown id takes the same way as a wrong secret, and the comparison tells nothing by its time.
        wanted = (operator and operator.token_hash) or _NO_HASH
        if not hmac.compare_digest(shown.hash, wanted) or operator is None:
            raise CredentialsNotAccepted("token-unknown")
        return await self._actor(operator, Proof.TOKEN, shown.token_id, client)

    async def by_certificate(self, subject: str, client: str) -> Actor:
        """Give the actor of a client certificate that TLS has verified, by its subject (RFC 4514).

        Raises:
            CredentialsNotAccepted: for one of ``certificate-unknown``, ``certificate-expired`` (here: the
                operator's access) and ``certificate-revoked``.
            LedgerUnavailable: the register did not answer.

        """
        operator = await self.register.by_subject(subject)
        if operator is None:
            raise CredentialsNotAccepted("certificate-unknown", who=subject)
        return await self._actor(operator, Proof.CERTIFICATE, subject, client)

    async def _actor(self, operator: Operator, proof: Proof, proof_id: str, client: str) -> Actor:
        standing = operator.standing(self.clock())
        if standing is not Standing.ACTIVE:
            raise CredentialsNotAccepted(f"{proof}-{standing}", who=operator.name)
        await self.register.touch(operator)
        return Actor(name=operator.name, role=operator.role, proof=proof, proof_id=proof_id, client=client)
