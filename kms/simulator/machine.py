"""A SIMULATED confidential VM: launched from files as a hypervisor launches it, and asked for evidence.

A host that tampers is a host with other inputs: another kernel, another vCPU type, a document whose hash is
not in HOST_DATA. There is no switch for it.
"""

from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Self

from kms.encoding import b64url
from kms.evidence.app_document import host_data_of
from kms.measurement.firmware import Firmware
from kms.measurement.images import Binding
from kms.measurement.launch import LaunchDescription, Machine, Vmm, launch_measurement, os_image_hash
from kms.measurement.vcpu_types import VCPU_TYPES
from kms.simulator.chip import POLICY, SimulatedChip, SimulatedGuest
from kms.strict_json import JsonValue


class Collateral(StrEnum):
    """How a guest sends its certificates; hosts on bare metal hand it none."""

    TABLE = "table"
    LIST = "list"
    NONE = "none"


def describe(
    *,
    firmware: bytes,
    kernel: bytes | None = None,
    initrd: bytes | None = None,
    cmdline: str | None = None,
    vmm: Vmm = Vmm.QEMU,
) -> LaunchDescription:
    """Give the launch description of these files: what a policy's image holds.

    Raises:
        MeasurementError: they cannot be launched.

    """
    return LaunchDescription(
        vmm=vmm,
        firmware=Firmware.parse(firmware).describe(),
        kernel=None if kernel is None else sha256(kernel).digest(),
        initrd=None if initrd is None else sha256(initrd).digest(),
        cmdline=cmdline,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedMachine:
    """A running VM: its guest, what it was launched from, and the app document that it was given."""

    guest: SimulatedGuest
    description: LaunchDescription
    vcpus: int
    vcpu_type: str
    guest_features: int
    app_document: bytes | None

    @classmethod
    def launch(
        cls,
        chip: SimulatedChip,
        description: LaunchDescription,
        *,
        vcpus: int = 2,
        vcpu_type: str = "EPYC-v4",
        guest_features: int = 0x1,
        cmdline: str | None = None,
        app_document: bytes | None = None,
        binding: Binding = Binding.HOST_DATA,
        host_data: bytes | None = None,
        policy: int = POLICY,
        report_id: bytes | None = None,
    ) -> Self:
        """Measure and start a VM.

        `cmdline` replaces the description's, whose placeholders it fills. HOST_DATA commits to the app
        document under `binding` unless `host_data` (32 bytes) says otherwise; without a document it is zero.
        `vcpu_type` is a name of `VCPU_TYPES`.

        Raises:
            MeasurementError: vCPUs, features or command line that cannot be launched.
            ValueError: a document whose binding does not use HOST_DATA, and no `host_data`.

        """
        machine = Machine(vcpus, VCPU_TYPES[vcpu_type], guest_features)
        if host_data is None:
            host_data = bytes(32) if app_document is None else host_data_of(app_document, binding)
        guest = chip.launch(
            launch_measurement(description, machine, cmdline=cmdline),
            host_data=host_data,
            policy=policy,
            report_id=report_id,
        )
        return cls(
            guest=guest,
            description=description,
            vcpus=vcpus,
            vcpu_type=vcpu_type,
            guest_features=guest_features,
            app_document=app_document,
        )

    def hint(self) -> dict[str, JsonValue]:
        """Give the `launch` member of evidence: the image by its hash, and the machine."""
        return {
            "image": os_image_hash(self.description.to_json()).hex(),
            "vcpus": self.vcpus,
            "vcpu_type": self.vcpu_type,
            "guest_features": hex(self.guest_features),
        }

    def evidence(
        self, report_data: bytes, *, collateral: Collateral = Collateral.TABLE, hint: bool = True
    ) -> dict[str, JsonValue]:
        """Give evidence over 64 bytes of report data in the wire form of the protocol, section 2."""
        chip = self.guest.chip
        evidence: dict[str, JsonValue] = {"tee": "sev-snp", "report": b64url(self.guest.report(report_data))}
        if collateral is Collateral.TABLE:
            evidence["certificate_table"] = b64url(chip.certificate_table())
        elif collateral is Collateral.LIST:
            evidence["certificates"] = [b64url(certificate) for certificate in chip.certificates()]
        if hint:
            evidence["launch"] = self.hint()
        if self.app_document is not None:
            evidence["app_document"] = b64url(self.app_document)
        return evidence
