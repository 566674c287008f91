"""What a guest that can prove itself gets, and nothing but what the protocol page promises."""

import base64
import dataclasses
import hashlib
import json
import os
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_private_key

from tests.conformance.own_authority import Tcb
from tests.conformance.own_certificate import pem
from tests.conformance.own_client import Client, check_signed, open_release, report_data, request_bytes
from tests.conformance.own_encoding import b64, unb64
from tests.conformance.own_fleet import CSP_ID, Fleet, Guest
from tests.conformance.own_kds import Shelf
from tests.conformance.own_platform import SIGNER_VLEK, certificate_table
from tests.conformance.own_policy import LISTED_KEY_DIGEST, Document, revision
from tests.conformance.own_sealing import SUITES, new_recipient
from tests.conformance.own_server import Server

INSTANCE, OTHER_INSTANCE = "11" * 20, "22" * 20


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_delivers_every_kind_of_key(kms: Client, fleet: Fleet, suite: str) -> None:
    guest = fleet.guest(instance_id=INSTANCE)
    names = ("disk", "env", "signing", "custom:db/main", "disk@instance", "disk@chip")
    keys = kms.keys(guest, *names, suite=suite)
    values = [key["value"] for key in keys]
    assert len(set(values)) == len(values), "keys of different names or scopes are different"


def test_keys_do_not_depend_on_suite_or_order(kms: Client, fleet: Fleet) -> None:
    guest = fleet.guest()
    forward = {key["name"]: key["value"] for key in kms.keys(guest, "disk", "env", "signing")}
    backward = {
        key["name"]: key["value"] for key in kms.keys(guest, "signing", "env", "disk", suite=SUITES[2])
    }
    assert forward == backward


def test_the_same_app_gets_the_same_disk_key_elsewhere(kms: Client, fleet: Fleet) -> None:
    expected = kms.disk_key(fleet.guest())
    assert kms.disk_key(fleet.guest(chip="second", vcpus=4, vcpu_type="EPYC-Milan")) == expected
    assert kms.disk_key(fleet.guest(chip="turin")) == expected
    assert kms.disk_key(fleet.guest(instance_id=INSTANCE)) == expected
    assert kms.disk_key(fleet.guest(binding="dstack-mr-config")) == expected


def test_another_app_instance_or_chip_gets_other_keys(kms: Client, fleet: Fleet) -> None:
    keys = [
        kms.disk_key(fleet.guest()),
        kms.disk_key(fleet.guest("orders")),
        kms.disk_key(fleet.guest(instance_id=INSTANCE), "disk@instance"),
        kms.disk_key(fleet.guest(instance_id=OTHER_INSTANCE), "disk@instance"),
        kms.disk_key(fleet.guest("orders", instance_id=INSTANCE), "disk@instance"),
        kms.disk_key(fleet.guest(), "disk@chip"),
        kms.disk_key(fleet.guest(chip="second"), "disk@chip"),
        kms.disk_key(fleet.guest("orders"), "disk@chip"),
        kms.disk_key(fleet.guest(), "custom:db/main"),
        kms.disk_key(fleet.guest(), "custom:db/other"),
    ]
    assert len(set(keys)) == len(keys)


def test_instance_and_chip_keys_are_stable(kms: Client, fleet: Fleet) -> None:
    guest = fleet.guest(instance_id=INSTANCE)
    assert kms.disk_key(guest, "disk@instance") == kms.disk_key(guest, "disk@instance")
    assert kms.disk_key(guest, "disk@chip") == kms.disk_key(fleet.guest(), "disk@chip")


