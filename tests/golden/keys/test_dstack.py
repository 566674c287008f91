"""dstack's own vector, and others for each key that it gives, by `kms` and by a second implementation."""

import json
from pathlib import Path
from typing import Any

import pytest

from kms.identifiers import AppId, InstanceId
from kms.keys.dstack import DstackRoots, derive_dstack, dh_secret
from kms.keys.names import DSTACK_KINDS, KeyName, KeyPattern, KeyRequest
from tests.golden.keys import second_dstack as second

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "dstack.json").read_text())
UPSTREAM, CASES = VECTORS["upstream"], VECTORS["cases"]
CA, K256 = (bytes.fromhex(VECTORS["roots"][name]) for name in ("ca", "k256"))
ROOTS = DstackRoots(ca=CA, k256=K256)


def test_the_vector_of_dstack_itself() -> None:
    """Of its source, which says never to change it: data is under what is derived like this."""
    assert second.pkcs8(CA).hex() == UPSTREAM["root_pkcs8"]
    info = "".join(UPSTREAM["context"]).encode()
    assert dh_secret(CA, info).hex() == second.dh_secret(CA, info).hex() == UPSTREAM["expect"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['app_id'][:4]}-{case['instance_id'][:4]}")
def test_what_a_dstack_kms_gives(case: dict[str, Any]) -> None:
    app_id, instance_id = AppId.from_hex(case["app_id"]), InstanceId.from_hex(case["instance_id"])
    assert case["keys"] == second.keys(CA, K256, app_id, instance_id)
    assert set(case["keys"]) == DSTACK_KINDS
    for name, expected in case["keys"].items():
        request = KeyRequest(KeyName.parse(name), KeyPattern.parse(name).scope)
        key = derive_dstack(ROOTS, request, app_id=app_id, instance_id=instance_id)
        assert key.value is not None
        assert key.value.hex() == expected["value"]
        assert (key.public_key or b"").hex() == expected.get("public_key", "")


def test_the_public_keys_that_an_operator_compares() -> None:
    shown = {name: VECTORS["roots"][name] for name in ("ca_fingerprint", "k256_public_key")}
    assert shown == {
        "ca_fingerprint": ROOTS.ca_fingerprint.hex(),
        "k256_public_key": ROOTS.k256_public_key.hex(),
    }
    assert shown == {
        "ca_fingerprint": second.fingerprint(CA).hex(),
        "k256_public_key": second.compressed(K256).hex(),
    }
