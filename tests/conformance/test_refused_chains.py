"""Certificate chains that prove nothing, and collateral that is missing, stale or revoked.

A refusal is always a problem document that echoes nothing; `check_refused` looks at that in every test.
"""

import dataclasses
import os
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.conformance import own_der as der
from tests.conformance.conftest import REVOKED_SERIAL
from tests.conformance.own_authority import MILAN
from tests.conformance.own_certificate import (
    BOOTLOADER,
    HARDWARE_ID,
    MICROCODE,
    PKCS1_SHA384,
    PRODUCT_NAME,
    PROVIDER_ID,
    PSS_SHA256,
    SNP,
    TEE,
    Edit,
    Extension,
    issue,
    years,
)
from tests.conformance.own_client import (
    COLLATERAL,
    MALFORMED,
    UNTRUSTED,
    Client,
    check_refused,
    open_release,
)
from tests.conformance.own_encoding import b64
from tests.conformance.own_fleet import CSP_ID, Fleet
from tests.conformance.own_kds import Shelf
from tests.conformance.own_platform import (
    SIGNER_VLEK,
    certificate_table,
)
from tests.conformance.own_server import Server

GOOD = MILAN.tcb


# ── the chain ─────────────────────────────────────────────────────────────────────────────────


def test_a_chain_under_another_ark_with_the_same_names(kms: Client, fleet: Fleet) -> None:
    """Field lesson 2: self-consistent, and signed by nobody."""
    chip, impostor = fleet.chips["impostor"], fleet.impostor
    for chain in (
        (chip.vcek(), impostor.ask, impostor.ark),
        (chip.vcek(), impostor.ask),
        (chip.vcek(), impostor.ask, impostor.ark, fleet.milan.ark, fleet.milan.ask),
        (chip.vcek(), fleet.milan.ask, fleet.milan.ark),
        (chip.vcek(),),
    ):
        check_refused(kms.ask(fleet.guest(chip="impostor", chain=chain)), UNTRUSTED)


def test_a_chain_under_another_ark_in_the_host_table(kms: Client, fleet: Fleet) -> None:
    chip, impostor = fleet.chips["impostor"], fleet.impostor
    table = certificate_table({"vcek": chip.vcek(), "ask": impostor.ask, "ark": impostor.ark})
    fields = {"certificates": None, "certificate_table": b64(table)}
    check_refused(kms.ask(fleet.guest(chip="impostor", evidence_fields=fields)), UNTRUSTED)


def test_an_ask_that_the_ark_did_not_sign(kms: Client, fleet: Fleet) -> None:
    ask = fleet.impostor.issue_ask()
    chain = (fleet.chips["impostor"].vcek(), ask, fleet.milan.ark)
    check_refused(kms.ask(fleet.guest(chip="impostor", chain=chain)), UNTRUSTED)


def test_a_leaf_that_the_ark_signed_itself(kms: Client, fleet: Fleet) -> None:
    leaf = fleet.chips["first"].vcek(issuer="ARK-Milan", signer=fleet.milan.ark_key)
    check_refused(kms.ask(fleet.guest(chain=(leaf, fleet.milan.ask))), UNTRUSTED)


def test_a_leaf_that_another_chip_signed_for(kms: Client, fleet: Fleet) -> None:
    """A leaf under a product's ASK that is not the one it names."""
    leaf = fleet.chips["first"].vcek(signer=fleet.turin.ask_key)
    for ask in (fleet.milan.ask, fleet.turin.ask):
        check_refused(kms.ask(fleet.guest(chain=(leaf, ask))), UNTRUSTED)


def test_a_leaf_of_another_product(kms: Client, fleet: Fleet) -> None:
    chip = dataclasses.replace(fleet.chips["first"], authority=fleet.genoa)
    guest = dataclasses.replace(fleet.guest(), chip=chip, report={"cpuid": MILAN.cpuid})
    check_refused(kms.ask(guest), UNTRUSTED)


@pytest.mark.parametrize("name", ["Genoa", "Milan2", "Mila", "-Milan", "milan"])
def test_a_product_name_that_disagrees(kms: Client, fleet: Fleet, name: str) -> None:
    leaf = fleet.chips["first"].vcek(product_name=name)
    check_refused(kms.ask(fleet.guest(chain=(leaf, fleet.milan.ask))), UNTRUSTED)


