"""A provider's public keys: fetched when they are needed, kept for a while, and followed when they change."""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from kms.errors import Unavailable
from kms.oidc.fetching import NoAnswer, ProviderHttp
from kms.oidc.issuer import Issuer, is_fetchable
from kms.strict_json import JsonValue

_log = structlog.get_logger("kms.oidc")

PublicKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

_FRESH_FOR: Final = 600.0  # seconds
_KEPT_FOR: Final = 24 * 3600.0  # seconds without an answer; then keys that nobody confirms count no more
# Seconds between two requests for keys, whoever asks: strangers can invent key ids as fast as they like.
_AGAIN_AFTER: Final = 30.0
_MOST_KEYS: Final = 100
_RSA_BITS: Final = range(2048, 8192 + 1)
# Which algorithms a key may be used with. Nothing symmetric: a public key must never serve as a secret
# (RFC 8725, section 2.1). PyJWT checks that an elliptic curve is the one of the algorithm.
_RSA: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
ALGORITHMS: Final = _RSA | {"ES256", "ES384", "EdDSA"}


class OidcUnavailable(Unavailable):
    """The provider's keys cannot be had, so its tokens cannot be judged: nobody passes by them meanwhile."""

    code = "oidc-unavailable"


@dataclass(frozen=True, slots=True)
class _Key:
    kid: str
    key: PublicKey
    algorithms: frozenset[str]


class IssuerKeys:
    """The keys of one provider. `monotonic` gives seconds."""

    def __init__(
        self, issuer: Issuer, http: ProviderHttp, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._issuer = issuer
        self._http = http
        self._monotonic = monotonic
        self._keys: tuple[_Key, ...] = ()
        self._fetched = self._asked = -math.inf
        self._fetching = asyncio.Lock()

    async def find(self, kid: str, algorithm: str) -> PublicKey | None:
        """Give the key of this id if it serves this algorithm; None if the provider has none such.

        Raises:
            OidcUnavailable: that cannot be told now.

        """
        if self._age > _FRESH_FOR:
            await self._fetch()
        found = self._lookup(kid, algorithm)
        if found is None:
            # It may have come into use since we looked.
            await self._fetch()
            found = self._lookup(kid, algorithm)
        if found is None and self._age > _KEPT_FOR:
            wait = math.ceil(self._asked + _AGAIN_AFTER - self._monotonic())
            raise OidcUnavailable("the OIDC provider's keys cannot be had", retry_after=max(wait, 1))
        return found

    @property
    def _age(self) -> float:
        return self._monotonic() - self._fetched

    def _lookup(self, kid: str, algorithm: str) -> PublicKey | None:
        if self._age > _KEPT_FOR:
            return None
        fitting = (key.key for key in self._keys if key.kid == kid and algorithm in key.algorithms)
        return next(fitting, None)

    async def _fetch(self) -> None:
        """Ask for the keys, unless somebody just did. After a failure the old ones stay."""
        async with self._fetching:
            now = self._monotonic()
            if now - self._asked < _AGAIN_AFTER:
                return
            self._asked = now
            try:
                self._keys = await self._ask()
            except NoAnswer as failure:
                _log.warning("oidc-keys-not-fetched", kind=failure.kind, keys=len(self._keys))
            else:
                self._fetched = self._monotonic()

    async def _ask(self) -> tuple[_Key, ...]:
        document = await self._http.get(self._issuer.discovery_url)
        if document.get("issuer") != self._issuer.url:
            # Discovery 1.0, section 4.3: else one provider could speak for another.
            raise NoAnswer("other-issuer")
        url = document.get("jwks_uri")
        if not isinstance(url, str) or not is_fetchable(url, plain=self._issuer.plain):
            raise NoAnswer("no-jwks-uri")
        listed = (await self._http.get(url)).get("keys")
        if not isinstance(listed, list):
            raise NoAnswer("no-keys")
        keys = tuple(key for each in listed[:_MOST_KEYS] if (key := _usable(each)) is not None)
        if not keys:
            raise NoAnswer("no-keys")
        return keys


def _usable(jwk: JsonValue) -> _Key | None:
    """Read a JSON Web Key (RFC 7517); None if it is none that verifies signatures of ours."""
    if not isinstance(jwk, dict) or jwk.get("use", "sig") != "sig" or "d" in jwk:
        return None
    kid = jwk.get("kid")
    try:
        key = jwt.PyJWK(jwk).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    algorithms = frozenset(each for each in _algorithms(key) if jwk.get("alg", each) == each)
    if not isinstance(kid, str) or not algorithms:
        return None
    return _Key(kid, key, algorithms)


def _algorithms(key: object) -> frozenset[str]:
    match key:
        case rsa.RSAPublicKey() if key.key_size in _RSA_BITS:
            return _RSA
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1()):
            return frozenset({"ES256"})
        case ec.EllipticCurvePublicKey(curve=ec.SECP384R1()):
            return frozenset({"ES384"})
        case ed25519.Ed25519PublicKey():
            return frozenset({"EdDSA"})
        case _:
            return frozenset()
