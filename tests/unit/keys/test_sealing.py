import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from kms.errors import MalformedRequest
from kms.keys.opening import CannotOpen, RecipientKey
from kms.keys.sealing import Recipient, Suite, hpke_info, seal

DIGEST = hashlib.sha512(b"request").digest()
OTHER = hashlib.sha512(b"request ").digest()
HPKE = [Suite.HPKE_X25519, Suite.HPKE_MLKEM768X25519]
KEYS = {suite: RecipientKey.generate(suite) for suite in Suite}

P = 2**255 - 19
# cr.yp.to/ecdh.html#validate: five values modulo p, and the second encodings of 0 and 1.
LOW_ORDER = [
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    P - 1,
    P,
    P + 1,
]


def recipient(suite: Suite) -> Recipient:
    return Recipient.parse(suite.value, KEYS[suite].public_key)


def test_the_suites_have_the_names_of_the_protocol() -> None:
    assert [suite.value for suite in Suite] == [
        "x25519-sealedbox",
        "hpke-x25519-hkdf-sha256-aes-256-gcm",
        "hpke-mlkem768x25519-hkdf-sha256-aes-256-gcm",
    ]


@pytest.mark.parametrize("suite", Suite)
@settings(max_examples=20)
@given(plaintext=st.binary(max_size=300))
def test_what_is_sealed_opens(suite: Suite, plaintext: bytes) -> None:
    assert KEYS[suite].open(seal(recipient(suite), plaintext, DIGEST), DIGEST) == plaintext


@pytest.mark.parametrize(
    ("suite", "overhead"),
    # box: ephemeral key 32 + tag 16; HPKE: enc + GCM tag 16
    [(Suite.X25519_SEALEDBOX, 48), (Suite.HPKE_X25519, 48), (Suite.HPKE_MLKEM768X25519, 1136)],
)
def test_sealed_is_enc_and_ciphertext(suite: Suite, overhead: int) -> None:
    assert len(seal(recipient(suite), b"x" * 10, DIGEST)) == 10 + overhead


@pytest.mark.parametrize("suite", HPKE)
def test_hpke_opens_for_its_request_only(suite: Suite) -> None:
    sealed = seal(recipient(suite), b"keys", DIGEST)
    with pytest.raises(CannotOpen):
        KEYS[suite].open(sealed, OTHER)


def test_a_sealed_box_does_not_bind_the_request() -> None:
    """Why the payload carries request_sha512: this suite alone would accept the answer to another request."""
    sealed = seal(recipient(Suite.X25519_SEALEDBOX), b"keys", DIGEST)
    assert KEYS[Suite.X25519_SEALEDBOX].open(sealed, OTHER) == b"keys"


@pytest.mark.parametrize("suite", Suite)
def test_nobody_else_opens_it(suite: Suite) -> None:
    sealed = seal(recipient(suite), b"keys", DIGEST)
    with pytest.raises(CannotOpen):
        RecipientKey.generate(suite).open(sealed, DIGEST)


@pytest.mark.parametrize("suite", Suite)
def test_damaged_bytes_do_not_open(suite: Suite) -> None:
    sealed = seal(recipient(suite), b"keys", DIGEST)
    for bad in (b"", sealed[:-1], sealed[:31], sealed + b"\0", sealed[:-1] + bytes([sealed[-1] ^ 1])):
        with pytest.raises(CannotOpen):
            KEYS[suite].open(bad, DIGEST)


@pytest.mark.parametrize("suite", Suite)
def test_a_zero_ephemeral_point_does_not_open(suite: Suite) -> None:
    sealed = seal(recipient(suite), b"keys", DIGEST)
    start = 1088 if suite is Suite.HPKE_MLKEM768X25519 else 0
    with pytest.raises(CannotOpen):
        KEYS[suite].open(sealed[:start] + bytes(32) + sealed[start + 32 :], DIGEST)


