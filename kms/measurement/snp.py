"""The SNP launch measurement from its parts: firmware digest, sections, kernel hashes, vCPUs."""

from collections.abc import Iterator
from functools import lru_cache
from hashlib import sha384
from itertools import chain, repeat
from typing import Final, NamedTuple, Self

from kms.identifiers import Measurement
from kms.measurement.errors import MeasurementError
from kms.measurement.kernel_hashes import check_table_place, hash_page
from kms.measurement.metadata import FirmwareDescription, SectionType
from kms.measurement.pages import PageType, extend_data, extend_empty, extend_vmsa, vmsa_contents
from kms.measurement.vmsa import BSP_EIP, Vmm, VmsaVariant, vmsa_page

MAX_VCPUS: Final = 512  # field lesson 16: a million vCPUs would be hashed one by one


# How hypervisors launch a section. Zeros are memory for the firmware's first phase, the SVSM calling area,
# and a hash page that nothing fills.
_COMMON_PAGE_TYPES: Final = {
    SectionType.SEC_MEMORY: PageType.ZERO,
    SectionType.SECRETS: PageType.SECRETS,
    SectionType.CPUID: PageType.CPUID,
    SectionType.SVSM_CAA: PageType.ZERO,
    SectionType.KERNEL_HASHES: PageType.ZERO,
}
_PAGE_TYPES: Final = dict.fromkeys(Vmm, _COMMON_PAGE_TYPES) | {
    Vmm.GCE: _COMMON_PAGE_TYPES | {SectionType.SEC_MEMORY: PageType.UNMEASURED}
}


class _Machine(NamedTuple):
    vcpus: int
    vcpu_signature: int
    guest_features: int


class Machine(_Machine):
    """What the host chose for a launch: vCPUs (1 to 512), CPUID Fn1 EAX (32 bits), SEV_FEATURES (64 bits).

    Raises:
        MeasurementError: out of range. Cut to their width (as ctypes does), 2^64 + 1 would measure as 1.

    """

    __slots__ = ()

    def __new__(cls, vcpus: int, vcpu_signature: int, guest_features: int) -> Self:
        """Check the ranges."""
        check_vcpus(vcpus)
        if not 0 <= vcpu_signature < 1 << 32:
            raise MeasurementError("a vCPU signature has 32 bits")
        if not 0 <= guest_features < 1 << 64:
            raise MeasurementError("guest features have 64 bits")
        return super().__new__(cls, vcpus, vcpu_signature, guest_features)


def check_vcpus(vcpus: int) -> int:
    """Give back a number of vCPUs from 1 to 512. Raises `MeasurementError` for another."""
    if not 1 <= vcpus <= MAX_VCPUS:
        raise MeasurementError(f"vCPUs must be from 1 to {MAX_VCPUS}")
    return vcpus


def metadata_digest(vmm: Vmm, firmware: FirmwareDescription, hash_table: bytes | None) -> bytes:
    """Give the digest after firmware and sections, before any vCPU: all that does not depend on the machine.

    `hash_table` is that of `kms.measurement.kernel_hashes`, or None when no kernel is measured.

    Raises:
        MeasurementError: a kernel is given and the firmware has no right place for its hashes.

    """
    if hash_table is not None:
        check_table_place(firmware.sections, firmware.hashes_table_gpa)
    digest: bytes = firmware.digest
    page_types, cpuid_last = _PAGE_TYPES[vmm], vmm is Vmm.EC2
    for section in firmware.sections:
        if cpuid_last and section.type is SectionType.CPUID:
            continue
        if hash_table is not None and section.type is SectionType.KERNEL_HASHES:
            digest = extend_data(digest, section.gpa, hash_page(hash_table, firmware.hashes_table_gpa))
        else:
            digest = extend_empty(digest, page_types[section.type], section.gpa, section.size)
    if cpuid_last:
        # EC2 launches the CPUID page after everything else.
        for section in firmware.sections:
            if section.type is SectionType.CPUID:
                digest = extend_empty(digest, PageType.CPUID, section.gpa, section.size)
    return digest


def vmsa_pages(
    vmm: Vmm, machine: Machine, reset_eip: int, variant: VmsaVariant = VmsaVariant.CURRENT
) -> Iterator[bytes]:
    """Give the VMSA page (4096 bytes) of each vCPU: the boot processor's, then the others', all alike.

    Raises:
        MeasurementError: more than one vCPU and no address where the others would start.

    """
    _check_reset_eip(machine, reset_eip)
    boot, other = (
        vmsa_page(vmm, eip, machine.vcpu_signature, machine.guest_features, variant)
        for eip in (BSP_EIP, reset_eip)
    )
    return chain((boot,), repeat(other, machine.vcpus - 1))


def measurements(
    prefix: bytes, vmm: Vmm, machine: Machine, reset_eip: int, variant: VmsaVariant = VmsaVariant.CURRENT
) -> Iterator[bytes]:
    """Give the digest of 1, 2, … `machine.vcpus` vCPUs after `prefix` (48 bytes), one hash for each.

    Raises:
        MeasurementError: as `vmsa_pages`.

    """
    boot, other = _contents(vmm, machine, reset_eip, variant)
    digest = extend_vmsa(prefix, boot)
    yield digest
    # Not by `extend_vmsa`: a table has thousands of these, and a call costs as much as a hash.
    for _ in range(machine.vcpus - 1):
        digest = sha384(digest + other).digest()
        yield digest


def machine_digest(
    prefix: bytes, vmm: Vmm, machine: Machine, reset_eip: int, variant: VmsaVariant = VmsaVariant.CURRENT
) -> Measurement:
    """Give the measurement of one machine after the digest that `metadata_digest` gave.

    Raises:
        MeasurementError: as `vmsa_pages`.

    """
    boot, other = _contents(vmm, machine, reset_eip, variant)
    return Measurement(extend_vmsa(extend_vmsa(prefix, boot), other, machine.vcpus - 1))


def _contents(vmm: Vmm, machine: Machine, reset_eip: int, variant: VmsaVariant) -> tuple[bytes, bytes]:
    """Give what is chained for the boot processor and for each other one."""
    _check_reset_eip(machine, reset_eip)
    signature, features = machine.vcpu_signature, machine.guest_features
    return (
        _page_contents(vmm, BSP_EIP, signature, features, variant),
        _page_contents(vmm, reset_eip, signature, features, variant),
    )


# A fleet has a handful of these pages, and hashing them is a third of a measurement whose firmware is known.
@lru_cache(maxsize=1024)
def _page_contents(vmm: Vmm, eip: int, signature: int, features: int, variant: VmsaVariant) -> bytes:
    return vmsa_contents(vmsa_page(vmm, eip, signature, features, variant))


def _check_reset_eip(machine: Machine, reset_eip: int) -> None:
    if machine.vcpus > 1 and not reset_eip:
        raise MeasurementError("more than one vCPU, but the firmware has no SEV-ES reset address")
