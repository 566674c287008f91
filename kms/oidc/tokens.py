"""From a provider's token (a JWT, RFC 7519) to an actor. What it must be follows RFC 8725 and RFC 9068."""

from typing import Final

import jwt

from kms.administration.authentication import CredentialsNotAccepted
from kms.oidc.issuer import Issuer
from kms.oidc.keys import ALGORITHMS, IssuerKeys, PublicKey
from kms.operators import Actor, Proof
from kms.strict_json import JsonValue

LONGEST: Final = 16 << 10  # characters of a token
_LEEWAY: Final = 60  # seconds that the provider's clock may differ from ours
_REQUIRED: Final = ["iss", "aud", "exp", "iat", "sub"]
_MOST_SUB: Final = 255  # characters: OpenID Connect Core 1.0, section 2
# An ID token says `JWT` or nothing, an access token `at+jwt` or `JWT`. Others (`logout+jwt`, `dpop+jwt`) are
# signed with the same keys for other ends (RFC 8725, section 3.11).
_TYPES: Final = frozenset({"", "jwt", "at+jwt", "application/at+jwt"})


class OidcTokens:
    """Verifies the tokens of one provider."""

    def __init__(self, issuer: Issuer, keys: IssuerKeys) -> None:
        self._issuer = issuer
        self._keys = keys

    async def by_token(self, token: str, client: str) -> Actor:
        """Give the actor of a token; `client` is the address that it came from.

        Raises:
            CredentialsNotAccepted: for one of ``oidc-malformed``, ``oidc-algorithm``, ``oidc-key-unknown``,
                ``oidc-signature``, ``oidc-expired``, ``oidc-not-yet``, ``oidc-audience``, ``oidc-issuer``,
                ``oidc-claims`` and ``oidc-no-role``.
            OidcUnavailable: the provider's keys cannot be had.

        """
        kid, algorithm = _header(token)
        key = await self._keys.find(kid, algorithm)
        if key is None:
            raise CredentialsNotAccepted("oidc-key-unknown")
        claims = self._verified(token, key, algorithm)
        name = claims["sub"]
        if not isinstance(name, str) or not 0 < len(name) <= _MOST_SUB or not name.isprintable():
            raise CredentialsNotAccepted("oidc-claims")
        if "cnf" in claims:
            # Bound to a key of the client's (RFC 7800), of which we ask no proof: stolen, it must not do.
            raise CredentialsNotAccepted("oidc-claims", who=name)
        role = self._issuer.role_of(claims)
        if role is None:
            raise CredentialsNotAccepted("oidc-no-role", who=name)
        # The subject and nothing friendlier: a user may choose `email` or `preferred_username`.
        proof_id = f"{self._issuer.url} {name}"
        return Actor(name=name, role=role, proof=Proof.OIDC, proof_id=proof_id, client=client)

    def _verified(self, token: str, key: PublicKey, algorithm: str) -> dict[str, JsonValue]:
        try:
            return jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._issuer.audience,
                issuer=self._issuer.url,
                leeway=_LEEWAY,
                options={"require": _REQUIRED},
            )
        except jwt.PyJWTError as error:
            raise CredentialsNotAccepted(_why(error)) from None


def _header(token: str) -> tuple[str, str]:
    """Give the key id and the algorithm of a token that is not verified yet."""
    if len(token) > LONGEST:
        raise CredentialsNotAccepted("oidc-malformed")
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError):
        raise CredentialsNotAccepted("oidc-malformed") from None
    kid, algorithm, kind = header.get("kid"), header.get("alg"), header.get("typ", "")
    # `crit` (RFC 7515, section 4.1.11) names what must be understood, and nothing of that kind is.
    if (
        not isinstance(kid, str)
        or not isinstance(kind, str)
        or kind.lower() not in _TYPES
        or "crit" in header
    ):
        raise CredentialsNotAccepted("oidc-malformed")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise CredentialsNotAccepted("oidc-algorithm")
    return kid, algorithm


def _why(error: jwt.PyJWTError) -> str:
    match error:
        case jwt.ExpiredSignatureError():
            return "oidc-expired"
        case jwt.ImmatureSignatureError():
            return "oidc-not-yet"
        case jwt.InvalidAudienceError():
            return "oidc-audience"
        case jwt.InvalidIssuerError():
            return "oidc-issuer"
        case jwt.InvalidSignatureError():
            return "oidc-signature"
        case _:
            return "oidc-claims"