@pytest.mark.parametrize(
    "names",
    [
        {"subject": "SEV-VLEK"},
        {"subject": "SEV-VCEK2"},
        {"subject": "VCEK"},
        {"issuer": "SEV-Genoa"},
        {"issuer": "SEV-VLEK-Milan"},
        {"issuer": "ARK-Milan"},
    ],
    ids=str,
)
def test_a_leaf_with_another_name(kms: Client, fleet: Fleet, names: dict[str, Any]) -> None:
    """Of a chip that the KDS does not know: a leaf of no known name may also count as no leaf at all."""
    leaf = fleet.chips["unknown"].vcek(**names)
    attempt = kms.ask(fleet.guest(chip="unknown", chain=(leaf, fleet.milan.ask)))
    check_refused(attempt, UNTRUSTED, COLLATERAL)


@pytest.mark.parametrize("validity", [(2.0, -1.0), (-1.0, 2.0)], ids=["expired", "not yet valid"])
def test_a_leaf_out_of_its_time(kms: Client, fleet: Fleet, validity: tuple[float, float]) -> None:
    """Field lesson 10."""
    leaf = fleet.chips["first"].vcek(valid=years(*validity))
    check_refused(kms.ask(fleet.guest(chain=(leaf, fleet.milan.ask))), UNTRUSTED)


ASK_VARIANTS: dict[str, dict[str, Any]] = {
    "sound": {},
    "expired": {"valid": years(9, -1)},
    "no basic constraints": {"basic_constraints": None},
    "no CA": {"basic_constraints": der.sequence()},
    "no key usage": {"key_usage": None},
    "CRLs only": {"key_usage": der.bits(b"\x02", unused=1)},
    "digital signatures": {"key_usage": der.bits(b"\x80", unused=7)},
    "another name": {"subject": "SEV-Genoa"},
}


@pytest.mark.parametrize("variant", ASK_VARIANTS)
def test_an_ask_that_may_not_sign(kms: Client, fleet: Fleet, variant: str) -> None:
    """The ARK signed it, for a key of which no other certificate exists, so this one is judged."""
    key = fleet.impostor.ask_key
    ask = fleet.milan.issue_ask(public_key=key.public_key(), **ASK_VARIANTS[variant])
    attempt = kms.ask(fleet.guest(chain=(fleet.chips["first"].vcek(signer=key), ask)))
    if variant == "sound":
        open_release(attempt, kms.identity)
    else:
        check_refused(attempt, UNTRUSTED)


@pytest.mark.parametrize("algorithm", [PSS_SHA256, PKCS1_SHA384])
def test_a_leaf_signed_in_another_way(kms: Client, fleet: Fleet, algorithm: str) -> None:
    leaf = fleet.chips["first"].vcek(algorithm=algorithm)
    check_refused(kms.ask(fleet.guest(chain=(leaf, fleet.milan.ask))), UNTRUSTED)


def test_a_leaf_on_another_curve(kms: Client, fleet: Fleet) -> None:
    leaf = fleet.chips["first"].vcek(public_key=ec.generate_private_key(ec.SECP256R1()).public_key())
    check_refused(kms.ask(fleet.guest(chain=(leaf, fleet.milan.ask))), UNTRUSTED)


def test_a_certificate_whose_signature_is_broken(kms: Client, fleet: Fleet) -> None:
    for at in (-1, -200):
        leaf = bytearray(fleet.chips["first"].vcek())
        leaf[at] ^= 1
        check_refused(kms.ask(fleet.guest(chain=(bytes(leaf), fleet.milan.ask))), UNTRUSTED)


# ── the leaf's extensions ─────────────────────────────────────────────────────────────────────


def _without(oid: str) -> Edit:
    return lambda extensions: [extension for extension in extensions if extension[0] != oid]


def _with_value(oid: str, value: bytes) -> Edit:
    def edit(extensions: list[Extension]) -> list[Extension]:
        return [(name, critical, value if name == oid else old) for name, critical, old in extensions]

    return edit