def test_the_answer_says_what_was_proved(kms: Client, fleet: Fleet, policy: list[Document]) -> None:
    guest = fleet.guest(instance_id=INSTANCE)
    attempt = kms.ask(guest)
    body = attempt.body
    info = body["boot_info"]
    assert body["development"] is True
    assert body["policy_revision"] == revision(policy)
    assert isinstance(body["receipt"], dict)
    assert body["receipt"]
    expected = {
        "tee": "sev-snp",
        "report_version": 3,
        "signer": "vcek",
        "csp_id": None,
        "measurement": guest.launch_measurement().hex(),
        "os_image_hash": guest.image.os_image_hash(),
        "image": "demo-os",
        "vcpus": 2,
        "vcpu_type": "EPYC-v4",
        "app_id": guest.app.id,
        "compose_hash": guest.app.compose,
        "instance_id": INSTANCE,
        "binding": "host-data",
        "chip_id": guest.chip.chip_id.hex(),
        "vmpl": 0,
        "guest_svn": 0,
        "host_data": guest.host_data().hex(),
    }
    assert {name: info[name] for name in expected} == expected
    assert str(info["product"]).lower() == "milan"
    floor = {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219}
    for which in ("current", "reported", "committed", "launch"):
        assert {name: info["tcb"][which][name] for name in floor} == floor
    for name in ("cpuid", "guest_features", "firmware", "tcb_status", "advisories", "guest_policy"):
        assert name in info
    for name in ("platform_info", "mitigations", "family_id", "image_id", "report_id"):
        assert name in info
    for name in ("id_key_digest", "author_key_digest"):
        assert name in info


def test_the_identity_is_the_published_one(kms: Client, server: Server) -> None:
    body = kms.http.get("/v1/identity").json()
    assert len(unb64(body["identity"])) == 32
    assert body["development"] is True
    assert body["previous"] == []
    assert body["epochs"]
    assert body["version"]
    assert body["tls_ca"].strip() == server.ca.read_text(encoding="ascii").strip()


def test_the_published_env_key_is_the_released_one(kms: Client, fleet: Fleet) -> None:
    app = fleet.apps["payments"]
    envelope = kms.http.get(f"/v1/apps/{app.id}/env-key").raise_for_status().json()
    published = check_signed(envelope, "attested-kms/v1/env-key", kms.identity)
    [released] = kms.keys(fleet.guest(), "env")
    assert set(published) == {"app_id", "epoch", "algorithm", "public_key", "issued_at"}
    assert published["app_id"] == app.id
    assert published["algorithm"] == "x25519"
    assert (published["public_key"], published["epoch"]) == (released["public_key"], released["epoch"])
    age = datetime.now(UTC) - datetime.fromisoformat(published["issued_at"])
    assert -5 < age.total_seconds() < 300


def test_the_tls_key_has_a_certificate_for_the_allowed_names_only(kms: Client, fleet: Fleet) -> None:
    [key] = kms.keys(fleet.guest(), "tls")
    private = load_der_private_key(unb64(key["value"]), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert private.curve.name == "secp256r1"
    chain = key["certificate_chain"]
    text = chain if isinstance(chain, str) else "".join(chain)
    if "BEGIN CERTIFICATE" in text:
        leaf = x509.load_pem_x509_certificates(text.encode())[0]
    else:
        leaf = x509.load_der_x509_certificate(unb64(chain[0]))
    assert leaf.public_key() == private.public_key()
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["payments.internal"]
    assert len(list(names)) == 1
    assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).days <= 8


@pytest.mark.parametrize("binding", ["host-data", "dstack-mr-config"])
def test_host_data_binds_the_document(kms: Client, fleet: Fleet, binding: str) -> None:
    attempt = kms.ask(fleet.guest(binding=binding))
    open_release(attempt, kms.identity)
    assert attempt.body["boot_info"]["binding"] == binding


def test_a_measured_command_line_binds_the_app(kms: Client, fleet: Fleet) -> None:
    guest = fleet.measured_guest()
    named = {"id": guest.app.id, "compose_hash": guest.app.compose}
    attempt = kms.ask(guest, app=named)
    assert open_release(attempt, kms.identity)["app_id"] == guest.app.id
    assert attempt.body["boot_info"]["binding"] == "cmdline"


