import hashlib

import pytest

from kms.keys.identity import Identity, SignatureInvalid, verify_signed
from kms.keys.signed import Signed
from kms.labels import PAYLOAD, RECEIPT
from kms.strict_json import Fields, JsonError, JsonValue

OUTPUT = hashlib.sha512(b"prf").digest()
IDENTITY = Identity.from_prf(OUTPUT)
OTHER = Identity.from_prf(hashlib.sha512(b"other").digest())


def test_a_signature_verifies_for_its_label_message_and_key_only() -> None:
    signature = IDENTITY.sign(PAYLOAD, b"message")
    verify_signed(PAYLOAD, b"message", signature, IDENTITY.public_key)
    wrong = [
        (RECEIPT, b"message", signature, IDENTITY.public_key),
        (PAYLOAD, b"messagE", signature, IDENTITY.public_key),
        (PAYLOAD, b"message", signature[:-1] + bytes([signature[-1] ^ 1]), IDENTITY.public_key),
        (PAYLOAD, b"message", signature, OTHER.public_key),
        (PAYLOAD, b"message", signature[:-1], IDENTITY.public_key),
        (PAYLOAD, b"message", signature + b"\0", IDENTITY.public_key),
        (PAYLOAD, b"message", b"", IDENTITY.public_key),
        (PAYLOAD, b"message", signature, IDENTITY.public_key[:-1]),
        (PAYLOAD, b"message", signature, b""),
    ]
    for case in wrong:
        with pytest.raises(SignatureInvalid):
            verify_signed(*case)


def test_label_and_message_do_not_slide_into_each_other() -> None:
    signature = IDENTITY.sign("attested-kms/v1/a", b"b\0c")
    with pytest.raises(SignatureInvalid):
        verify_signed("attested-kms/v1/ab", b"\0c", signature, IDENTITY.public_key)


@pytest.mark.parametrize("length", [0, 32, 63, 65])
def test_a_prf_output_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        Identity.from_prf(b"\1" * length)


def test_the_seed_is_in_no_repr() -> None:
    assert repr(IDENTITY) == f"Identity({IDENTITY.public_key.hex()})"
    assert OUTPUT[:32].hex() not in repr(IDENTITY)
    assert "secret" not in repr(Signed.by(IDENTITY, PAYLOAD, b"secret"))


def test_signed_texts_travel_and_verify() -> None:
    signed = Signed.by(IDENTITY, PAYLOAD, b"text")
    read = Signed.read(Fields(dict(signed.to_json()), "signed"))
    assert read == signed
    read.verify(PAYLOAD)
    with pytest.raises(SignatureInvalid):
        read.verify(RECEIPT)


@pytest.mark.parametrize(
    "change", [{"extra": "x"}, {"payload": None}, {"signature": "!"}, {"identity": "A" * 200}]
)
def test_other_shapes_are_refused(change: dict[str, JsonValue]) -> None:
    good: dict[str, JsonValue] = dict(Signed.by(IDENTITY, PAYLOAD, b"text").to_json())
    with pytest.raises(JsonError):
        Signed.read(Fields(good | change, "signed"))
