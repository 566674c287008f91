import hmac

import pytest

from kms.identifiers import AppId
from kms.keys.check_value import agrees, check_value
from kms.keys.root_messages import Mode, app_message, challenge_message, check_message, identity_message

ROOT = bytes(range(32))


def prf(message: bytes, root: bytes = ROOT) -> bytes:
    return hmac.digest(root, message, "sha512")


STORED = check_value(prf(check_message(Mode.PRODUCTION, 1)))


def test_the_same_root_agrees() -> None:
    assert len(STORED) == 32
    assert agrees(STORED, prf(check_message(Mode.PRODUCTION, 1)))


def test_another_root_mode_or_epoch_disagrees() -> None:
    """Field lesson 30: a root made again is noticed."""
    assert not agrees(STORED, prf(check_message(Mode.PRODUCTION, 1), bytes(32)))
    assert not agrees(STORED, prf(check_message(Mode.DEVELOPMENT, 1)))
    assert not agrees(STORED, prf(check_message(Mode.PRODUCTION, 2)))
    assert not agrees(STORED[:31], prf(check_message(Mode.PRODUCTION, 1)))
    assert not agrees(b"", prf(check_message(Mode.PRODUCTION, 1)))


def test_it_is_part_of_nothing_that_keys_come_from() -> None:
    for message in (app_message(AppId(b"\1" * 20)), identity_message(1), challenge_message()):
        output = prf(message)
        assert STORED not in output
        assert not agrees(STORED, output)


@pytest.mark.parametrize("length", [0, 32, 63, 65])
def test_an_output_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        check_value(b"\1" * length)
