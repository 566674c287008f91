import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from kms.keys import p256

# SP 800-186 section 3.2.1.3
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
G = bytes.fromhex(
    "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
    "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
)


def scalar(material: bytes) -> int:
    return p256.private_key(material).private_numbers().private_value


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, 1),
        (1, 2),
        (N - 3, N - 2),
        (N - 2, N - 1),
        (N - 1, 1),
        (N, 2),
        (2**384 - 1, (2**384 - 1) % (N - 1) + 1),
    ],
)
def test_every_material_gives_a_scalar_from_1_to_the_order_less_1(number: int, expected: int) -> None:
    assert scalar(number.to_bytes(48, "big")) == expected


@given(st.binary(min_size=48, max_size=48))
def test_the_scalar_is_that_of_fips_186_5(material: bytes) -> None:
    assert scalar(material) == int.from_bytes(material, "big") % (N - 1) + 1


@pytest.mark.parametrize("length", [0, 32, 47, 49, 64])
def test_material_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="48 bytes"):
        p256.private_key(b"\1" * length)


def test_the_form_of_a_released_key_is_fixed() -> None:
    key = p256.private_key(bytes(48))
    before_scalar = "308187020100301306072a8648ce3d020106082a8648ce3d030107046d306b0201010420"
    expected = bytes.fromhex(before_scalar) + (1).to_bytes(32, "big") + bytes.fromhex("a144034200") + G
    assert p256.to_pkcs8(key) == expected
    assert p256.point_of_pkcs8(expected) == G
    assert p256.point_of(key.public_key()) == G
    assert p256.point_of(p256.public_key(G)) == G


def der(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


OWN = p256.private_key(b"\7" * 48)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\0" * 138,
        p256.to_pkcs8(OWN)[:-1],
        p256.to_pkcs8(OWN) + b"\0",
        der(ec.generate_private_key(ec.SECP384R1())),
        der(ed25519.Ed25519PrivateKey.generate()),
        OWN.private_bytes(Encoding.DER, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")),
        OWN.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        # The scalar of one key beside the point of another.
        p256.to_pkcs8(OWN)[:-65] + G,
    ],
    ids=["empty", "zeros", "short", "long", "P-384", "Ed25519", "encrypted", "PEM", "another point"],
)
def test_nothing_else_is_read_as_a_private_key(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"^not a P-256 private key$"):
        p256.point_of_pkcs8(value)


@pytest.mark.parametrize(
    "point",
    [b"", b"\0", G[:64], G + b"\0", b"\2" + G[1:33], b"\6" + G[1:], G[:-1] + b"\0", bytes(65)],
)
def test_nothing_else_is_read_as_a_point(point: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- the library's words
        p256.public_key(point)


def test_keys_of_other_curves_and_algorithms_have_no_point() -> None:
    for key in (
        ec.generate_private_key(ec.SECP256K1()).public_key(),
        ec.generate_private_key(ec.SECP384R1()).public_key(),
        ed25519.Ed25519PrivateKey.generate().public_key(),
        OWN,
        None,
    ):
        with pytest.raises(ValueError, match="P-256"):
            p256.point_of(key)
