"""What the policy forbids, and the limits of the service.

A refusal is always a problem document that echoes nothing; `check_refused` looks at that in every test.
"""

import dataclasses

import pytest

from tests.conformance.own_authority import MILAN, Tcb
from tests.conformance.own_client import (
    DENIED,
    UNKNOWN,
    Client,
    check_problem,
    check_refused,
    open_release,
)
from tests.conformance.own_fleet import CSP_ID, WITHDRAWN_COMPOSE, Fleet, Guest
from tests.conformance.own_platform import (
    SIGNER_VLEK,
)
from tests.conformance.own_policy import LISTED_KEY_DIGEST, REVOKED_VCPUS
from tests.conformance.own_server import Server

GOOD = MILAN.tcb
OLD = Tcb(bootloader=3, tee=0, snp=20, microcode=200)


# ── the policy ────────────────────────────────────────────────────────────────────────────────


def test_an_app_that_nobody_listed(kms: Client, fleet: Fleet) -> None:
    nobody = dataclasses.replace(fleet.apps["payments"], id="77" * 20)
    check_refused(kms.ask(dataclasses.replace(fleet.guest(), app=nobody)), DENIED)


def test_a_compose_hash_that_nobody_listed(kms: Client, fleet: Fleet) -> None:
    other = dataclasses.replace(fleet.apps["payments"], compose="77" * 32)
    check_refused(kms.ask(dataclasses.replace(fleet.guest(), app=other)), DENIED)


def test_a_chip_that_is_not_on_the_list(kms: Client, fleet: Fleet) -> None:
    check_refused(kms.ask(fleet.guest("racked")), DENIED)


def test_what_is_revoked(kms: Client, fleet: Fleet) -> None:
    compose = dataclasses.replace(fleet.apps["payments"], compose=WITHDRAWN_COMPOSE)
    for guest in (
        fleet.guest(chip="stolen"),
        fleet.guest("withdrawn"),
        dataclasses.replace(fleet.guest(), app=compose),
        fleet.guest(image="withdrawn-os"),
        fleet.guest(vcpus=REVOKED_VCPUS),
    ):
        check_refused(kms.ask(guest), DENIED, UNKNOWN)


@pytest.mark.parametrize("app", ["lapsed", "lapsed-tcb"])
def test_an_expired_policy_document(kms: Client, fleet: Fleet, app: str) -> None:
    check_refused(kms.ask(fleet.guest(app)), DENIED)


def _with_tcb(guest: Guest, tcb: Tcb, *fields: str) -> Guest:
    packed = guest.chip.product.pack(tcb)
    return dataclasses.replace(guest, report=dict.fromkeys(fields, packed))


@pytest.mark.parametrize("component", ["bootloader", "snp", "microcode"])
def test_a_reported_tcb_below_the_floor(kms: Client, fleet: Fleet, component: str) -> None:
    lower = GOOD.one_less(component)
    guest = fleet.guest(chain=(fleet.chips["first"].vcek(tcb=lower), fleet.milan.ask))
    fields = ("reported_tcb", "committed_tcb", "current_tcb")
    check_refused(kms.ask(_with_tcb(guest, lower, *fields)), DENIED)


@pytest.mark.parametrize("component", ["bootloader", "snp", "microcode"])
def test_a_higher_component_does_not_make_up_for_a_lower(kms: Client, fleet: Fleet, component: str) -> None:
    """Field lesson 7."""
    higher = Tcb(bootloader=9, tee=9, snp=90, microcode=250)
    mixed = dataclasses.replace(higher, **{component: getattr(GOOD, component) - 1})
    guest = fleet.guest(chain=(fleet.chips["first"].vcek(tcb=mixed), fleet.milan.ask))
    fields = ("reported_tcb", "committed_tcb", "current_tcb")
    check_refused(kms.ask(_with_tcb(guest, mixed, *fields)), DENIED)


def test_a_turin_fmc_below_the_floor(kms: Client, fleet: Fleet) -> None:
    chip = fleet.chips["turin"]
    lower = chip.product.tcb.one_less("fmc")
    guest = fleet.guest(chip="turin", chain=(chip.vcek(tcb=lower), fleet.turin.ask))
    fields = ("reported_tcb", "committed_tcb", "current_tcb")
    check_refused(kms.ask(_with_tcb(guest, lower, *fields)), DENIED)


def test_a_committed_tcb_below_the_floor(kms: Client, fleet: Fleet) -> None:
    check_refused(kms.ask(_with_tcb(fleet.guest(), OLD, "committed_tcb")), DENIED)


