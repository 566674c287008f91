"""Every derivation against committed vectors, and the vectors against a second implementation.

Three parties must agree: the code, the files, and what docs/reference/keys.md says. A change of a vector
would mean that guests no longer get the keys that open their disks.
"""

import hashlib
import hmac
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from kms import labels
from kms.identifiers import AppId, ChipId, InstanceId
from kms.keys import root_messages
from kms.keys.challenge import authenticate, issue
from kms.keys.check_value import check_value
from kms.keys.derivation import derive
from kms.keys.envelope import build_envelope, open_envelope
from kms.keys.identity import Identity
from kms.keys.names import KeyRequest
from kms.keys.released import ReleasedKey
from kms.keys.sealing import Recipient, Suite, seal
from kms.rootkey.file import FileRootKey
from tests.golden.keys import regenerate, second_hpke, second_implementation

FOLDER = Path(__file__).parent
INFO = second_implementation.release_info(b"request")
FILES = sorted(regenerate.vectors())


def load(file: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((FOLDER / file).read_text())["cases"]
    return cases


def roots(file: str) -> dict[int, bytes]:
    found = json.loads((FOLDER / file).read_text())["roots"]
    return {int(epoch): bytes.fromhex(root) for epoch, root in found.items()}


def prf(root: bytes, message: bytes) -> bytes:
    return hmac.digest(root, message, "sha512")


def identity_of(root: bytes, generation: int = 1) -> Identity:
    return Identity.from_prf(prf(root, root_messages.identity_message(generation)))


def derived(root: bytes, identity: Identity, case: dict[str, Any], name: str, scope: str) -> ReleasedKey:
    app_id = AppId.from_hex(case["app_id"])
    scope_value = bytes.fromhex(case.get("scope_value", ""))
    return derive(
        prf(root, root_messages.app_message(app_id)),
        KeyRequest.parse(name, scope),
        case.get("epoch", 1),
        app_id=app_id,
        # The ids of other scopes are present too, as in a real release, and must change nothing.
        instance_id=InstanceId(scope_value if scope == "instance" else b"\x77" * 16),
        chip_id=ChipId(scope_value if scope == "chip" else b"\x77" * 64),
        identity=identity,
    )


@pytest.mark.parametrize("file", FILES)
def test_the_second_implementation_writes_these_vectors(file: str) -> None:
    assert json.loads((FOLDER / file).read_text()) == regenerate.vectors()[file]


def test_every_vector_file_has_a_runner() -> None:
    for path in FOLDER.glob("*.json"):
        runners = [each for each in FOLDER.glob("test_*.py") if f'"{path.name}"' in each.read_text()]
        assert runners, path.name
        assert (path.name in FILES) != (path.name in regenerate.KEPT), path.name


def test_every_label_is_on_the_page() -> None:
    page = (FOLDER.parents[2] / "docs" / "reference" / "keys.md").read_text()
    used = {value for name, value in vars(labels).items() if name.isupper()}
    assert len(used) > 20
    assert used == set(re.findall(r"attested-kms/v1/[a-z-]+", page))


@pytest.mark.parametrize("case", load("root_messages.json"), ids=lambda case: str(case["use"]))
def test_root_messages(case: dict[str, Any]) -> None:
    keys = roots("root_messages.json")
    match case["use"]:
        case "app-secret":
            result = prf(keys[1], root_messages.app_message(AppId.from_hex(case["app_id"])))
        case "identity":
            result = identity_of(keys[1], case["generation"]).public_key
        case "challenge-key":
            result = prf(keys[1], root_messages.challenge_message())
        case _:
            message = root_messages.check_message(root_messages.Mode.parse(case["mode"]), case["epoch"])
            result = check_value(prf(keys[case["epoch"]], message))
    assert result.hex() == case["expect"]


@pytest.mark.parametrize(
    "case", load("derivation.json"), ids=lambda case: f"{case['expect']['name']}@{case['expect']['scope']}"
)
def test_derivations(case: dict[str, Any]) -> None:
    keys = roots("derivation.json")
    expect = case["expect"]
    key = derived(keys[case["epoch"]], identity_of(keys[1]), case, expect["name"], expect["scope"])
    assert key.to_json() == expect


def test_no_two_derivation_vectors_share_a_value() -> None:
    values = [case["expect"]["value"] for case in load("derivation.json")]
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("case", load("challenge.json"), ids=lambda case: str(case["expires_at"]))
def test_challenges(case: dict[str, Any]) -> None:
    key = prf(roots("challenge.json")[1], root_messages.challenge_message())
    expires_at = datetime.fromtimestamp(case["expires_at"], UTC)
    life = timedelta(seconds=300)
    made = issue(key, bytes.fromhex(case["nonce"]), expires_at - life, life)
    assert made.raw.hex() == case["expect"]
    assert authenticate(key, made.raw, expires_at - life).expires_at == expires_at


@pytest.mark.parametrize("case", load("envelope.json"), ids=lambda case: str(case["release_id"]))
def test_envelopes(case: dict[str, Any]) -> None:
    root = roots("envelope.json")[1]
    identity = identity_of(root)
    keys = [derived(root, identity, case, name, "app") for name in case["keys"]]
    digest = hashlib.sha512(case["request"].encode()).digest()
    made = build_envelope(
        identity,
        release_id=case["release_id"],
        request_sha512=digest,
        app_id=AppId.from_hex(case["app_id"]),
        keys=keys,
    )
    assert made.decode() == case["expect"]
    opened = open_envelope(made, pinned_identity=identity.public_key, request_sha512=digest)
    assert list(opened.keys) == keys


async def test_the_file_provider_is_the_prf_of_the_vectors() -> None:
    keys = roots("root_messages.json")
    provider = FileRootKey.of(keys)
    case = load("root_messages.json")[0]
    [output] = await provider.outputs(1, [root_messages.app_message(AppId.from_hex(case["app_id"]))])
    assert output.hex() == case["expect"]
    assert await provider.versions() == (1, 2)


def test_hpke_x25519_opens_with_rfc_9180_written_out() -> None:
    private = X25519PrivateKey.generate()
    recipient = Recipient.parse(Suite.HPKE_X25519, private.public_key().public_bytes_raw())
    sealed = seal(recipient, b"keys", hashlib.sha512(b"request").digest())
    assert second_hpke.open_x25519(private, sealed, INFO) == b"keys"


def test_the_hybrid_is_x_wing_with_mlkem_first() -> None:
    mlkem, x25519 = MLKEM768PrivateKey.generate(), X25519PrivateKey.generate()
    public = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
    recipient = Recipient.parse(Suite.HPKE_MLKEM768X25519, public)
    sealed = seal(recipient, b"keys", hashlib.sha512(b"request").digest())
    assert second_hpke.open_hybrid(mlkem, x25519, sealed, INFO) == b"keys"
