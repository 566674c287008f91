"""What is remembered of signatures and certificates, and that a stranger cannot make it say anything."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kms.errors import MalformedEvidence
from kms.simulator.chip import SimulatedChip
from kms.snp import endorsement, signatures
from kms.snp.endorsement import load_der
from kms.snp.signatures import is_signature

SIGNED = b"signed"


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    signatures._require_signature.cache_clear()
    endorsement._parse_once.cache_clear()
    yield
    signatures._require_signature.cache_clear()


def spki(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def sign(key: rsa.RSAPrivateKey, salt: int = 48) -> bytes:
    return key.sign(SIGNED, padding.PSS(padding.MGF1(SHA384()), salt), SHA384())


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def test_a_good_signature_is_remembered_and_a_bad_one_never(key: rsa.RSAPrivateKey) -> None:
    signature = sign(key)
    remembered = signatures._require_signature.cache_info
    for _ in range(3):
        assert not is_signature(spki(key), SIGNED + b"!", signature)
        assert not is_signature(spki(key), SIGNED, signature[:-1] + bytes([signature[-1] ^ 1]))
        assert not is_signature(spki(key), SIGNED, b"")
    assert remembered().currsize == 0
    for _ in range(3):
        assert is_signature(spki(key), SIGNED, signature)
    assert (remembered().currsize, remembered().hits) == (1, 2)
    # Nothing of it says anything about other bytes, or another key.
    assert not is_signature(spki(key), SIGNED + b"!", signature)
    assert not is_signature(spki(rsa.generate_private_key(65537, 2048)), SIGNED, signature)


def test_the_memories_are_bounded() -> None:
    assert signatures._require_signature.cache_info().maxsize == 1024
    assert endorsement._parse_once.cache_info().maxsize == 512


@pytest.mark.parametrize(
    "other",
    [
        rsa.generate_private_key(65537, 1024),  # noqa: S505 -- as the test says
        rsa.generate_private_key(3, 2048),
        ec.generate_private_key(ec.SECP384R1()),
    ],
    ids=["1024-bits", "exponent-3", "p-384"],
)
def test_keys_that_amd_does_not_use(other: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> None:
    signature = sign(other) if isinstance(other, rsa.RSAPrivateKey) else b"x" * 256
    assert not is_signature(spki(other), SIGNED, signature)


@pytest.mark.parametrize("public_key", [b"", b"\x30\x00", b"nonsense"])
def test_what_is_no_key(public_key: bytes) -> None:
    assert not is_signature(public_key, SIGNED, b"x" * 256)


def test_the_same_bytes_are_parsed_once(milan: SimulatedChip) -> None:
    leaf = milan.certificates()[0]
    first = load_der(leaf)
    assert load_der(bytes(bytearray(leaf))) is first
    with pytest.raises(MalformedEvidence):
        load_der(leaf + b"\x00")
    assert endorsement._parse_once.cache_info().currsize == 1


def test_a_certificate_that_was_altered_is_another(milan: SimulatedChip) -> None:
    """The memory is of bytes: what else a certificate claims to be does not matter."""
    leaf, ask, _ = (load_der(each) for each in milan.certificates())
    assert leaf.is_signed_by(ask)
    assert not replace(leaf, signed=leaf.signed[:-1] + b"\x00").is_signed_by(ask)
    assert not replace(leaf, signature=bytes(len(leaf.signature))).is_signed_by(ask)
    assert not replace(leaf, signed_with_pss_sha384=False).is_signed_by(ask)
    assert not leaf.is_signed_by(replace(ask, public_key=leaf.public_key))
    assert not leaf.is_signed_by(replace(ask, public_key=None))


def test_certificates_longer_than_amds_are_not_kept(milan: SimulatedChip) -> None:
    from kms.simulator.certificates import Extension
    from tests.unit.snp.test_endorsement import certificate

    long = certificate(milan, lambda all_: [*all_, Extension("1.3.6.1.4.1.3704.1.99", bytes(5000))])
    assert endorsement._parse_once.cache_info().currsize == 0
    assert load_der(long.der) is not long
    assert load_der(long.der) == long