def test_a_document_beside_a_measured_command_line_may_agree(kms: Client, fleet: Fleet) -> None:
    guest = fleet.measured_guest()
    document = json.dumps({"version": 1, "app_id": guest.app.id, "compose_hash": guest.app.compose}).encode()
    guest = dataclasses.replace(
        guest, document=document, report={"host_data": hashlib.sha256(document).digest()}
    )
    named = {"id": guest.app.id, "compose_hash": guest.app.compose}
    open_release(kms.ask(guest, app=named), kms.identity)


def test_a_request_may_name_the_app_that_is_bound(kms: Client, fleet: Fleet) -> None:
    guest = fleet.guest(instance_id=INSTANCE)
    named = {"id": guest.app.id, "compose_hash": guest.app.compose, "instance_id": INSTANCE}
    open_release(kms.ask(guest, app=named), kms.identity)


def test_a_document_may_name_this_server(kms: Client, fleet: Fleet) -> None:
    guest = fleet.guest(document_fields={"kms_identity": b64(kms.identity)})
    open_release(kms.ask(guest), kms.identity)


RIGHT_HINT = {
    "image": "demo-os",
    "vcpus": 2,
    "vcpu_type": "EPYC-v4",
    "vcpu_signature": "0x800f12",
    "guest_features": "0x1",
}


@pytest.mark.parametrize(
    "hint",
    [
        {},
        RIGHT_HINT,
        {"vcpus": 2},
        {"image": "bare-os"},
        {"image": "no-such-image"},
        {"image": "00" * 32},
        {**RIGHT_HINT, "vcpus": 5},
        {**RIGHT_HINT, "vcpu_type": "EPYC-Genoa"},
        {**RIGHT_HINT, "guest_features": "0x21"},
        {"vcpu_signature": "0xa00f11"},
    ],
    ids=str,
)
def test_a_launch_hint_decides_nothing(kms: Client, fleet: Fleet, hint: dict[str, object]) -> None:
    attempt = kms.ask(fleet.guest(launch=hint))
    open_release(attempt, kms.identity)
    assert attempt.body["boot_info"]["image"] == "demo-os"
    assert attempt.body["boot_info"]["vcpus"] == 2


def test_an_image_allowed_by_hash_alone_is_described_by_the_guest(kms: Client, fleet: Fleet) -> None:
    image = fleet.images["described-os"]
    hint = {"description": image.launch(), "vcpus": 3, "vcpu_type": "EPYC-Milan"}
    guest = fleet.guest("described", image="described-os", vcpus=3, vcpu_type="EPYC-Milan", launch=hint)
    attempt = kms.ask(guest)
    open_release(attempt, kms.identity)
    assert attempt.body["boot_info"]["os_image_hash"] == image.os_image_hash()


@pytest.mark.parametrize("version", [2, 3, 4])
def test_milan_report_versions(kms: Client, fleet: Fleet, version: int) -> None:
    attempt = kms.ask(fleet.guest(report={"version": version}))
    open_release(attempt, kms.identity)
    assert attempt.body["boot_info"]["report_version"] == version


@pytest.mark.parametrize("version", [3, 4, 5])
def test_turin_report_versions(kms: Client, fleet: Fleet, version: int) -> None:
    guest = fleet.guest(chip="turin", report={"version": version})
    attempt = kms.ask(guest, [{"name": "disk", "scope": "chip"}])
    open_release(attempt, kms.identity)
    info = attempt.body["boot_info"]
    assert str(info["product"]).lower() == "turin"
    assert info["chip_id"] == guest.chip.chip_id.hex()
    assert info["tcb"]["reported"]["fmc"] == 1


def test_mitigations_are_read_from_version_5_reports(kms: Client, fleet: Fleet) -> None:
    guest = fleet.guest("mitigated", chip="turin", report={"launch_mitigations": 0x40})
    open_release(kms.ask(guest), kms.identity)


def test_unknown_platform_bits_are_kept_not_refused(kms: Client, fleet: Fleet) -> None:
    open_release(kms.ask(fleet.guest(report={"platform_info": 0x25 | 1 << 40})), kms.identity)