@pytest.mark.parametrize("suite", Suite)
def test_sealing_twice_gives_different_bytes(suite: Suite) -> None:
    assert seal(recipient(suite), b"keys", DIGEST) != seal(recipient(suite), b"keys", DIGEST)


@pytest.mark.parametrize("suite", ["", "x25519", "X25519-SEALEDBOX", "x25519-sealedbox "])
def test_unknown_suites_are_malformed_and_not_repeated(suite: str) -> None:
    with pytest.raises(MalformedRequest, match=r"^unknown suite$") as caught:
        Recipient.parse(suite, bytes(32))
    assert caught.value.reason == "suite-unknown"


@pytest.mark.parametrize("suite", Suite)
@pytest.mark.parametrize("change", [-32, -1, 1, 32])
def test_keys_of_another_length_are_malformed(suite: Suite, change: int) -> None:
    key = KEYS[suite].public_key
    wrong = key[:change] if change < 0 else key + b"\1" * change
    with pytest.raises(MalformedRequest, match="bytes"):
        Recipient.parse(suite, wrong)


@pytest.mark.parametrize("point", LOW_ORDER)
@pytest.mark.parametrize("bit_255", [0, 1])
@pytest.mark.parametrize("suite", Suite)
def test_low_order_points_are_malformed_in_every_encoding(suite: Suite, bit_255: int, point: int) -> None:
    encoded = (point | bit_255 << 255).to_bytes(32, "little")
    with pytest.raises(MalformedRequest, match="low order") as caught:
        Recipient.parse(suite, KEYS[suite].public_key[:-32] + encoded)
    assert caught.value.reason == "public-key-invalid"


@given(st.integers(min_value=0, max_value=2**256 - 1) | st.sampled_from([P - 2, P + 2, P + 18, 2, 9]))
def test_a_point_is_refused_exactly_when_its_shared_secret_is_zero(value: int) -> None:
    point = value.to_bytes(32, "little")
    try:
        X25519PrivateKey.from_private_bytes(b"\x40" * 32).exchange(X25519PublicKey.from_public_bytes(point))
        contributes = True
    except ValueError:
        contributes = False
    try:
        Recipient.parse(Suite.HPKE_X25519, point)
        accepted = True
    except MalformedRequest:
        accepted = False
    assert accepted is contributes


@pytest.mark.parametrize("offset", [0, 600, 1149])
def test_mlkem_coefficients_must_be_reduced(offset: int) -> None:
    """FIPS 203 section 7.2: 0xFFF is above 3328."""
    key = bytearray(KEYS[Suite.HPKE_MLKEM768X25519].public_key)
    key[offset : offset + 3] = b"\xff\xff\xff"
    with pytest.raises(MalformedRequest, match="ML-KEM"):
        Recipient.parse(Suite.HPKE_MLKEM768X25519, bytes(key))


def test_halves_in_the_other_order_are_malformed() -> None:
    key = KEYS[Suite.HPKE_MLKEM768X25519].public_key
    swapped = bytes(31) + b"\xff" * 3 + key[:1182]
    with pytest.raises(MalformedRequest):
        Recipient.parse(Suite.HPKE_MLKEM768X25519, swapped)


@pytest.mark.parametrize("digest", [b"", DIGEST[:32], DIGEST.hex().encode()])
@pytest.mark.parametrize("suite", Suite)
def test_a_digest_of_another_form_is_an_error(suite: Suite, digest: bytes) -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        seal(recipient(suite), b"keys", digest)
    with pytest.raises(ValueError, match="64 bytes"):
        KEYS[suite].open(b"", digest)


def test_info_is_label_zero_digest() -> None:
    assert hpke_info(DIGEST) == b"attested-kms/v1/release\0" + DIGEST


def test_reprs_hold_no_private_key() -> None:
    for suite, key in KEYS.items():
        assert repr(key) == f"RecipientKey({suite.value})"
