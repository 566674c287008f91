"""App identities that are not bound, measurements that nobody allowed, keys that are not for this app.

A refusal is always a problem document that echoes nothing; `check_refused` looks at that in every test.
"""

import dataclasses
import hashlib
import json
import os
from typing import Any

import pytest

from tests.conformance.own_client import (
    DENIED,
    DISK,
    EPOCH,
    MALFORMED,
    UNKNOWN,
    UNTRUSTED,
    Client,
    check_refused,
)
from tests.conformance.own_encoding import b64
from tests.conformance.own_fleet import CSP_ID, Fleet
from tests.conformance.own_platform import (
    SIGNER_VLEK,
)

INSTANCE = "11" * 20


# ── the app document ──────────────────────────────────────────────────────────────────────────


def test_a_missing_app_document(kms: Client, fleet: Fleet) -> None:
    guest = fleet.guest(evidence_fields={"app_document": None})
    check_refused(kms.ask(guest), UNTRUSTED)


def test_a_swapped_app_document(kms: Client, fleet: Fleet) -> None:
    other = fleet.guest("orders").app_document()
    assert other is not None
    check_refused(kms.ask(fleet.guest(evidence_fields={"app_document": b64(other)})), UNTRUSTED)


def test_an_app_document_with_one_more_space(kms: Client, fleet: Fleet) -> None:
    """The exact bytes count; there is no canonical form."""
    guest = fleet.guest()
    document = guest.app_document()
    assert document is not None
    guest = dataclasses.replace(guest, evidence_fields={"app_document": b64(document + b" ")})
    check_refused(kms.ask(guest), UNTRUSTED)


def test_host_data_of_the_other_binding(kms: Client, fleet: Fleet) -> None:
    document = fleet.guest().app_document()
    assert document is not None
    digest = hashlib.sha256(b"dstack-mr-config-v3:\x00" + document).digest()
    attempt = kms.ask(fleet.guest(document=document, report={"host_data": digest}))
    check_refused(attempt, UNTRUSTED, MALFORMED)


def _bad_documents() -> dict[str, bytes]:
    app, compose = "11" * 20, "22" * 32
    good = {"version": 1, "app_id": app, "compose_hash": compose}

    def text(**changes: object) -> bytes:
        merged = {**good, **changes}
        return json.dumps({name: value for name, value in merged.items() if value is not None}).encode()

    return {
        "empty": b"",
        "no JSON": b"app_id: 11",
        "a list": b"[]",
        "cut": text()[:-1],
        "two": text() + text(),
        "not UTF-8": text()[:-1] + b',"x":"\xff"}',
        "UTF-16": text().decode().encode("utf-16"),
        "byte order mark": b"\xef\xbb\xbf" + text(),
        "duplicate key": text()[:-1] + b', "app_id": "' + app.encode() + b'"}',
        "unknown key": text(extra=1),
        "no app": text(app_id=None),
        "no compose": text(compose_hash=None),
        "no version": text(version=None),
        "version 2": text(version=2),
        "version true": text(version=True),
        "version 1.0": text().replace(b'"version": 1,', b'"version": 1.0,'),
        "short app": text(app_id="11" * 19),
        "21-byte app": text(app_id="11" * 21),
        "zero app": text(app_id="00" * 20),
        "upper case": text(app_id="AB" * 20),
        "0x": text(app_id="0x" + "11" * 20),
        "numeric app": text(app_id=11),
        "short compose": text(compose_hash="22" * 31),
        "short instance": text(instance_id="33" * 15),
        "long instance": text(instance_id="33" * 33),
        "NaN": text()[:-1] + b', "instance_id": NaN}',
        "deep": b"[" * 20000 + b"]" * 20000,
    }


@pytest.mark.parametrize("name", _bad_documents())
def test_an_app_document_that_cannot_be_read(kms: Client, fleet: Fleet, name: str) -> None:
    guest = fleet.guest(document=_bad_documents()[name])
    attempt = kms.ask(guest)
    if name == "empty" and attempt.response.status_code == 403:
        check_refused(attempt, UNTRUSTED)  # an empty document may also count as none
    else:
        check_refused(attempt, MALFORMED)


def test_an_app_document_for_another_kms(kms: Client, fleet: Fleet) -> None:
    guest = fleet.guest(document_fields={"kms_identity": b64(os.urandom(32))})
    check_refused(kms.ask(guest), DENIED)


@pytest.mark.parametrize("field", ["id", "compose_hash", "instance_id"])
def test_a_request_that_names_another_app(kms: Client, fleet: Fleet, field: str) -> None:
    guest = fleet.guest(instance_id=INSTANCE)
    wrong = {"id": fleet.apps["orders"].id, "compose_hash": "44" * 32, "instance_id": "55" * 20}
    check_refused(kms.ask(guest, app={field: wrong[field]}), DENIED)


def test_a_request_that_names_an_instance_nobody_bound(kms: Client, fleet: Fleet) -> None:
    attempt = kms.ask(fleet.guest(), app={"instance_id": INSTANCE})
    check_refused(attempt, DENIED)


def test_an_image_that_does_not_enforce_the_binding(kms: Client, fleet: Fleet) -> None:
    check_refused(kms.ask(fleet.guest("unenforced", image="bare-os")), DENIED)


def test_a_binding_that_the_app_does_not_accept(kms: Client, fleet: Fleet) -> None:
    """The image enforces it, but the app's policy names another."""
    guest = fleet.guest("unenforced", image="bare-os", binding="dstack-mr-config")
    check_refused(kms.ask(guest), DENIED)


