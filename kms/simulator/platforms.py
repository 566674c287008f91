"""What SIMULATED chips are by default: up-to-date hosts, as public evidence of real ones shows them."""

from collections.abc import Mapping
from dataclasses import dataclass

from kms.snp.product import Cpuid, Product
from kms.snp.report import FirmwareVersion
from kms.snp.tcb import TcbVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """A host's CPU, firmware and configuration; `mitigations` show only in reports of version 5."""

    cpuid: Cpuid
    tcb: TcbVersion
    firmware: FirmwareVersion
    platform_info: int
    mitigations: int
    report_version: int


TYPICAL: Mapping[Product, Platform] = {
    Product.MILAN: Platform(
        cpuid=Cpuid(0x19, 0x01, 1),
        tcb=TcbVersion(bootloader=4, tee=0, snp=24, microcode=219),
        firmware=FirmwareVersion(major=1, minor=55, build=29),
        platform_info=0x25,
        mitigations=0x3F,
        report_version=3,
    ),
    Product.GENOA: Platform(
        cpuid=Cpuid(0x19, 0x11, 1),
        tcb=TcbVersion(bootloader=10, tee=0, snp=23, microcode=84),
        firmware=FirmwareVersion(major=1, minor=55, build=40),
        platform_info=0x25,
        mitigations=0x3F,
        report_version=3,
    ),
    Product.TURIN: Platform(
        cpuid=Cpuid(0x1A, 0x02, 1),
        tcb=TcbVersion(fmc=1, bootloader=1, tee=1, snp=4, microcode=81),
        firmware=FirmwareVersion(major=1, minor=55, build=65),
        platform_info=0x65,
        mitigations=0x3F,
        report_version=5,
    ),
}
