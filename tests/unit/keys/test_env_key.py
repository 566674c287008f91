"""The published env key: what is signed, and what whoever seals to it refuses."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from kms.encoding import b64url
from kms.identifiers import AppId
from kms.keys.env_key import EnvKeyRejected, env_key_text, read_env_key
from kms.keys.identity import Identity
from kms.keys.signed import Signed
from kms.labels import ENV_KEY, SIGNING_STATEMENT

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
APP = AppId(b"\xa1" * 20)
OTHER_APP = AppId(b"\xa2" * 20)
IDENTITY = Identity.from_prf(b"\x11" * 64)
PUBLIC_KEY = b"\x09" + bytes(31)
TEXT = env_key_text(APP, 3, PUBLIC_KEY, NOW)


def published(**changes: object) -> Signed:
    members = {name: value for name, value in (json.loads(TEXT) | changes).items() if value is not None}
    return Signed.by(IDENTITY, ENV_KEY, json.dumps(members).encode())


def reason_of(signed: Signed, *, epoch: int | None = None, now: datetime = NOW) -> str:
    with pytest.raises(EnvKeyRejected) as error:
        read_env_key(signed, app_id=APP, epoch=epoch, now=now)
    return error.value.reason


def test_the_text_is_the_protocols() -> None:
    expected = {
        "app_id": "a1" * 20,
        "epoch": 3,
        "algorithm": "x25519",
        "public_key": b64url(PUBLIC_KEY),
        "issued_at": "2026-11-22T12:00:00Z",
    }
    assert json.loads(TEXT) == expected
    assert list(json.loads(TEXT)) == list(expected)


@pytest.mark.parametrize("epoch", [None, 3])
def test_an_honest_answer(epoch: int | None) -> None:
    key = read_env_key(Signed.by(IDENTITY, ENV_KEY, TEXT), app_id=APP, epoch=epoch, now=NOW)
    assert (key.app_id, key.epoch, key.public_key) == (APP, 3, PUBLIC_KEY)
    assert key.identity == IDENTITY.public_key


def test_the_key_of_another_app_replayed() -> None:
    """Genuine and fresh, and the attacker's own app."""
    assert reason_of(Signed.by(IDENTITY, ENV_KEY, env_key_text(OTHER_APP, 3, PUBLIC_KEY, NOW))) == (
        "app-mismatch"
    )


def test_another_epoch_than_asked_for() -> None:
    assert reason_of(published(), epoch=2) == "epoch-mismatch"


@pytest.mark.parametrize(
    ("age", "reason"),
    [
        (timedelta(minutes=5, seconds=1), "env-key-outdated"),
        (timedelta(days=365), "env-key-outdated"),
        (timedelta(minutes=-1, seconds=-1), "env-key-from-the-future"),
    ],
    ids=str,
)
def test_an_answer_of_another_time(age: timedelta, reason: str) -> None:
    assert reason_of(published(), now=NOW + age) == reason


@pytest.mark.parametrize("age", [timedelta(minutes=5), timedelta(), timedelta(minutes=-1)], ids=str)
def test_clocks_may_differ_a_little(age: timedelta) -> None:
    read_env_key(published(), app_id=APP, epoch=None, now=NOW + age)


def test_signed_for_another_use() -> None:
    assert reason_of(Signed.by(IDENTITY, SIGNING_STATEMENT, TEXT)) == "signature-invalid"


def test_changed_on_the_way() -> None:
    signed = published()
    other = b64url(b"\x08" + bytes(31)).encode()
    changed = signed.payload.replace(b64url(PUBLIC_KEY).encode(), other)
    assert changed != signed.payload
    assert reason_of(replace(signed, payload=changed)) == "signature-invalid"


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": "x448"},
        {"algorithm": None},
        {"public_key": b64url(PUBLIC_KEY[:31])},
        {"public_key": b64url(PUBLIC_KEY + b"\0")},
        {"epoch": 0},
        {"epoch": "3"},
        {"app_id": "a1"},
        {"issued_at": "2026-11-22 12:00:00"},
        {"issued_at": None},
        {"more": 1},
    ],
    ids=str,
)
def test_one_that_is_not_of_its_form(changes: dict[str, object]) -> None:
    assert reason_of(published(**changes)) == "env-key-malformed"
