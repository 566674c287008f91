"""Published keys, hand-overs and sealed environments: `kms`, committed vectors, a second implementation."""

import hmac
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from kms.identifiers import AppId
from kms.keys import root_messages
from kms.keys.derivation import derive
from kms.keys.env_key import env_key_text, read_env_key
from kms.keys.env_sealing import SealedEnv
from kms.keys.hand_over import follow, hand_overs
from kms.keys.identity import Identity
from kms.keys.names import KeyRequest
from kms.keys.released import ReleasedKey
from kms.keys.signed import Signed
from kms.labels import ENV_KEY
from kms.strict_json import Fields
from tests.golden.keys import second_published as second

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "published.json").read_text())
APP_ID = AppId(second.APP_ID)
ISSUED_AT = datetime.fromisoformat(second.ISSUED_AT)


def prf(message: bytes) -> bytes:
    return hmac.digest(second.ROOT, message, "sha512")


IDENTITIES = [Identity.from_prf(prf(root_messages.identity_message(number))) for number in (1, 2, 3)]


def env_key() -> ReleasedKey:
    return derive(
        prf(root_messages.app_message(APP_ID)),
        KeyRequest.parse("env", "app"),
        second.EPOCH,
        app_id=APP_ID,
        instance_id=None,
        chip_id=None,
        identity=IDENTITIES[0],
    )


def test_the_second_implementation_gives_these_vectors() -> None:
    assert VECTORS["root"] == second.ROOT.hex()
    assert VECTORS["env_key"] == second.env_key()
    assert VECTORS["hand_overs"] == second.hand_overs()
    sealed = VECTORS["sealed_env"]
    assert second.open_env(sealed["file"]).decode() == sealed["environment"]


def test_the_env_key_is_signed_like_this() -> None:
    public_key = env_key().public_key
    assert public_key is not None
    text = env_key_text(APP_ID, second.EPOCH, public_key, ISSUED_AT)
    assert Signed.by(IDENTITIES[0], ENV_KEY, text).to_json() == VECTORS["env_key"]


def test_hand_overs_are_signed_like_this() -> None:
    made = hand_overs(IDENTITIES, [datetime.fromisoformat(each) for each in second.MADE_AT])
    assert [each.to_json() for each in made] == VECTORS["hand_overs"]
    follow(IDENTITIES[0].public_key, made, IDENTITIES[2].public_key)


def test_an_environment_sealed_once_opens_for_ever() -> None:
    value = env_key().value
    assert value is not None
    sealed = SealedEnv.parse(json.dumps(VECTORS["sealed_env"]["file"]).encode())
    environment = sealed.open(value, app_id=APP_ID, epoch=second.EPOCH)
    assert environment.decode() == VECTORS["sealed_env"]["environment"]


def test_what_is_sealed_now_opens_by_rfc_9180_written_out() -> None:
    key = read_env_key(
        Signed.read(Fields(VECTORS["env_key"], "env-key")), app_id=APP_ID, epoch=None, now=ISSUED_AT
    )
    sealed = json.loads(SealedEnv.seal(b"A=1\n", key).to_json())
    assert second.open_env(sealed) == b"A=1\n"
