"""Tokens of a provider: what is accepted, and every way in which one is not."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kms.administration.authentication import CredentialsNotAccepted
from kms.oidc import open_oidc
from kms.oidc.fetching import ProviderHttp
from kms.oidc.keys import IssuerKeys, OidcUnavailable
from kms.oidc.tokens import OidcTokens
from kms.operators import Actor, Proof, Role
from tests.unit.oidc.provider import (
    DISCOVERY,
    ED25519_KEY,
    KEYS,
    OTHER_RSA_KEY,
    P256_KEY,
    P384_KEY,
    RSA_KEY,
    Provider,
    jwk,
    running_provider,
)

pytestmark = pytest.mark.enable_socket

CLIENT = "192.0.2.7"
HOUR = 3600.0


@pytest.fixture(scope="module")
def running() -> Iterator[Provider]:
    with running_provider() as provider:
        yield provider


@pytest.fixture
def provider(running: Provider) -> Provider:
    running.publish(jwk(RSA_KEY, "one"))
    running.asked.clear()
    running.pause = 0.0
    return running


@dataclass
class Verifier:
    """A verification of the provider's tokens whose time passes only when it is told."""

    provider: Provider
    http: ProviderHttp
    elapsed: float = 1000.0
    tokens: OidcTokens = field(init=False)

    def __post_init__(self) -> None:
        issuer = self.provider.issuer()
        keys = IssuerKeys(issuer, self.http, monotonic=lambda: self.elapsed)
        self.tokens = OidcTokens(issuer, keys)

    async def accepts(self, token: str) -> Actor:
        return await self.tokens.by_token(token, CLIENT)

    async def why_not(self, token: str) -> str:
        with pytest.raises(CredentialsNotAccepted) as refused:
            await self.tokens.by_token(token, CLIENT)
        assert refused.value.reason == "credentials-not-accepted"
        return refused.value.why

    @property
    def fetches(self) -> int:
        return self.provider.asked.count(DISCOVERY)


@pytest.fixture
async def verifier(provider: Provider) -> AsyncIterator[Verifier]:
    http = ProviderHttp()
    yield Verifier(provider, http)
    await http.close()


async def test_a_good_token_gives_its_subject_and_role(provider: Provider) -> None:
    async with open_oidc(provider.issuer()) as tokens:
        token = provider.token(email="root@example", preferred_username="root", name="root")
        assert await tokens.by_token(token, CLIENT) == Actor(
            name="alice",
            role=Role.OPERATOR,
            proof=Proof.OIDC,
            proof_id=f"{provider.url} alice",
            client=CLIENT,
        )


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        *((RSA_KEY, algorithm) for algorithm in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
        (P256_KEY, "ES256"),
        (P384_KEY, "ES384"),
        (ED25519_KEY, "EdDSA"),
    ],
)
async def test_the_usual_algorithms_are_taken(verifier: Verifier, key: Any, algorithm: str) -> None:
    verifier.provider.publish(jwk(key, "one"))
    assert (await verifier.accepts(verifier.provider.token(key, algorithm))).name == "alice"