def test_a_measured_command_line_for_another_app(kms: Client, fleet: Fleet) -> None:
    guest = fleet.measured_guest()
    for named in (
        {"id": fleet.apps["payments"].id, "compose_hash": guest.app.compose},
        {"id": guest.app.id, "compose_hash": "44" * 32},
        {"id": guest.app.id},
        None,
    ):
        check_refused(kms.ask(guest, app=named), UNTRUSTED, UNKNOWN, DENIED)


def test_a_document_that_disagrees_with_a_measured_command_line(kms: Client, fleet: Fleet) -> None:
    guest = fleet.measured_guest()
    other = {"version": 1, "app_id": fleet.apps["payments"].id, "compose_hash": guest.app.compose}
    document = json.dumps(other).encode()
    bound = dataclasses.replace(
        guest, document=document, report={"host_data": hashlib.sha256(document).digest()}
    )
    named = {"id": guest.app.id, "compose_hash": guest.app.compose}
    check_refused(kms.ask(bound, app=named), DENIED, UNTRUSTED, UNKNOWN)
    unbound = dataclasses.replace(guest, evidence_fields={"app_document": b64(document)})
    check_refused(kms.ask(unbound, app=named), UNTRUSTED, DENIED, UNKNOWN)


# ── the measurement ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "changes",
    [
        {"measurement": b"\x5a" * 48},
        {"measurement": bytes(48)},
        {"image": "nobodys-os"},
        {"vcpus": 9},
        {"vcpu_type": "EPYC-Genoa"},
        {"features": 0x21},
        {"vcpus": 9, "launch": {"image": "demo-os", "vcpus": 9}},
        {"features": 0x21, "launch": {"guest_features": "0x21"}},
    ],
    ids=str,
)
def test_a_measurement_that_nobody_allowed(kms: Client, fleet: Fleet, changes: dict[str, Any]) -> None:
    """Field lessons 18 and 19: features are measured, and no hint makes a measurement expected."""
    check_refused(kms.ask(fleet.guest(**changes)), UNKNOWN)


def test_a_described_image_that_is_not_the_allowed_one(kms: Client, fleet: Fleet) -> None:
    launch = fleet.images["described-os"].launch()
    guest = fleet.guest("described", image="described-os")
    for hint in (None, {"vcpus": 2}, {"description": {**launch, "cmdline": "console=ttyS1"}, "vcpus": 2}):
        check_refused(kms.ask(dataclasses.replace(guest, launch=hint)), UNKNOWN)
    nobodys = fleet.guest("described", image="nobodys-os")
    hint = {"description": nobodys.image.launch(), "vcpus": 2, "vcpu_type": "EPYC-v4"}
    check_refused(kms.ask(dataclasses.replace(nobodys, launch=hint)), UNKNOWN)


def test_an_image_of_another_app(kms: Client, fleet: Fleet) -> None:
    check_refused(kms.ask(fleet.guest("payments", image="unlisted-os")), DENIED, UNKNOWN)


# ── the keys ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "key",
    [
        {"name": "env", "scope": "app"},
        {"name": "disk", "scope": "instance"},
        {"name": "disk", "scope": "chip"},
        {"name": "custom:db/main", "scope": "app"},
    ],
    ids=str,
)
def test_a_key_that_the_app_may_not_have(kms: Client, fleet: Fleet, key: dict[str, object]) -> None:
    attempt = kms.ask(fleet.guest("frugal", instance_id=INSTANCE), [DISK, key])
    check_refused(attempt, DENIED)


@pytest.mark.parametrize(
    "key",
    [
        {"name": "custom:files/main", "scope": "app"},
        {"name": "custom:db", "scope": "app"},
        {"name": "custom:dbx/main", "scope": "app"},
        {"name": "custom:db/main", "scope": "chip"},
    ],
    ids=str,
)
def test_a_custom_key_outside_the_pattern(kms: Client, fleet: Fleet, key: dict[str, object]) -> None:
    check_refused(kms.ask(fleet.guest(), [key]), DENIED)


@pytest.mark.parametrize("scope", ["instance", "chip"])
@pytest.mark.parametrize("name", ["env", "signing", "tls"])
def test_an_app_key_in_another_scope(kms: Client, fleet: Fleet, name: str, scope: str) -> None:
    attempt = kms.ask(fleet.guest(instance_id=INSTANCE), [{"name": name, "scope": scope}])
    check_refused(attempt, "malformed-request", DENIED)


def test_an_instance_key_without_an_instance(kms: Client, fleet: Fleet) -> None:
    problem = check_refused(kms.ask(fleet.guest(), [{"name": "disk", "scope": "instance"}]), DENIED)
    assert "instance-unbound" in problem["reasons"]


def test_a_chip_key_under_a_vlek(kms: Client, fleet: Fleet) -> None:
    chain = (fleet.chips["first"].vlek(CSP_ID), fleet.milan.asvk)
    for chip_id in (bytes(64), fleet.chips["first"].chip_id):
        report = {"flags": SIGNER_VLEK << 2, "chip_id": chip_id}
        guest = fleet.guest("relaxed", chain=chain, report=report)
        problem = check_refused(kms.ask(guest, [{"name": "disk", "scope": "chip"}]), DENIED)
        assert "chip-unbound" in problem["reasons"]


@pytest.mark.parametrize("epoch", [2, 1000])
def test_an_epoch_that_does_not_exist(kms: Client, fleet: Fleet, epoch: int) -> None:
    attempt = kms.ask(fleet.guest(), [{"name": "disk", "scope": "app", "epoch": epoch}])
    check_refused(attempt, EPOCH)


def test_all_reasons_of_a_step_are_given(kms: Client, fleet: Fleet) -> None:
    """A guest's operator learns everything that failed at once, by code."""
    guest = fleet.guest("racked", report={"vmpl": 1, "policy": 0xB0000, "platform_info": 0x05})
    problem = check_refused(kms.ask(guest), DENIED)
    assert len(set(problem["reasons"])) >= 4
