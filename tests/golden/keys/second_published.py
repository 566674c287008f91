"""What docs/reference/keys.md says of published keys and hand-overs, built again from that page alone."""

import base64
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.golden.keys import second_hpke
from tests.golden.keys import second_implementation as second

ROOT = bytes(range(32))
APP_ID = bytes.fromhex("86e59625be93207bc2351c4d1bba20037cec8e16")
EPOCH = 1
ISSUED_AT = "2026-11-22T12:00:00Z"
MADE_AT = ["2027-01-01T00:00:00Z", "2028-02-29T23:59:59Z"]


def env_private() -> X25519PrivateKey:
    _, value = second.key_value(ROOT, APP_ID, EPOCH, name="env", scope="app", scope_value=b"")
    return X25519PrivateKey.from_private_bytes(value)


def env_key() -> dict[str, str]:
    text = {
        "app_id": APP_ID.hex(),
        "epoch": EPOCH,
        "algorithm": "x25519",
        "public_key": second.b64(env_private().public_key().public_bytes_raw()),
        "issued_at": ISSUED_AT,
    }
    seed = second.identity_seed(ROOT, 1)
    return second.signed(seed, "attested-kms/v1/env-key", second.compact(text))


def hand_overs() -> list[dict[str, str]]:
    made = []
    for generation, made_at in enumerate(MADE_AT, 2):
        old, new = (second.identity_seed(ROOT, number) for number in (generation - 1, generation))
        public = [second.b64(second.public_key("ed25519", seed) or b"") for seed in (old, new)]
        text = {"generation": generation, "identity": public[1], "previous": public[0], "made_at": made_at}
        made.append(second.signed(old, "attested-kms/v1/hand-over", second.compact(text)))
    return made


def open_env(file: dict[str, Any]) -> bytes:
    fields = second.frame(bytes.fromhex(file["app_id"]), second.u64(file["epoch"]))
    sealed = base64.urlsafe_b64decode(file["sealed"] + "==")
    return second_hpke.open_x25519(env_private(), sealed, second.label("attested-kms/v1/env", fields))
