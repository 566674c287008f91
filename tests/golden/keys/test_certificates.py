"""Keys and certificates for TLS, byte for byte: `kms`, committed vectors, a second implementation."""

import hmac
import json
from dataclasses import replace
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from kms.encoding import from_base64
from kms.identifiers import AppId
from kms.keys import root_messages
from kms.keys.apps_ca import AppsCa
from kms.keys.certificates import certify, check_chain
from kms.keys.derivation import derive
from kms.keys.identity import Identity
from kms.keys.names import KeyRequest
from kms.keys.released import ReleasedKey
from kms.strict_json import Fields
from tests.golden.keys import regenerate, second_certificates, second_files, second_p256
from tests.unit.policy.samples import BOOT_INFO

VECTORS = json.loads((Path(__file__).parent / "certificates.json").read_text())
ROOTS = {int(epoch): bytes.fromhex(root) for epoch, root in VECTORS["roots"].items()}
CASES: list[dict[str, Any]] = VECTORS["cases"]


def prf(epoch: int, message: bytes) -> bytes:
    return hmac.digest(ROOTS[epoch], message, "sha512")


def certified(case: dict[str, Any]) -> ReleasedKey:
    app_id, epoch = AppId.from_hex(case["app_id"]), case["epoch"]
    secret = prf(epoch, root_messages.app_message(app_id))
    own = None if case["certificate_for"] is None else from_base64(case["certificate_for"])
    key = derive(
        secret,
        replace(KeyRequest.parse("tls", "app"), certificate_for=own),
        epoch,
        app_id=app_id,
        instance_id=None,
        chip_id=None,
        identity=Identity.from_prf(prf(1, root_messages.identity_message(1))),
    )
    assert key.public_key is not None
    apps_ca = AppsCa.from_prf(prf(1, root_messages.apps_ca_message()))
    random = bytes.fromhex(case["random"])
    chain = certify(
        apps_ca.app_ca(secret, app_id, epoch),
        key.public_key,
        names=case["names"],
        life=timedelta(days=case["days"]),
        boot_info=bytes.fromhex(case["boot_info_digest"]),
        now=datetime.fromisoformat(case["now"]),
        random=lambda length: random[:length],
    )
    return replace(key, certificate_chain=chain)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['app_id'][:4]}-{case['epoch']}")
def test_a_key_and_its_certificates(case: dict[str, Any]) -> None:
    key = certified(case)
    assert key.to_json() == case["expect"]
    assert ReleasedKey.read(Fields({**case["expect"]}, "key")) == key
    chain, point = key.certificate_chain, key.public_key
    assert chain is not None
    assert point is not None
    check_chain(chain, public_key=point, app_id=AppId.from_hex(case["app_id"]), epoch=case["epoch"])


def test_every_app_and_epoch_has_a_ca_and_a_key_of_its_own() -> None:
    chains = [case["expect"]["certificate_chain"] for case in CASES]
    values = [case["expect"]["value"] for case in CASES if "value" in case["expect"]]
    assert len({chain[1] for chain in chains}) == len(values) == len(set(values)) == 3
    assert len({chain[2] for chain in chains}) == 1
    # A certificate for the guest's own key is under the same CA.
    assert "value" not in CASES[3]["expect"]
    assert chains[3][1:] == chains[0][1:]


def test_the_second_implementation_signs_as_rfc_6979_has_it() -> None:
    """Section A.2.5, the message "sample" with SHA-256."""
    private = 0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721
    r, s = second_p256.sign(private, b"sample")
    assert r == 0xEFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716
    assert s == 0xF7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8


def test_the_digest_of_what_the_guest_proved() -> None:
    """What certificates carry is SHA-256 of the RFC 8785 form of the answer's `boot_info`."""
    assert BOOT_INFO.digest == sha256(second_files.canonical(BOOT_INFO.to_json())).digest()
    leaf = x509.load_pem_x509_certificate(CASES[0]["expect"]["certificate_chain"][0].encode())
    found = leaf.extensions.get_extension_for_oid(x509.ObjectIdentifier(second_certificates.BOOT_INFO))
    assert isinstance(found.value, x509.UnrecognizedExtension)
    assert found.value.value == b"\x04\x20" + regenerate.BOOT_INFO_DIGEST
