"""Entries of the payload that `test_envelope` does not have: what each algorithm's public half is."""

import json
from hashlib import sha256
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from kms.encoding import b64url
from kms.keys import p256
from kms.keys.names import Algorithm, KeyRequest
from kms.keys.released import ReleasedKey, public_half
from kms.strict_json import Fields, JsonError
from tests.unit.keys.test_certificates import CHAIN, POINT

# SEC 2 section 2.4.1: the order and the base point of secp256k1.
K256_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
K256_BASE = bytes.fromhex("0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798")
ONE = (1).to_bytes(32, "big")


def released(name: str, scope: str, value: bytes | None, **members: Any) -> ReleasedKey:
    request = KeyRequest.parse(name, scope)
    algorithm = request.name.algorithm
    public_key = None if value is None else public_half(algorithm, value)
    known = {"epoch": None, "public_key": public_key, **members}
    return ReleasedKey(name=request.name, scope=request.scope, value=value, **known)


def read(entry: dict[str, Any]) -> ReleasedKey:
    return ReleasedKey.read(Fields(json.loads(json.dumps(entry)), "key"))


DSTACK = [
    released("dstack:disk", "instance", ONE),
    released("dstack:env", "app", ONE),
    released("dstack:k256", "app", ONE),
]


@pytest.mark.parametrize("key", DSTACK, ids=lambda key: str(key.name))
def test_a_key_of_dstacks_has_no_epoch(key: ReleasedKey) -> None:
    entry = key.to_json()
    assert entry["epoch"] is None
    assert read(entry) == key
    for wrong in ({**entry, "epoch": 1}, {name: entry[name] for name in entry if name != "epoch"}):
        with pytest.raises(JsonError):
            read(wrong)


def test_public_halves() -> None:
    assert public_half(Algorithm.SYMMETRIC_256, ONE) is None
    assert public_half(Algorithm.SECP256K1, ONE) == K256_BASE
    own = p256.private_key(bytes(48))
    assert public_half(Algorithm.P_256, p256.to_pkcs8(own)) == p256.point_of(own.public_key())
    for algorithm in (Algorithm.X25519, Algorithm.ED25519):
        public_key = public_half(algorithm, ONE)
        assert public_key is not None
        assert len(public_key) == 32


@pytest.mark.parametrize("scalar", [0, K256_ORDER, K256_ORDER + 1, 2**256 - 1])
def test_what_is_no_secp256k1_key_does_not_read(scalar: int) -> None:
    entry = {**DSTACK[2].to_json(), "value": b64url(scalar.to_bytes(32, "big"))}
    with pytest.raises(JsonError):
        read(entry)


def test_the_record_gets_the_certificate_that_was_issued() -> None:
    key = released("tls", "app", None, epoch=3, public_key=POINT, certificate_chain=(*CHAIN,))
    der = x509.load_pem_x509_certificate(CHAIN[0].encode()).public_bytes(Encoding.DER)
    assert key.issued is not None
    assert key.issued.fingerprint == sha256(der).digest()
    assert DSTACK[0].issued is None
