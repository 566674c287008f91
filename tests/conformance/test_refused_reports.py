"""Reports that are malformed, forged, somebody else's or used, and challenges that are.

A refusal is always a problem document that echoes nothing; `check_refused` looks at that in every test.
"""

import dataclasses
import hashlib
import os
import time

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.conformance.own_client import (
    DENIED,
    DISK,
    MALFORMED,
    UNTRUSTED,
    Attempt,
    Client,
    check_refused,
    open_release,
    outer,
    report_data,
    request_bytes,
)
from tests.conformance.own_encoding import b64, unb64
from tests.conformance.own_fleet import Fleet
from tests.conformance.own_platform import (
    MASK_CHIP_KEY,
    P384_ORDER,
    SIGNED_LENGTH,
    SIGNER_NONE,
    flip_bit,
    set_bytes,
    signature_bytes,
)
from tests.conformance.own_sealing import SEALED_BOX, new_recipient
from tests.conformance.own_server import Server

# ── the report: shape (400) ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("length", [0, 1, 671, 672, 1183, 1185, 2368])
def test_a_report_of_another_length(kms: Client, fleet: Fleet, length: int) -> None:
    guest = fleet.guest()
    recipient = new_recipient(SEALED_BOX)
    request = request_bytes(kms.challenge(), recipient, [DISK])
    evidence = guest.evidence(request)
    evidence["report"] = b64((guest.sign_report(report_data(request)) * 2)[:length])
    response = kms.post(outer(request, evidence))
    check_refused(Attempt(recipient, request, evidence, response), MALFORMED)


@pytest.mark.parametrize("version", [0, 1, 6, 0xFFFFFFFF])
def test_an_unknown_report_version(kms: Client, fleet: Fleet, version: int) -> None:
    check_refused(kms.ask(fleet.guest(edit_body=set_bytes(0, version.to_bytes(4, "little")))), MALFORMED)


@pytest.mark.parametrize("algorithm", [0, 2, 0x101])
def test_an_unknown_signature_algorithm(kms: Client, fleet: Fleet, algorithm: int) -> None:
    check_refused(kms.ask(fleet.guest(report={"signature_algorithm": algorithm})), MALFORMED)


@pytest.mark.parametrize(
    ("version", "offset"),
    [
        *((3, offset) for offset in (0x49, 0x4B, 0x4C, 0x4F, 0x18B, 0x19F, 0x1EB, 0x1EF, 0x1F8, 0x200)),
        *((3, offset) for offset in (0x208, 0x29F)),
        *((2, offset) for offset in (0x188, 0x189, 0x18A, 0x1F8, 0x29F)),
        *((4, offset) for offset in (0x1F8, 0x200, 0x29F)),
        *((5, offset) for offset in (0x18B, 0x208, 0x29F)),
        *((3, tcb + byte) for tcb in (0x38, 0x180, 0x1E0, 0x1F0) for byte in (2, 5)),
    ],
)
def test_a_reserved_byte_of_that_version(kms: Client, fleet: Fleet, version: int, offset: int) -> None:
    guest = fleet.guest(report={"version": version}, edit_body=set_bytes(offset, b"\x80"))
    check_refused(kms.ask(guest), MALFORMED)


@pytest.mark.parametrize("offset", [0x38 + 4, 0x38 + 6, 0x180 + 5, 0x1E0 + 4, 0x1F0 + 6])
def test_a_reserved_byte_of_a_turin_tcb(kms: Client, fleet: Fleet, offset: int) -> None:
    check_refused(kms.ask(fleet.guest(chip="turin", edit_body=set_bytes(offset, b"\x01"))), MALFORMED)


@pytest.mark.parametrize("bit", [26, 31, 63])
def test_a_guest_policy_bit_that_nobody_knows(kms: Client, fleet: Fleet, bit: int) -> None:
    check_refused(kms.ask(fleet.guest(report={"policy": 0x30000 | 1 << bit})), MALFORMED)


def test_a_guest_policy_without_its_reserved_one(kms: Client, fleet: Fleet) -> None:
    check_refused(kms.ask(fleet.guest(report={"policy": 0x10000})), MALFORMED)


@pytest.mark.parametrize("signer", [2, 3, 6])
def test_a_reserved_signer(kms: Client, fleet: Fleet, signer: int) -> None:
    attempt = kms.ask(fleet.guest(report={"flags": signer << 2}))
    check_refused(attempt, MALFORMED, UNTRUSTED)


@pytest.mark.parametrize("offset", [0x2A0 + 48, 0x2A0 + 71, 0x2E8 + 48, 0x2E8 + 71, 0x330, 0x49F])
def test_a_signature_with_bytes_where_zeros_belong(kms: Client, fleet: Fleet, offset: int) -> None:
    check_refused(kms.ask(fleet.guest(edit_signed=set_bytes(offset, b"\x01"))), MALFORMED)


