"""The modes beside plain SNP: SEV, SEV-ES, and SNP with Coconut-SVSM below the guest's firmware."""

from collections.abc import Iterator
from hashlib import sha256
from itertools import repeat

from kms.identifiers import Measurement
from kms.measurement.errors import MeasurementError
from kms.measurement.firmware import Firmware
from kms.measurement.metadata import PAGE, FirmwareDescription, checked_sections
from kms.measurement.pages import extend_data, extend_vmsa, vmsa_contents
from kms.measurement.snp import Machine, metadata_digest, vmsa_pages
from kms.measurement.vmsa import Vmm, VmsaVariant, svsm_vmsa_page


def sev_measurement(firmware: Firmware, hash_table: bytes | None) -> bytes:
    """Give the SEV measurement (32 bytes): SHA-256 of firmware and, with a kernel, its hash table.

    Raises:
        MeasurementError: a kernel is given and the firmware has no place for its hashes.

    """
    return _sha256_of(firmware, hash_table, iter(()))


def seves_measurement(
    firmware: Firmware,
    hash_table: bytes | None,
    vmm: Vmm,
    machine: Machine,
    variant: VmsaVariant = VmsaVariant.CURRENT,
) -> bytes:
    """Give the SEV-ES measurement (32 bytes): as SEV, then each VMSA. Raises as it and `vmsa_pages`."""
    return _sha256_of(firmware, hash_table, seves_vmsa_pages(firmware, vmm, machine, variant))


def seves_vmsa_pages(
    firmware: Firmware, vmm: Vmm, machine: Machine, variant: VmsaVariant = VmsaVariant.CURRENT
) -> Iterator[bytes]:
    """Give each vCPU's VMSA page; SEV_FEATURES are an SNP matter and stay 0. Raises as `vmsa_pages`."""
    plain = Machine(machine.vcpus, machine.vcpu_signature, 0)
    return vmsa_pages(vmm, plain, firmware.reset_eip, variant)


def _sha256_of(firmware: Firmware, hash_table: bytes | None, pages: Iterator[bytes]) -> bytes:
    digest = sha256(firmware.data)
    if hash_table is not None:
        if not firmware.hashes_table_gpa:
            raise MeasurementError("kernel given, but the firmware has no place for its hashes")
        digest.update(hash_table)
    for page in pages:
        digest.update(page)
    return digest.digest()


def svsm_image(ovmf: Firmware, data: bytes, vars_size: int) -> Firmware:
    """Parse the SVSM image, which is mapped to end below OVMF and its variable store of `vars_size` bytes.

    Raises:
        MeasurementError: no room for it, no metadata, or as `Firmware.parse`.

    """
    if vars_size <= 0 or vars_size % PAGE:
        raise MeasurementError("the variable store must be whole pages")
    svsm = Firmware.parse(data, end_at=ovmf.gpa - vars_size)
    checked_sections(svsm.sections)
    return svsm


def svsm_measurement(
    ovmf: Firmware, svsm: Firmware, machine: Machine, variant: VmsaVariant = VmsaVariant.CURRENT
) -> Measurement:
    """Give the measurement of OVMF, the SVSM image, the SVSM's sections and its vCPUs, all alike.

    Raises:
        MeasurementError: the image has no entry point, or a VMSA variant that is not QEMU's.

    """
    description = FirmwareDescription(
        digest=Measurement(extend_data(ovmf.digest(), svsm.gpa, svsm.data)),
        reset_eip=0,
        hashes_table_gpa=0,
        sections=svsm.sections,
    )
    digest = metadata_digest(Vmm.QEMU, description, None)
    page = svsm_vmsa_page(svsm.svsm_entry, vcpu_signature=machine.vcpu_signature, variant=variant)
    return Measurement(extend_vmsa(digest, vmsa_contents(page), machine.vcpus))


def svsm_vmsa_pages(
    svsm: Firmware, machine: Machine, variant: VmsaVariant = VmsaVariant.CURRENT
) -> Iterator[bytes]:
    """Give each vCPU's VMSA page under the SVSM. Raises as `svsm_measurement`."""
    page = svsm_vmsa_page(svsm.svsm_entry, vcpu_signature=machine.vcpu_signature, variant=variant)
    return repeat(page, machine.vcpus)
