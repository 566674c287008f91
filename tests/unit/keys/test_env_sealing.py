"""Sealed environments: for one app, in one epoch, under one key."""

import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from kms.encoding import b64url, from_base64
from kms.identifiers import AppId
from kms.keys.env_key import EnvKey, EnvKeyRejected
from kms.keys.env_sealing import MAX_ENV, MAX_FILE, SealedEnv, SealedEnvRejected
from kms.keys.sealing import HPKE_SUITES, Suite
from kms.labels import ENV, RELEASE, frame, labelled

APP = AppId(b"\xa1" * 20)
OTHER_APP = AppId(b"\xa2" * 20)
PRIVATE = X25519PrivateKey.generate()
SECRET = PRIVATE.private_bytes_raw()
KEY = EnvKey(app_id=APP, epoch=3, public_key=PRIVATE.public_key().public_bytes_raw(), identity=b"\x11" * 32)
ENVIRONMENT = b"PASSWORD=hunter2\n"


def sealed() -> SealedEnv:
    return SealedEnv.seal(ENVIRONMENT, KEY)


def reason_of(env: SealedEnv, *, app_id: AppId = APP, epoch: int | None = 3, key: bytes = SECRET) -> str:
    with pytest.raises(SealedEnvRejected) as error:
        env.open(key, app_id=app_id, epoch=epoch)
    return error.value.reason


@pytest.mark.parametrize("environment", [ENVIRONMENT, b"", bytes(MAX_ENV)], ids=len)
def test_what_was_sealed_comes_back_byte_for_byte(environment: bytes) -> None:
    file = SealedEnv.seal(environment, KEY).to_json()
    assert len(file) <= MAX_FILE
    read = SealedEnv.parse(file)
    assert read.open(SECRET, app_id=APP, epoch=3) == environment
    assert (read.app_id, read.epoch, read.identity) == (APP, 3, KEY.identity)


def test_the_file_is_as_documented() -> None:
    document = json.loads(sealed().to_json())
    assert set(document) == {"format", "version", "app_id", "epoch", "identity", "sealed"}
    assert (document["format"], document["version"]) == ("attested-kms/sealed-env", 1)
    assert len(from_base64(document["sealed"])) == 32 + len(ENVIRONMENT) + 16


def test_more_than_a_mebibyte() -> None:
    with pytest.raises(ValueError, match="at most"):
        SealedEnv.seal(bytes(MAX_ENV + 1), KEY)


def test_another_apps_file() -> None:
    assert reason_of(sealed(), app_id=OTHER_APP) == "app-mismatch"


@pytest.mark.parametrize("epoch", [2, None])
def test_a_key_of_another_epoch(epoch: int | None) -> None:
    assert reason_of(sealed(), epoch=epoch) == "epoch-mismatch"


def test_app_and_epoch_are_sealed_in_and_not_only_written_beside() -> None:
    """Whoever edits the file does not move a secret to another app or epoch."""
    assert reason_of(replace(sealed(), app_id=OTHER_APP), app_id=OTHER_APP) == "cannot-open"
    assert reason_of(replace(sealed(), epoch=2), epoch=2) == "cannot-open"


def test_another_key() -> None:
    assert reason_of(sealed(), key=X25519PrivateKey.generate().private_bytes_raw()) == "cannot-open"


def test_every_byte_counts() -> None:
    whole = sealed()
    for place in (0, 31, 32, len(whole.sealed) - 1):
        changed = bytearray(whole.sealed)
        changed[place] ^= 1
        assert reason_of(replace(whole, sealed=bytes(changed))) == "cannot-open"
    for length in (0, 31, 32, 47, len(whole.sealed) - 1):
        assert reason_of(replace(whole, sealed=whole.sealed[:length])) == "cannot-open"


def test_what_was_sealed_as_an_answer_is_no_environment() -> None:
    info = labelled(RELEASE, frame(APP, (3).to_bytes(8, "big")))
    answer = HPKE_SUITES[Suite.HPKE_X25519].encrypt(ENVIRONMENT, PRIVATE.public_key(), info)
    assert reason_of(replace(sealed(), sealed=answer)) == "cannot-open"
    info = labelled(ENV, frame(APP, (3).to_bytes(8, "big")))
    answer = HPKE_SUITES[Suite.HPKE_X25519].encrypt(ENVIRONMENT, PRIVATE.public_key(), info)
    assert replace(sealed(), sealed=answer).open(SECRET, app_id=APP, epoch=3) == ENVIRONMENT


@pytest.mark.parametrize("point", [0, 1, 2**255 - 19, 2**255 - 18])
def test_nothing_is_sealed_to_a_point_of_low_order(point: int) -> None:
    with pytest.raises(EnvKeyRejected):
        SealedEnv.seal(ENVIRONMENT, replace(KEY, public_key=point.to_bytes(32, "little")))


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "attested-kms/root-key"},
        {"version": 2},
        {"app_id": "00" * 20},
        {"app_id": "A1" * 20},
        {"epoch": 0},
        {"identity": "AAAA"},
        {"sealed": "!"},
        {"sealed": None},
        {"more": 1},
    ],
    ids=str,
)
def test_a_file_that_is_none(changes: dict[str, object]) -> None:
    document = json.loads(sealed().to_json()) | changes
    with pytest.raises(SealedEnvRejected) as error:
        SealedEnv.parse(json.dumps(document).encode())
    assert error.value.reason == "sealed-env-malformed"


@pytest.mark.parametrize("file", [b"", b"[]", b"{", b"\xff", b"PASSWORD=hunter2\n"])
def test_bytes_that_are_no_file(file: bytes) -> None:
    with pytest.raises(SealedEnvRejected) as error:
        SealedEnv.parse(file)
    assert b"hunter2" not in error.value.detail.encode()


def test_a_longer_one_than_can_be_sealed() -> None:
    document = json.loads(sealed().to_json()) | {"sealed": b64url(bytes(MAX_ENV + 49))}
    with pytest.raises(SealedEnvRejected):
        SealedEnv.parse(json.dumps(document).encode())