def test_firmware_above_the_floor_is_welcome(kms: Client, fleet: Fleet) -> None:
    """Field lesson 7: an exact TCB refuses tomorrow's firmware."""
    chip = fleet.chips["first"]
    newer = Tcb(bootloader=5, tee=1, snp=25, microcode=220)
    packed = chip.product.pack(newer)
    names = ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb")
    guest = fleet.guest(chain=(chip.vcek(tcb=newer), fleet.milan.ask), report=dict.fromkeys(names, packed))
    open_release(kms.ask(guest), kms.identity)


def test_the_chip_that_a_list_names(kms: Client, fleet: Fleet) -> None:
    open_release(kms.ask(fleet.guest("racked", chip="listed")), kms.identity)
    open_release(kms.ask(fleet.guest("racked", chip="in-rack")), kms.identity)


def test_a_listed_id_key_gives_the_guest_svn_its_meaning(kms: Client, fleet: Fleet) -> None:
    report = {"guest_svn": 2, "id_key_digest": bytes.fromhex(LISTED_KEY_DIGEST)}
    open_release(kms.ask(fleet.guest("signed-svn", report=report)), kms.identity)


def test_a_provider_signs_with_its_vlek(kms: Client, fleet: Fleet) -> None:
    chip = fleet.chips["first"]
    guest = fleet.guest(
        "relaxed",
        chain=(chip.vlek(CSP_ID), fleet.milan.asvk),
        report={"flags": SIGNER_VLEK << 2, "chip_id": bytes(64), "vmpl": 1},
    )
    attempt = kms.ask(guest)
    open_release(attempt, kms.identity)
    info = attempt.body["boot_info"]
    assert (info["signer"], info["csp_id"], info["chip_id"], info["vmpl"]) == ("vlek", CSP_ID, None, 1)


def test_epoch_one_may_be_asked_for(kms: Client, fleet: Fleet) -> None:
    attempt = kms.ask(fleet.guest(), [{"name": "disk", "scope": "app", "epoch": 1}])
    [key] = open_release(attempt, kms.identity)["keys"]
    assert key["epoch"] == 1
    assert unb64(key["value"]) == kms.disk_key(fleet.guest())


def certificate_forms(guest: Guest) -> dict[str, dict[str, object]]:
    vcek, ask, ark = guest.chip.vcek(), guest.chip.authority.ask, guest.chip.authority.ark
    whole = {"vcek": vcek, "ask": ask, "ark": ark}
    return {
        "der": {"certificates": [b64(vcek), b64(ask), b64(ark)]},
        "standard-alphabet": {"certificates": [base64.b64encode(vcek).decode(), b64(ask)]},
        "any-order": {"certificates": [b64(ark), b64(ask), b64(vcek)]},
        "pem-each": {"certificates": [pem(vcek), pem(ask)]},
        "pem-together": {"certificates": [pem(vcek) + pem(ask) + pem(ark)]},
        "mixed": {"certificates": [pem(vcek), b64(ask)]},
        "table": {"certificates": None, "certificate_table": b64(certificate_table(whole))},
        "table-without-ark": {
            "certificates": None,
            "certificate_table": b64(certificate_table({"vcek": vcek, "ask": ask})),
        },
        "table-and-list": {
            "certificates": [b64(ask)],
            "certificate_table": b64(certificate_table({"vcek": vcek})),
        },
        "ark-not-sent": {"certificates": [b64(vcek), b64(ask)]},
        "leaf-alone": {"certificates": [b64(vcek)]},
    }


FORMS = (
    "der",
    "standard-alphabet",
    "any-order",
    "pem-each",
    "pem-together",
    "mixed",
    "table",
    "table-without-ark",
    "table-and-list",
    "ark-not-sent",
    "leaf-alone",
)