@pytest.mark.parametrize(
    "r_and_s",
    [(0, 1), (1, 0), (0, 0), (P384_ORDER, 1), (1, P384_ORDER), (P384_ORDER + 1, 1), (1, 2**384 - 1)],
    ids=["r=0", "s=0", "both=0", "r=n", "s=n", "r=n+1", "s=max"],
)
def test_a_signature_out_of_range(kms: Client, fleet: Fleet, r_and_s: tuple[int, int]) -> None:
    """Field lesson 5."""
    edit = set_bytes(SIGNED_LENGTH, signature_bytes(*r_and_s))
    check_refused(kms.ask(fleet.guest(edit_signed=edit)), MALFORMED)


# ── the report: trust (403) ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("offset", [0x04, 0x10, 0x90, 0xC0, 0x140, 0x1A0, 0x1E8])
def test_a_report_changed_after_signing(kms: Client, fleet: Fleet, offset: int) -> None:
    """Field lesson 1."""
    check_refused(kms.ask(fleet.guest(edit_signed=flip_bit(offset))), UNTRUSTED)


def test_a_forged_signature(kms: Client, fleet: Fleet) -> None:
    check_refused(kms.ask(fleet.guest(edit_signed=flip_bit(SIGNED_LENGTH))), UNTRUSTED)


def test_a_signature_by_another_key(kms: Client, fleet: Fleet) -> None:
    forger = dataclasses.replace(fleet.chips["first"], key=ec.generate_private_key(ec.SECP384R1()))
    genuine = (fleet.chips["first"].vcek(), fleet.milan.ask)
    check_refused(kms.ask(dataclasses.replace(fleet.guest(), chip=forger, chain=genuine)), UNTRUSTED)


def test_a_big_endian_signature(kms: Client, fleet: Fleet) -> None:
    """Field lesson 5: 48 + 48 bytes big-endian, as other systems write it."""

    def rewrite(report: bytearray) -> None:
        r, s = (int.from_bytes(report[at : at + 72], "little") for at in (0x2A0, 0x2E8))
        report[0x2A0:] = (r.to_bytes(48, "big") + s.to_bytes(48, "big")).ljust(512, b"\x00")

    check_refused(kms.ask(fleet.guest(edit_signed=rewrite)), MALFORMED)


@pytest.mark.parametrize("signature", ["signed", "zeros"])
def test_a_masked_chip_key(kms: Client, fleet: Fleet, signature: str) -> None:
    edit = set_bytes(SIGNED_LENGTH, bytes(512)) if signature == "zeros" else set_bytes(0, b"")
    guest = fleet.guest(report={"flags": MASK_CHIP_KEY}, edit_signed=edit)
    check_refused(kms.ask(guest), UNTRUSTED)


@pytest.mark.parametrize("signature", ["signed", "zeros"])
def test_a_report_without_a_signer(kms: Client, fleet: Fleet, signature: str) -> None:
    edit = set_bytes(SIGNED_LENGTH, bytes(512)) if signature == "zeros" else set_bytes(0, b"")
    guest = fleet.guest(report={"flags": SIGNER_NONE << 2}, edit_signed=edit)
    check_refused(kms.ask(guest), UNTRUSTED)


def test_a_report_that_the_host_asked_for(kms: Client, fleet: Fleet) -> None:
    """Field lesson 11."""
    check_refused(kms.ask(fleet.guest(report={"vmpl": 0xFFFFFFFF})), UNTRUSTED)
    attempt = kms.ask(fleet.guest(report={"vmpl": 0xFFFFFFFF, "report_data": bytes(64)}))
    check_refused(attempt, UNTRUSTED)


def test_a_zero_chip_id(kms: Client, fleet: Fleet) -> None:
    check_refused(kms.ask(fleet.guest(report={"chip_id": bytes(64)})), UNTRUSTED)


def test_a_zero_chip_id_with_a_certificate_to_match(kms: Client, fleet: Fleet) -> None:
    """Field lesson 14."""
    for hardware_id in (bytes(64), b""):
        chain = (fleet.chips["first"].vcek(hardware_id=hardware_id), fleet.milan.ask)
        guest = fleet.guest(report={"chip_id": bytes(64)}, chain=chain)
        check_refused(kms.ask(guest), UNTRUSTED)


def test_a_turin_chip_id_with_a_tail(kms: Client, fleet: Fleet) -> None:
    guest = fleet.guest(chip="turin", report={"chip_id": fleet.chips["turin"].chip_id[:8] + b"\x01" * 56})
    attempt = kms.ask(guest)
    check_refused(attempt, MALFORMED, UNTRUSTED)


@pytest.mark.parametrize(
    "cpuid", [(0x1A, 0x02, 0x01), (0x19, 0x11, 0x01), (0x1A, 0x50, 0), (0x17, 0x31, 0), (0, 0, 0)]
)
def test_a_cpuid_of_another_product(kms: Client, fleet: Fleet, cpuid: tuple[int, int, int]) -> None:
    """Field lesson 9: chain, productName and CPUID have to agree; CPUID also decides the TCB's layout."""
    check_refused(kms.ask(fleet.guest(report={"cpuid": cpuid})), UNTRUSTED, MALFORMED)


# ── freshness and binding ─────────────────────────────────────────────────────────────────────


