"""Machines, vCPU types, guest features and VMSA pages."""

import pytest

from kms.measurement.errors import MeasurementError
from kms.measurement.guest_features import acceptable_features, feature_names, parse_features
from kms.measurement.metadata import PAGE
from kms.measurement.snp import MAX_VCPUS, Machine, machine_digest, measurements, vmsa_pages
from kms.measurement.vcpu_types import VCPU_TYPES, cpuid_signature
from kms.measurement.vmsa import Vmm, VmsaVariant, svsm_vmsa_page, vmsa_page

EPYC_V4 = VCPU_TYPES["EPYC-v4"]
PREFIX = bytes(48)


@pytest.mark.parametrize(
    ("vcpus", "signature", "features"),
    [
        (0, 1, 1),
        (-1, 1, 1),
        (MAX_VCPUS + 1, 1, 1),
        (1_000_000, 1, 1),
        (1, -1, 1),
        (1, 1 << 32, 1),
        (1, 1, -1),
        (1, 1, (1 << 64) + 1),
    ],
)
def test_refuses_impossible_machines(vcpus: int, signature: int, features: int) -> None:
    with pytest.raises(MeasurementError):
        Machine(vcpus, signature, features)


def test_signatures() -> None:
    # What real guests' CPUID shows (QEMU's models), and hosts' own: Milan B1, Genoa, Turin.
    assert EPYC_V4 == 0x800F12
    assert VCPU_TYPES["EPYC-Rome"] == 0x830F10
    assert VCPU_TYPES["EPYC-Milan"] == 0xA00F11
    assert VCPU_TYPES["EPYC-Genoa"] == 0xA10F10
    assert VCPU_TYPES["EPYC-Turin"] == 0xB00F00
    assert cpuid_signature(26, 2, 1) == 0xB00F21
    assert cpuid_signature(6, 0xF, 0) == 0x6F0


@pytest.mark.parametrize("parts", [(-1, 0, 0), (271, 0, 0), (25, 256, 0), (25, 1, 16), (25, -1, 0)])
def test_refuses_parts_that_would_be_masked(parts: tuple[int, int, int]) -> None:
    with pytest.raises(MeasurementError):
        cpuid_signature(*parts)


def test_further_vcpus_extend_the_chain() -> None:
    machine = Machine(5, EPYC_V4, 1)
    chain = list(measurements(PREFIX, Vmm.QEMU, machine, 0x80B004))
    assert len(set(chain)) == 5
    for vcpus, digest in enumerate(chain, start=1):
        assert machine_digest(PREFIX, Vmm.QEMU, Machine(vcpus, EPYC_V4, 1), 0x80B004) == digest


def test_one_vcpu_needs_no_reset_address() -> None:
    machine_digest(PREFIX, Vmm.QEMU, Machine(1, EPYC_V4, 1), 0)
    with pytest.raises(MeasurementError, match="reset address"):
        machine_digest(PREFIX, Vmm.QEMU, Machine(2, EPYC_V4, 1), 0)


def test_boot_processor_starts_at_the_reset_vector() -> None:
    boot, second, third = vmsa_pages(Vmm.QEMU, Machine(3, EPYC_V4, 1), 0x80_B004)
    assert {len(boot), len(second)} == {PAGE}
    assert second == third != boot
    # AMD64 APM volume 2, table B-4: CS base at 0x18, RIP at 0x178
    assert int.from_bytes(boot[0x18:0x20], "little") == 0xFFFF_0000
    assert int.from_bytes(boot[0x178:0x180], "little") == 0xFFF0
    assert int.from_bytes(second[0x18:0x20], "little") == 0x80_0000
    assert int.from_bytes(second[0x178:0x180], "little") == 0xB004


@pytest.mark.parametrize("vmm", Vmm)
def test_only_qemu_shows_the_vcpu_type(vmm: Vmm) -> None:
    naples = vmsa_page(vmm, 0xFFFF_FFF0, vcpu_signature=EPYC_V4, features=1)
    milan = vmsa_page(vmm, 0xFFFF_FFF0, vcpu_signature=VCPU_TYPES["EPYC-Milan"], features=1)
    assert (naples != milan) == vmm.shows_vcpu_type


def test_variants_are_those_of_their_hypervisor() -> None:
    pages = set()
    for vmm in Vmm:
        for variant in VmsaVariant:
            try:
                pages.add(vmsa_page(vmm, 0x80B004, vcpu_signature=EPYC_V4, features=1, variant=variant))
            except MeasurementError:
                continue
    assert len(pages) == 6  # QEMU and EC2 two each, GCE and krun one each
    with pytest.raises(MeasurementError):
        svsm_vmsa_page(0, vcpu_signature=EPYC_V4, variant=VmsaVariant.RDX_ZERO)


def test_old_linux_left_the_floating_point_control_words_zero() -> None:
    page = vmsa_page(Vmm.QEMU, 0x80B004, vcpu_signature=EPYC_V4, features=1, variant=VmsaVariant.BEFORE_6_10)
    assert page[0x408:0x40C] == bytes(4)  # MXCSR
    assert page[0x410:0x412] == bytes(2)  # x87 FCW


def test_features_parse() -> None:
    assert parse_features("0x21") == 0x21
    assert feature_names(0x21 | 1 << 11) == ("snp-active", "debug-swap", "bit-11")
    for text in ("1", "0x", "0X1", "0x1g", "0x" + "1" * 17, " 0x1", "-0x1", "0xA"):
        with pytest.raises(MeasurementError):
            parse_features(text)


@pytest.mark.parametrize("features", [0, 0x20, 0x1 | 1 << 11, 0x1 | 1 << 13, 0x1 | 1 << 16, 0x1 | 1 << 64])
def test_policy_features_are_bounded(features: int) -> None:
    with pytest.raises(MeasurementError):
        acceptable_features(features)
    assert acceptable_features(0x201) == 0x201