def _twice(oid: str, value: bytes | None = None) -> Edit:
    def edit(extensions: list[Extension]) -> list[Extension]:
        [found] = [extension for extension in extensions if extension[0] == oid]
        return [*extensions, (oid, False, found[2] if value is None else value)]

    return edit


@pytest.mark.parametrize("oid", [BOOTLOADER, TEE, SNP, MICROCODE, PRODUCT_NAME, HARDWARE_ID])
def test_a_leaf_without_an_extension(kms: Client, fleet: Fleet, oid: str) -> None:
    """Field lesson 4: each compared, not each compared if present."""
    leaf = fleet.chips["first"].vcek(edit=_without(oid))
    check_refused(kms.ask(fleet.guest(chain=(leaf, fleet.milan.ask))), UNTRUSTED)


@pytest.mark.parametrize("oid", [BOOTLOADER, SNP, MICROCODE, PRODUCT_NAME, HARDWARE_ID])
def test_a_leaf_with_an_extension_twice(kms: Client, fleet: Fleet, oid: str) -> None:
    leaf = fleet.chips["first"].vcek(edit=_twice(oid))
    attempt = kms.ask(fleet.guest(chain=(leaf, fleet.milan.ask)))
    check_refused(attempt, MALFORMED, UNTRUSTED)


@pytest.mark.parametrize(
    "value",
    [b"", b"\x02\x01", b"\x02\x00", b"\x02\x01\x18\x00", b"\x04\x01\x18", b"\x02\x02\x00\x18", b"\x18"],
    ids=bytes.hex,
)
def test_a_tcb_extension_that_is_no_minimal_integer(kms: Client, fleet: Fleet, value: bytes) -> None:
    """Field lesson 14; 24 is the right number for this component."""
    leaf = fleet.chips["first"].vcek(edit=_with_value(SNP, value))
    attempt = kms.ask(fleet.guest(chain=(leaf, fleet.milan.ask)))
    check_refused(attempt, MALFORMED, UNTRUSTED)


@pytest.mark.parametrize("kept", [0, 1, 8, 63])
def test_a_hardware_id_that_is_only_a_prefix(kms: Client, fleet: Fleet, kept: int) -> None:
    chip = fleet.chips["first"]
    leaf = chip.vcek(hardware_id=chip.chip_id[:kept])
    attempt = kms.ask(fleet.guest(chain=(leaf, fleet.milan.ask)))
    check_refused(attempt, MALFORMED, UNTRUSTED)


@pytest.mark.parametrize("chip", ["first", "turin"])
def test_the_certificate_of_another_chip(kms: Client, fleet: Fleet, chip: str) -> None:
    """Field lesson 3: the same key, so only the hwID tells."""
    ours = fleet.chips[chip]
    length = len(ours.hardware_id)
    leaf = ours.vcek(hardware_id=os.urandom(length))
    guest = fleet.guest(chip=chip, chain=(leaf, ours.authority.ask))
    check_refused(kms.ask(guest), UNTRUSTED)


@pytest.mark.parametrize("component", ["bootloader", "snp", "microcode"])
def test_a_certificate_for_another_tcb(kms: Client, fleet: Fleet, component: str) -> None:
    """The leaf is authentic but stale, and nobody has a better one."""
    chip = fleet.chips["unknown"]
    leaf = chip.vcek(tcb=GOOD.one_less(component))
    attempt = kms.ask(fleet.guest(chip="unknown", chain=(leaf, fleet.milan.ask)))
    check_refused(attempt, UNTRUSTED, COLLATERAL)


def test_a_certificate_above_the_current_tcb(kms: Client, fleet: Fleet) -> None:
    chip = fleet.chips["first"]
    newer = dataclasses.replace(GOOD, snp=25)
    report = {"reported_tcb": chip.product.pack(newer)}
    guest = fleet.guest(chain=(chip.vcek(tcb=newer), fleet.milan.ask), report=report)
    check_refused(kms.ask(guest), UNTRUSTED)


def test_tcb_components_are_not_one_integer(kms: Client, fleet: Fleet) -> None:
    """Field lesson 7: microcode is the highest byte, so as one integer this current TCB is the higher."""
    chip = fleet.chips["first"]
    current = dataclasses.replace(GOOD, microcode=220, snp=23)
    guest = fleet.guest(report={"current_tcb": chip.product.pack(current)})
    check_refused(kms.ask(guest), UNTRUSTED)


