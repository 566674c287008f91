"""Recovery keys: to what a backup may be sealed, and what opens it."""

import pytest

from kms.keys.opening import CannotOpen
from kms.keys.recovery_key import (
    OVERHEAD,
    PRIVATE_LENGTH,
    PUBLIC_LENGTH,
    RecoveryKey,
    RecoveryRecipient,
    is_recipient_name,
)


def test_a_key_that_was_made_opens_what_is_sealed_to_it() -> None:
    key = RecoveryKey.generate()
    sealed = RecoveryRecipient("alice", key.public_key).seal(b"secret", b"info")
    assert len(sealed) == len(b"secret") + OVERHEAD
    assert key.open(sealed, b"info") == b"secret"


def test_a_key_is_its_private_bytes() -> None:
    key = RecoveryKey.generate()
    assert (len(key.private_bytes()), len(key.public_key)) == (PRIVATE_LENGTH, PUBLIC_LENGTH)
    again = RecoveryKey(key.private_bytes())
    assert again.public_key == key.public_key
    assert again.open(RecoveryRecipient("alice", key.public_key).seal(b"x", b""), b"") == b"x"
    assert RecoveryKey.generate().public_key != key.public_key


def test_another_key_or_another_use_opens_nothing() -> None:
    key = RecoveryKey.generate()
    sealed = RecoveryRecipient("alice", key.public_key).seal(b"secret", b"info")
    for opener, info in ((RecoveryKey.generate(), b"info"), (key, b"other")):
        with pytest.raises(CannotOpen):
            opener.open(sealed, info)
    for damaged in (b"", sealed[:-1], sealed + b"\0", bytes([sealed[0] ^ 1]) + sealed[1:]):
        with pytest.raises(CannotOpen):
            key.open(damaged, b"info")


@pytest.mark.parametrize("length", [0, 95, 97])
def test_a_private_key_has_its_length(length: int) -> None:
    with pytest.raises(ValueError, match="96 bytes"):
        RecoveryKey(bytes(length))


def test_nothing_is_sealed_to_what_is_no_key() -> None:
    public = RecoveryKey.generate().public_key
    low_order = public[:-32] + bytes(32)
    not_reduced = b"\xff" * 1184 + public[-32:]
    for wrong in (b"", public[:-1], public + b"\0", low_order, not_reduced):
        with pytest.raises(ValueError, match=r"bytes|low order|ML-KEM"):
            RecoveryRecipient("alice", wrong)


@pytest.mark.parametrize("name", ["", "a b", "a.b", "a" * 65, "a\n", "é", "a=b"])
def test_names_are_what_a_line_of_toml_can_have_bare(name: str) -> None:
    assert not is_recipient_name(name)
    with pytest.raises(ValueError, match="name"):
        RecoveryRecipient(name, RecoveryKey.generate().public_key)


def test_a_key_shows_its_fingerprint_only() -> None:
    key = RecoveryKey.generate()
    shown = repr(key)
    assert RecoveryRecipient("alice", key.public_key).fingerprint.hex() in shown
    assert key.private_bytes().hex()[:16] not in shown