def test_evidence_for_another_request(kms: Client, fleet: Fleet) -> None:
    """A captured report says nothing about what somebody else asks."""
    guest = fleet.guest()
    challenge = kms.challenge()
    evidence = guest.evidence(request_bytes(challenge, new_recipient(SEALED_BOX), [DISK]))
    thief = new_recipient(SEALED_BOX)
    request = request_bytes(challenge, thief, [DISK])
    response = kms.post(outer(request, evidence))
    check_refused(Attempt(thief, request, evidence, response), UNTRUSTED)


@pytest.mark.parametrize("label", [b"", b"attested-kms/v1/request", b"attested-kms/v2/request\x00"])
def test_report_data_without_the_label(kms: Client, fleet: Fleet, label: bytes) -> None:
    recipient = new_recipient(SEALED_BOX)
    request = request_bytes(kms.challenge(), recipient, [DISK])
    guest = fleet.guest(report={"report_data": hashlib.sha512(label + request).digest()})
    evidence = guest.evidence(request)
    check_refused(Attempt(recipient, request, evidence, kms.post(outer(request, evidence))), UNTRUSTED)


def test_a_request_sent_twice(kms: Client, fleet: Fleet) -> None:
    first = kms.ask(fleet.guest())
    open_release(first, kms.identity)
    again = kms.post(outer(first.request, first.evidence))
    check_refused(dataclasses.replace(first, response=again), "challenge-used")


def test_a_used_challenge_with_a_malleated_signature(kms: Client, fleet: Fleet) -> None:
    """Field lesson 12: (r, n-s) verifies too, so no hash of a report is a one-time token."""
    first = kms.ask(fleet.guest())
    report = unb64(first.evidence["report"])
    r, s = (int.from_bytes(report[at : at + 72], "little") for at in (0x2A0, 0x2E8))
    other = report[:SIGNED_LENGTH] + signature_bytes(r, P384_ORDER - s)
    evidence = {**first.evidence, "report": b64(other)}
    again = kms.post(outer(first.request, evidence))
    check_refused(dataclasses.replace(first, evidence=evidence, response=again), "challenge-used")


def test_the_same_challenge_in_the_other_alphabet(kms: Client, fleet: Fleet) -> None:
    """The spent value is the decoded challenge, not its spelling."""
    spelled = next(
        (one, two)
        for one in (kms.challenge() for _ in range(200))
        if (two := one.replace("-", "+").replace("_", "/")) != one
    )
    open_release(kms.ask(fleet.guest(), challenge=spelled[0]), kms.identity)
    check_refused(kms.ask(fleet.guest(), challenge=spelled[1]), "challenge-used")


def test_a_denied_request_spends_its_challenge(kms: Client, fleet: Fleet) -> None:
    challenge = kms.challenge()
    check_refused(kms.ask(fleet.guest("withdrawn"), challenge=challenge), DENIED)
    check_refused(kms.ask(fleet.guest(), challenge=challenge), "challenge-used")


def test_a_forged_request_does_not_spend_a_challenge(kms: Client, fleet: Fleet) -> None:
    """Otherwise whoever sees a challenge can keep its guest from its keys."""
    challenge = kms.challenge()
    forged = fleet.guest(edit_signed=flip_bit(SIGNED_LENGTH))
    check_refused(kms.ask(forged, challenge=challenge), UNTRUSTED)
    malformed = fleet.guest(report={"version": 1})
    check_refused(kms.ask(malformed, challenge=challenge), MALFORMED)
    open_release(kms.ask(fleet.guest(), challenge=challenge), kms.identity)


def test_an_expired_challenge(hasty: tuple[Server, Client], fleet: Fleet) -> None:
    client = hasty[1]
    challenge = client.challenge()
    time.sleep(3.1)
    check_refused(client.ask(fleet.guest(chip="genoa"), challenge=challenge), "challenge-expired")


def test_challenges_that_the_server_never_gave(
    kms: Client, hasty: tuple[Server, Client], fleet: Fleet
) -> None:
    genuine = unb64(kms.challenge())
    flipped = [bytearray(genuine) for _ in range(3)]
    for challenge, at in zip(flipped, (0, len(genuine) // 2, len(genuine) - 1), strict=True):
        challenge[at] ^= 1
    foreign = unb64(hasty[1].challenge())
    wrong = [os.urandom(len(genuine)), bytes(len(genuine)), genuine[:-1], genuine + b"\x00", foreign]
    for invented in (*wrong, *map(bytes, flipped)):
        attempt = kms.ask(fleet.guest(), challenge=b64(invented))
        check_refused(attempt, "challenge-invalid", "malformed-request")


def test_the_challenge_is_judged_before_the_signature(kms: Client, fleet: Fleet) -> None:
    """Checks run cheapest first: nobody buys signature checks with an invented challenge."""
    invented = b64(os.urandom(len(unb64(kms.challenge()))))
    forged = fleet.guest(edit_signed=flip_bit(SIGNED_LENGTH))
    check_refused(kms.ask(forged, challenge=invented), "challenge-invalid")