@pytest.mark.parametrize("form", FORMS)
def test_certificates_come_in_many_forms(kms: Client, fleet: Fleet, form: str) -> None:
    guest = fleet.guest()
    fields = certificate_forms(guest)[form]
    open_release(kms.ask(dataclasses.replace(guest, evidence_fields=fields)), kms.identity)


@pytest.mark.parametrize("empty", ["no field", "empty list", "empty table"])
def test_without_certificates_the_server_asks_the_kds(kms: Client, fleet: Fleet, empty: str) -> None:
    """Field lesson 15: guests on plain bare-metal hosts bring no certificates."""
    fields: dict[str, dict[str, object]] = {
        "no field": {"certificates": None},
        "empty list": {"certificates": []},
        "empty table": {"certificates": None, "certificate_table": b64(bytes(24))},
    }
    open_release(kms.ask(fleet.guest(chip="fetched", evidence_fields=fields[empty])), kms.identity)


def test_the_kds_is_asked_once_for_a_chip(kms: Client, fleet: Fleet, shelf: Shelf) -> None:
    guest = fleet.guest(chip="fetched", chain=())
    kms.disk_key(guest)
    before = len(shelf.asked)
    kms.disk_key(guest)
    assert shelf.asked[before:] == []


def test_a_stale_host_table_is_set_aside(kms: Client, fleet: Fleet) -> None:
    chip = fleet.chips["stale"]
    stale = chip.vcek(tcb=Tcb(bootloader=3, tee=0, snp=20, microcode=200))
    open_release(kms.ask(fleet.guest(chip="stale", chain=(stale, fleet.milan.ask))), kms.identity)


def test_certificates_without_a_part_are_ignored(kms: Client, fleet: Fleet) -> None:
    chip = fleet.chips["first"]
    chain = (chip.vcek(), fleet.milan.ask, fleet.turin.ask, fleet.impostor.ark)
    open_release(kms.ask(fleet.guest(chain=chain)), kms.identity)


def test_either_alphabet_and_padding_are_read(kms: Client, fleet: Fleet) -> None:
    guest, recipient = fleet.guest(), new_recipient(SUITES[0])
    padded = f"  {request_bytes(kms.challenge(), recipient, [{'name': 'disk', 'scope': 'app'}]).decode()}  "
    request = padded.encode()
    evidence = guest.evidence(request)
    evidence["report"] = base64.b64encode(guest.sign_report(report_data(request))).decode()
    body = {"request": base64.b64encode(request).decode(), "evidence": evidence}
    response = kms.post(json.dumps(body, indent=3).encode())
    assert response.status_code == 200, response.text


def test_development_mode_shows_on_every_response(kms: Client) -> None:
    responses = [
        kms.http.get("/v1/identity"),
        kms.http.get("/healthz"),
        kms.http.get("/readyz"),
        kms.http.get("/openapi.json"),
        kms.http.get("/no/such/path"),
        kms.http.post("/v1/challenges"),
        kms.http.get("/v1/challenges"),
        kms.post(b"{}"),
    ]
    assert [response.headers.get("KMS-Development") for response in responses] == ["true"] * len(responses)
    assert "development" in responses[2].text


def test_challenges_are_fresh_and_dated(kms: Client) -> None:
    first, second = kms.http.post("/v1/challenges"), kms.http.post("/v1/challenges", content=os.urandom(64))
    assert first.status_code == second.status_code == 201
    assert set(first.json()) == {"challenge", "expires_at"}
    assert first.json()["challenge"] != second.json()["challenge"]
    left = datetime.fromisoformat(first.json()["expires_at"]) - datetime.now(UTC)
    assert 280 < left.total_seconds() <= 301


def test_healthz_openapi_and_docs(kms: Client) -> None:
    assert kms.http.get("/healthz").status_code == 200
    assert "/v1/releases" in kms.http.get("/openapi.json").json()["paths"]
    assert kms.http.get("/docs").status_code == 200


def test_an_unknown_variable_is_a_warning_only(hasty: tuple[Server, Client]) -> None:
    assert "KMS_UNHEARD_OF" in hasty[0].log_text()