def forged(header: dict[str, Any], claims: dict[str, Any], secret: bytes | None) -> str:
    """Make a token without any library's scruples."""
    parts = [base64.urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=") for each in (header, claims)]
    signed = b".".join(parts)
    mac = b"" if secret is None else hmac.new(secret, signed, hashlib.sha256).digest()
    return (signed + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()


def claims_of(provider: Provider) -> dict[str, Any]:
    decoded: dict[str, Any] = jwt.decode(provider.token(), options={"verify_signature": False})
    return decoded


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", "HS256", "HS512", "ES512", "RS1"])
async def test_no_token_says_how_little_will_do(verifier: Verifier, algorithm: str) -> None:
    token = forged({"alg": algorithm, "kid": "one"}, claims_of(verifier.provider), None)
    assert await verifier.why_not(token) == "oidc-algorithm"
    assert verifier.fetches == 0


async def test_the_public_key_is_no_secret(verifier: Verifier) -> None:
    public = RSA_KEY.public_key()
    secrets = [
        public.public_bytes(each, PublicFormat.SubjectPublicKeyInfo) for each in (Encoding.PEM, Encoding.DER)
    ]
    for secret in (*secrets, public.public_bytes(Encoding.PEM, PublicFormat.PKCS1), b""):
        for algorithm in ("HS256", "RS256"):
            token = forged({"alg": algorithm, "kid": "one"}, claims_of(verifier.provider), secret)
            assert await verifier.why_not(token) in {"oidc-algorithm", "oidc-signature"}


async def test_a_key_is_used_with_its_own_algorithms_only(verifier: Verifier) -> None:
    provider = verifier.provider
    provider.publish(jwk(RSA_KEY, "one", alg="PS256"), jwk(P384_KEY, "two"))
    assert (await verifier.accepts(provider.token(algorithm="PS256"))).name == "alice"
    assert await verifier.why_not(provider.token(algorithm="RS256")) == "oidc-key-unknown"
    token = forged({"alg": "ES256", "kid": "two"}, claims_of(provider), b"x")
    assert await verifier.why_not(token) == "oidc-key-unknown"


async def test_keys_that_do_not_verify_are_left_out(verifier: Verifier) -> None:
    provider = verifier.provider
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505 -- to be refused
    unusable: list[Any] = [
        {"kty": "oct", "kid": "one", "k": "AAAA"},
        jwk(RSA_KEY, "one", use="enc"),
        jwk(RSA_KEY, "one", alg="RSA-OAEP"),
        jwk(RSA_KEY, "one", alg=["RS256"]),
        jwk(RSA_KEY, "one", d="AQAB"),
        jwk(RSA_KEY, None),
        jwk(RSA_KEY, "one", n="!"),
        jwk(weak, "one"),
        {"kty": "EC", "kid": "one", "crv": "secp256k1", "x": "AA", "y": "AA"},
        {"kty": "RSA", "kid": 1},
        {},
        [],
        "one",
        None,
    ]
    provider.publish(*unusable, jwk(OTHER_RSA_KEY, "two"))
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        weakly_signed = provider.token(weak)
    for token in (provider.token(), weakly_signed):
        assert await verifier.why_not(token) == "oidc-key-unknown"
    assert (await verifier.accepts(provider.token(OTHER_RSA_KEY, headers={"kid": "two"}))).name == "alice"


NOW = int(time.time())
WRONG_CLAIMS: list[tuple[dict[str, Any], str]] = [
    ({"iss": "https://other.example"}, "oidc-issuer"),
    ({"iss": None}, "oidc-claims"),
    ({"aud": "another-service"}, "oidc-audience"),
    ({"aud": []}, "oidc-claims"),
    ({"aud": ["a", "b"]}, "oidc-audience"),
    ({"aud": {"attested-kms": 1}}, "oidc-audience"),
    ({"aud": None}, "oidc-claims"),
    ({"exp": NOW - 3600}, "oidc-expired"),
    ({"exp": 0}, "oidc-expired"),
    ({"exp": "soon"}, "oidc-claims"),
    ({"exp": None}, "oidc-claims"),
    ({"exp": float("inf")}, "oidc-claims"),
    ({"nbf": NOW + 7200}, "oidc-not-yet"),
    ({"nbf": "later"}, "oidc-claims"),
    ({"iat": NOW + 7200}, "oidc-not-yet"),
    ({"iat": None}, "oidc-claims"),
    ({"iat": []}, "oidc-claims"),
    ({"sub": None}, "oidc-claims"),
    ({"sub": ""}, "oidc-claims"),
    ({"sub": "a" * 256}, "oidc-claims"),
    ({"sub": "a\x1b[2J"}, "oidc-claims"),
    ({"cnf": {"jkt": "thumbprint"}}, "oidc-claims"),
    ({"kms_roles": None}, "oidc-no-role"),
    ({"kms_roles": ["somebody-elses-role"]}, "oidc-no-role"),
]


@pytest.mark.parametrize(("claims", "why"), WRONG_CLAIMS, ids=range(len(WRONG_CLAIMS)))
async def test_a_signed_token_must_also_be_meant_for_us_and_now(
    verifier: Verifier, claims: dict[str, Any], why: str
) -> None:
    assert await verifier.why_not(verifier.provider.token(**claims)) == why


async def test_an_issuer_with_another_ending_is_another_issuer(verifier: Verifier) -> None:
    for suffix in ("/", "#", "?", " "):
        token = verifier.provider.token(iss=verifier.provider.url + suffix)
        assert await verifier.why_not(token) == "oidc-issuer"


async def test_clocks_may_differ_by_a_minute(verifier: Verifier) -> None:
    provider, now = verifier.provider, int(time.time())
    for claims in (
        {"exp": now - 30},
        {"iat": now + 30},
        {"nbf": now + 30},
        {"aud": ["other", "attested-kms"]},
    ):
        assert (await verifier.accepts(provider.token(**claims))).name == "alice"
    assert await verifier.why_not(provider.token(exp=now - 90)) == "oidc-expired"
    assert await verifier.why_not(provider.token(iat=now + 90)) == "oidc-not-yet"


async def test_a_signature_of_another_key_or_over_other_claims_fails(verifier: Verifier) -> None:
    provider = verifier.provider
    assert await verifier.why_not(provider.token(OTHER_RSA_KEY)) == "oidc-signature"
    header, _, signature = provider.token().split(".")
    _, other, _ = provider.token(sub="root", kms_roles=["kms-admins"]).split(".")
    assert await verifier.why_not(f"{header}.{other}.{signature}") == "oidc-signature"


HEADERS = [
    {"kid": None},
    {"kid": 5},
    {"typ": "logout+jwt"},
    {"typ": "dpop+jwt"},
    {"typ": 5},
    {"crit": ["exp"], "exp": 1},
    {"crit": ["b64"], "b64": True},
    {"crit": []},
]


@pytest.mark.parametrize("header", HEADERS, ids=str)
async def test_headers_that_ask_for_more_than_we_know_are_refused(
    verifier: Verifier, header: dict[str, Any]
) -> None:
    made = {"alg": "RS256", "kid": "one", **header}
    token = forged({name: value for name, value in made.items() if value is not None}, {}, b"x")
    assert await verifier.why_not(token) == "oidc-malformed"
    assert verifier.fetches == 0


@pytest.mark.parametrize("typ", ["JWT", "at+jwt", "application/at+jwt", "AT+JWT"])
async def test_the_types_of_access_and_id_tokens_are_taken(verifier: Verifier, typ: str) -> None:
    assert (await verifier.accepts(verifier.provider.token(headers={"typ": typ}))).name == "alice"


def text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


GOOD_HEADER = text(b'{"alg":"RS256","kid":"one"}')
NOT_TOKENS = [
    "",
    ".",
    "..",
    "a.b.c",
    "....",
    "\ud800.a.b",
    "\u00e9.\u00e9.\u00e9",
    text(b"[" * 9000) + ".e30.AA",
    text(b"{}") + ".e30.AA",
    text(b"[]") + ".e30.AA",
    text(b"5") + ".e30.AA",
    text(bytes(range(256))) + ".e30.AA",
    text(b'{"alg":[],"kid":"one"}') + ".e30.AA",
    text(b'{"alg":1e999,"kid":"one"}') + ".e30.AA",
    text(b'{"alg":"RS256","kid":"one","b64":false}') + "..AA",
    f"{GOOD_HEADER}.{text(b'[' * 9000)}.AA",
    f"{GOOD_HEADER}.e30.",
    f"{GOOD_HEADER}.e30.{'A' * 8000}",
    "a" * 16385,
    "a" * (1 << 20),
]


@pytest.mark.parametrize("token", NOT_TOKENS, ids=range(len(NOT_TOKENS)))
async def test_whatever_a_stranger_sends_is_refused_and_nothing_worse(verifier: Verifier, token: str) -> None:
    assert (await verifier.why_not(token)).startswith("oidc-")


async def test_a_huge_token_is_not_even_parsed(verifier: Verifier) -> None:
    token = verifier.provider.token(padding="a" * 16384)
    assert await verifier.why_not(token) == "oidc-malformed"
    assert verifier.fetches == 0


async def test_keys_are_asked_for_once_in_ten_minutes(verifier: Verifier) -> None:
    token = verifier.provider.token()
    for _ in range(5):
        await verifier.accepts(token)
        verifier.elapsed += 119
    assert verifier.fetches == 1
    verifier.elapsed += 10
    await verifier.accepts(token)
    assert verifier.provider.asked == [DISCOVERY, KEYS] * 2


async def test_many_at_once_ask_once(verifier: Verifier) -> None:
    verifier.provider.pause = 0.05
    token = verifier.provider.token()
    await asyncio.gather(*(verifier.accepts(token) for _ in range(20)))
    assert verifier.provider.asked == [DISCOVERY, KEYS]


async def test_a_new_key_is_followed(verifier: Verifier) -> None:
    provider = verifier.provider
    await verifier.accepts(provider.token())
    provider.publish(jwk(OTHER_RSA_KEY, "two"))
    rotated = provider.token(OTHER_RSA_KEY, headers={"kid": "two"})
    verifier.elapsed += 31
    assert (await verifier.accepts(rotated)).name == "alice"
    assert await verifier.why_not(provider.token()) == "oidc-key-unknown"


async def test_a_storm_of_unknown_key_ids_asks_twice_a_minute(verifier: Verifier) -> None:
    await verifier.accepts(verifier.provider.token())
    for number in range(60):
        verifier.elapsed += 1
        storm = [forged({"alg": "RS256", "kid": f"{number}-{each}"}, {}, b"x") for each in range(5)]
        refused = await asyncio.gather(*(verifier.why_not(token) for token in storm))
        assert set(refused) == {"oidc-key-unknown"}
    assert verifier.fetches == 3


async def test_a_provider_that_is_down_lets_nobody_pass(verifier: Verifier) -> None:
    verifier.provider.fail()
    for _ in range(3):
        with pytest.raises(OidcUnavailable) as unavailable:
            await verifier.accepts(verifier.provider.token())
        assert unavailable.value.reason == "oidc-unavailable"
        assert unavailable.value.retry_after == 30
    assert verifier.fetches == 1
    verifier.provider.publish(jwk(RSA_KEY, "one"))
    verifier.elapsed += 30
    assert (await verifier.accepts(verifier.provider.token())).name == "alice"


async def test_known_keys_outlive_an_outage_of_a_day(verifier: Verifier) -> None:
    provider = verifier.provider
    await verifier.accepts(provider.token())
    provider.fail()
    for _ in range(23):
        verifier.elapsed += HOUR
        assert (await verifier.accepts(provider.token())).name == "alice"
    assert verifier.fetches == 24
    verifier.elapsed += HOUR + 1
    with pytest.raises(OidcUnavailable):
        await verifier.accepts(provider.token())


async def test_an_unknown_key_id_in_an_outage_is_refused_by_what_is_known(verifier: Verifier) -> None:
    provider = verifier.provider
    await verifier.accepts(provider.token())
    provider.fail()
    verifier.elapsed += HOUR
    assert await verifier.why_not(provider.token(headers={"kid": "two"})) == "oidc-key-unknown"


GOOD_KEYS = (200, json.dumps({"keys": [jwk(RSA_KEY, "one")]}).encode())


@pytest.mark.parametrize(
    ("document", "keys"),
    [
        ({"issuer": "https://other.example"}, GOOD_KEYS),
        ({"issuer": None}, GOOD_KEYS),
        ({"jwks_uri": None}, GOOD_KEYS),
        ({"jwks_uri": 5}, GOOD_KEYS),
        ({"jwks_uri": "file:///etc/passwd"}, GOOD_KEYS),
        ({"jwks_uri": "http://192.0.2.1/keys"}, GOOD_KEYS),
        ({"jwks_uri": "http://[::1"}, GOOD_KEYS),
        ({}, 404),
        ({}, 302),
        ({}, 204),
        ({}, (200, b"")),
        ({}, (200, b"{")),
        ({}, (200, b"[]")),
        ({}, (200, b"[" * 100_000)),
        ({}, (200, b'{"keys": {}}')),
        ({}, (200, b'{"keys": []}')),
        ({}, (200, GOOD_KEYS[1] + b" " * (256 << 10))),
    ],
)
async def test_what_a_provider_may_answer_wrongly(
    verifier: Verifier, document: dict[str, Any], keys: tuple[int, bytes] | int
) -> None:
    verifier.provider.publish(jwk(RSA_KEY, "one"), **document)
    verifier.provider.answers[KEYS] = keys
    with pytest.raises(OidcUnavailable):
        await verifier.accepts(verifier.provider.token())
    assert "/elsewhere" not in verifier.provider.asked


async def test_a_provider_that_does_not_answer_in_time(
    verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kms.oidc.fetching._DEADLINE", 0.05)
    verifier.provider.pause = 0.3
    with pytest.raises(OidcUnavailable):
        await verifier.accepts(verifier.provider.token())
