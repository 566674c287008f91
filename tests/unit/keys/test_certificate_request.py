import random
from collections import Counter
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AttributeOID, NameOID

from kms.keys import p256
from kms.keys.certificate_request import MAX_LENGTH, read

KEY = p256.private_key(b"\7" * 48)
POINT = p256.point_of(KEY.public_key())
NOT_ONE = r"^not a certificate request for a P-256 key$"
NOT_SIGNED = r"^the certificate request is not signed by its key$"


def request(
    key: Any = KEY, algorithm: Any = hashes.SHA256, *, name: str = "root.example", names: int = 1
) -> bytes:
    hosts = x509.SubjectAlternativeName([x509.DNSName(f"h{number}.example") for number in range(names)])
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .add_extension(hosts, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_attribute(AttributeOID.CHALLENGE_PASSWORD, b"password")
    )
    return builder.sign(key, None if algorithm is None else algorithm()).public_bytes(Encoding.DER)


PLAIN = request()


@pytest.mark.parametrize("algorithm", [hashes.SHA256, hashes.SHA384, hashes.SHA512])
def test_only_the_key_counts(algorithm: type[hashes.HashAlgorithm]) -> None:
    """Field lesson 32: what it asks for beside that, a CA bit and names, is not looked at."""
    assert read(request(algorithm=algorithm)) == POINT
    empty = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    assert read(empty.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)) == POINT


def der(tag: int, *parts: bytes) -> bytes:
    """Give one DER element of at most 255 bytes."""
    body = b"".join(parts)
    return bytes([tag, *([len(body)] if len(body) < 128 else [0x81, len(body)])]) + body


def hand_made(point: bytes, curve: bytes = bytes.fromhex("06082a8648ce3d030107")) -> bytes:
    """Give a request whose public key is written in these bytes, signed by `KEY`."""
    algorithm = der(0x30, bytes.fromhex("06072a8648ce3d0201"), curve)
    key = der(0x30, algorithm, der(0x03, b"\0" + point))
    info = der(0x30, b"\x02\x01\x00", der(0x30), key, der(0xA0))
    signature = KEY.sign(info, ec.ECDSA(hashes.SHA256()))
    return der(0x30, info, der(0x30, bytes.fromhex("06082a8648ce3d040302")), der(0x03, b"\0" + signature))


def test_the_key_may_be_written_as_a_compressed_point() -> None:
    assert read(hand_made(POINT)) == POINT
    assert read(hand_made(bytes([2 + POINT[64] % 2]) + POINT[1:33])) == POINT


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"",
        b"\x30\x00",
        PLAIN[:-1],
        PLAIN + b"\0",
        PLAIN + PLAIN,
        x509.load_der_x509_csr(PLAIN).public_bytes(Encoding.PEM),
        request(ec.generate_private_key(ec.SECP384R1())),
        request(ec.generate_private_key(ec.SECP256K1())),
        request(rsa.generate_private_key(65537, 2048)),
        request(ed25519.Ed25519PrivateKey.generate(), None),
        # RFC 2986 knows version 0 only; the library's error for it is no ValueError.
        PLAIN.replace(b"\x02\x01\x00", b"\x02\x01\x02", 1),
        # The point at infinity, the curve named by what it is not, and a point that is not on it.
        hand_made(b"\0"),
        hand_made(POINT, bytes.fromhex("06052b81040022")),
        hand_made(POINT, b"\x05\x00"),
        PLAIN.replace(POINT, POINT[:-1] + bytes([POINT[-1] ^ 1])),
        # A signature algorithm that nobody knows.
        PLAIN.replace(bytes.fromhex("06082a8648ce3d040302"), bytes.fromhex("06082a8648ce3d04037f")),
    ],
)
def test_anything_else_is_refused(request_bytes: bytes) -> None:
    with pytest.raises(ValueError, match=NOT_ONE):
        read(request_bytes)


@pytest.mark.parametrize(
    "request_bytes",
    [
        PLAIN.replace(b"root.example", b"mint.example"),
        PLAIN[:-1] + bytes([PLAIN[-1] ^ 1]),
        PLAIN.replace(POINT, p256.point_of(p256.private_key(b"\x08" * 48).public_key())),
        # Weaker hashes are not taken for a signature.
        request(algorithm=hashes.SHA224),
    ],
)
def test_a_request_that_its_key_did_not_sign_is_refused(request_bytes: bytes) -> None:
    """Else a guest would get certificates for the keys of others."""
    with pytest.raises(ValueError, match=NOT_SIGNED):
        read(request_bytes)


def test_a_long_request_is_not_even_read() -> None:
    fits = request(names=250)
    assert 3000 < len(fits) <= MAX_LENGTH
    assert read(fits) == POINT
    long = request(names=400)
    assert len(long) > MAX_LENGTH
    with pytest.raises(ValueError, match="at most 4096 bytes"):
        read(long)


def test_only_value_errors_come_of_hostile_bytes() -> None:
    """Four thousand requests with bytes changed, left out and put in, of keys of every kind."""
    chance = random.Random(20261122)  # the same every time
    seeds = [
        PLAIN,
        request(ec.generate_private_key(ec.SECP384R1())),
        request(rsa.generate_private_key(65537, 2048)),
        request(ed25519.Ed25519PrivateKey.generate(), None),
    ]
    seen: Counter[str] = Counter()
    for _ in range(4000):
        changed = bytearray(chance.choice(seeds))
        for _ in range(chance.choice([1, 1, 2, 6])):
            at = chance.randrange(len(changed))
            changed[at : at + chance.choice([0, 1, 1, 3])] = chance.randbytes(chance.choice([0, 1, 1, 2]))
        try:
            read(bytes(changed))
        except ValueError as error:
            seen[str(error)] += 1
        else:
            assert changed in seeds
    assert len(seen) == 2