@pytest.mark.parametrize("committed", [(1, 55, 28), (1, 54, 29)])
def test_provisional_firmware(kms: Client, fleet: Fleet, committed: tuple[int, int, int]) -> None:
    check_refused(kms.ask(fleet.guest(report={"committed_firmware": committed})), DENIED)


@pytest.mark.parametrize("vmpl", [1, 2, 3])
def test_a_vmpl_that_the_policy_does_not_name(kms: Client, fleet: Fleet, vmpl: int) -> None:
    check_refused(kms.ask(fleet.guest(report={"vmpl": vmpl})), DENIED)


@pytest.mark.parametrize("bit", [18, 19], ids=["migration agent", "debug"])
def test_a_guest_that_others_can_look_into(kms: Client, fleet: Fleet, bit: int) -> None:
    """Field lesson 11."""
    check_refused(kms.ask(fleet.guest(report={"policy": 0x30000 | 1 << bit})), DENIED)


def test_a_platform_without_the_alias_check(kms: Client, fleet: Fleet) -> None:
    check_refused(kms.ask(fleet.guest(report={"platform_info": 0x05})), DENIED)


@pytest.mark.parametrize(
    ("app", "report"),
    [
        ("no-smt", {}),
        ("single-socket", {}),
        ("new-firmware", {}),
        ("version-5", {}),
        ("signed-svn", {"guest_svn": 2}),
        ("signed-svn", {"guest_svn": 1, "id_key_digest": bytes.fromhex(LISTED_KEY_DIGEST)}),
        ("signed-svn", {"guest_svn": 2, "id_key_digest": b"\x11" * 48}),
    ],
)
def test_a_guest_rule_that_is_broken(kms: Client, fleet: Fleet, app: str, report: dict[str, object]) -> None:
    check_refused(kms.ask(fleet.guest(app, report=report)), DENIED)


def test_guest_rules_that_are_kept(kms: Client, fleet: Fleet) -> None:
    """The other side of the test above, so that it refuses for the reason it names."""
    for app, report in (
        ("no-smt", {"policy": 0x20000}),
        ("single-socket", {"policy": 0x130000}),
        ("new-firmware", {"current_firmware": (1, 56, 0), "committed_firmware": (1, 56, 0)}),
    ):
        open_release(kms.ask(fleet.guest(app, report=report)), kms.identity)
    open_release(kms.ask(fleet.guest("version-5", chip="turin")), kms.identity)


def test_a_product_that_the_tcb_document_does_not_list(kms: Client, fleet: Fleet) -> None:
    check_refused(kms.ask(fleet.guest("mitigated")), DENIED)


def test_a_mitigation_that_is_missing(kms: Client, fleet: Fleet) -> None:
    check_refused(kms.ask(fleet.guest("mitigated", chip="turin")), DENIED)
    older = fleet.guest("mitigated", chip="turin", report={"version": 4})
    check_refused(kms.ask(older), DENIED)


def test_a_vlek_where_only_vceks_are_welcome(kms: Client, fleet: Fleet) -> None:
    chain = (fleet.chips["first"].vlek(CSP_ID), fleet.milan.asvk)
    report = {"flags": SIGNER_VLEK << 2, "chip_id": bytes(64)}
    check_refused(kms.ask(fleet.guest("payments", chain=chain, report=report)), DENIED)


def test_a_vlek_of_another_provider(kms: Client, fleet: Fleet) -> None:
    chain = (fleet.chips["first"].vlek("CN=another.example"), fleet.milan.asvk)
    report = {"flags": SIGNER_VLEK << 2, "chip_id": bytes(64)}
    check_refused(kms.ask(fleet.guest("relaxed", chain=chain, report=report)), DENIED)


# ── the service ───────────────────────────────────────────────────────────────────────────────


def test_too_many_requests_from_one_address(limited: tuple[Server, Client]) -> None:
    responses = [limited[1].http.post("/v1/challenges") for _ in range(60)]
    statuses = {response.status_code for response in responses}
    assert statuses == {201, 429}
    for response in responses:
        if response.status_code == 429:
            check_problem(response, "rate-limited")


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer x", "Basic eDp5", "Bearer " + "a" * 4000])
def test_verifications_are_for_operators(kms: Client, header: str) -> None:
    headers = {"authorization": header} if header else {}
    response = kms.http.post("/v1/verifications", json={"evidence": {"tee": "sev-snp"}}, headers=headers)
    check_problem(response)
    assert response.status_code in (401, 403)


@pytest.mark.parametrize("app_id", ["77" * 20, "zz", "00" * 20, "11" * 19, "AB" * 20, "..%2f..%2fetc"])
def test_an_env_key_of_nobody(kms: Client, app_id: str) -> None:
    response = kms.http.get(f"/v1/apps/{app_id}/env-key")
    check_problem(response)
    assert response.status_code < 500