def test_a_vcek_for_a_report_that_says_vlek(kms: Client, fleet: Fleet) -> None:
    guest = fleet.guest("relaxed", report={"flags": SIGNER_VLEK << 2})
    check_refused(kms.ask(guest), UNTRUSTED)


def test_a_vlek_for_a_report_that_says_vcek(kms: Client, fleet: Fleet) -> None:
    chain = (fleet.chips["unknown"].vlek(CSP_ID), fleet.milan.asvk)
    attempt = kms.ask(fleet.guest("relaxed", chip="unknown", chain=chain))
    check_refused(attempt, UNTRUSTED, COLLATERAL)


def test_a_vlek_with_a_hardware_id(kms: Client, fleet: Fleet) -> None:
    chip = fleet.chips["first"]
    leaf = chip.vlek(CSP_ID, edit=lambda extensions: [*extensions, (HARDWARE_ID, False, chip.chip_id)])
    guest = fleet.guest("relaxed", chain=(leaf, fleet.milan.asvk), report={"flags": SIGNER_VLEK << 2})
    check_refused(kms.ask(guest), UNTRUSTED)


def test_a_vlek_without_a_provider(kms: Client, fleet: Fleet) -> None:
    leaf = fleet.chips["first"].vlek(CSP_ID, edit=_without(PROVIDER_ID))
    guest = fleet.guest("relaxed", chain=(leaf, fleet.milan.asvk), report={"flags": SIGNER_VLEK << 2})
    check_refused(kms.ask(guest), UNTRUSTED)


def test_a_vlek_under_the_vcek_authority(kms: Client, fleet: Fleet) -> None:
    chip = fleet.chips["first"]
    leaf = issue(
        subject="SEV-VLEK",
        issuer="SEV-Milan",
        public_key=chip.key.public_key(),
        signer=fleet.milan.ask_key,
        serial=0,
        valid=years(0.1, 0.5),
        extensions=[(PROVIDER_ID, False, der.ia5(CSP_ID))],
    )
    guest = fleet.guest("relaxed", chain=(leaf, fleet.milan.ask), report={"flags": SIGNER_VLEK << 2})
    check_refused(kms.ask(guest), UNTRUSTED)


def test_a_missing_vlek_cannot_be_fetched(kms: Client, fleet: Fleet) -> None:
    guest = fleet.guest("relaxed", chain=(), report={"flags": SIGNER_VLEK << 2, "chip_id": bytes(64)})
    check_refused(kms.ask(guest), UNTRUSTED)


# ── collateral ────────────────────────────────────────────────────────────────────────────────


def test_a_chip_that_the_kds_does_not_know(kms: Client, fleet: Fleet) -> None:
    attempt = kms.ask(fleet.guest(chip="unknown", chain=()))
    check_refused(attempt, UNTRUSTED, COLLATERAL)


def test_a_kds_that_is_down(kms: Client, fleet: Fleet) -> None:
    """Field lesson 15: say that it may work later, not that the guest is untrusted."""
    check_refused(kms.ask(fleet.guest(chip="stranded", chain=())), COLLATERAL)


def test_a_revoked_ask(wary: tuple[Server, Client], fleet: Fleet, shelf: Shelf) -> None:
    """With KMS_CRL=require the list is read before anything is believed."""
    client, chip = wary[1], fleet.chips["genoa"]
    good = client.ask(fleet.guest(chip="genoa", chain=(chip.vcek(), fleet.genoa.ask)))
    open_release(good, client.identity)
    assert any(path.endswith("/Genoa/crl") for path in shelf.asked)
    key = fleet.impostor.ask_key
    revoked = fleet.genoa.issue_ask(public_key=key.public_key(), serial=REVOKED_SERIAL)
    attempt = client.ask(fleet.guest(chip="genoa", chain=(chip.vcek(signer=key), revoked)))
    check_refused(attempt, UNTRUSTED)


def test_a_required_list_that_nobody_has(wary: tuple[Server, Client], fleet: Fleet) -> None:
    check_refused(wary[1].ask(fleet.guest()), COLLATERAL)
