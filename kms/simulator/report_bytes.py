"""Field values to the signed bytes of an SNP report: the inverse of `kms.snp.report.Report.parse`.

Layout: SNP ABI 56860, ATTESTATION_REPORT, versions 2 to 5; little-endian. It is written down here a second
time, apart from the parser's, so that a wrong offset in either shows. Only widths are checked: a SIMULATED
chip must be able to sign what no real one would.
"""

from dataclasses import dataclass

from kms.snp.flags import Signer, SignerFlags
from kms.snp.product import Cpuid
from kms.snp.report import FirmwareVersion, Report

SIGNED_LENGTH = 0x2A0
ECDSA_P384_SHA384 = 1
NO_SIGNER = 7  # SIGNING_KEY of a report that is not signed
_SIGNING_KEYS = {Signer.VCEK: 0, Signer.VLEK: 1, None: NO_SIGNER}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFields:
    """Every field of a report as its raw value; integers of the widths below, bytes of exact lengths.

    TCBs are 8 bytes each, CHIP_ID 64. `cpuid` is written where it is given (version 3 and later say it),
    the mitigation vectors likewise (version 5).
    """

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    signature_algorithm: int
    current_tcb: bytes
    platform_info: int
    flags: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid: Cpuid | None
    chip_id: bytes
    committed_tcb: bytes
    current_firmware: FirmwareVersion
    committed_firmware: FirmwareVersion
    launch_tcb: bytes
    launch_mitigations: int | None
    current_mitigations: int | None

    @classmethod
    def of(cls, report: Report) -> "ReportFields":
        """Give the fields of a parsed report."""
        return cls(
            version=report.version,
            guest_svn=report.guest_svn,
            policy=report.policy.raw,
            family_id=report.family_id,
            image_id=report.image_id,
            vmpl=report.vmpl,
            signature_algorithm=ECDSA_P384_SHA384,
            current_tcb=report.tcbs.current,
            platform_info=report.platform_info.raw,
            flags=encode_flags(report.flags),
            report_data=report.report_data,
            measurement=report.measurement,
            host_data=report.host_data,
            id_key_digest=report.id_key_digest,
            author_key_digest=report.author_key_digest,
            report_id=report.report_id,
            report_id_ma=report.report_id_ma,
            reported_tcb=report.tcbs.reported,
            cpuid=report.cpuid,
            chip_id=report.chip_id or bytes(64),
            committed_tcb=report.tcbs.committed,
            current_firmware=report.current_firmware,
            committed_firmware=report.committed_firmware,
            launch_tcb=report.tcbs.launch,
            launch_mitigations=report.launch_mitigations,
            current_mitigations=report.current_mitigations,
        )

    def encode(self) -> bytes:
        """Give the signed bytes, 0x000 to 0x29F.

        Raises:
            ValueError: a value does not have its field's width.
            OverflowError: an integer does not fit its field.

        """
        raw = bytearray(SIGNED_LENGTH)
        _u32(raw, 0x000, self.version)
        _u32(raw, 0x004, self.guest_svn)
        _u64(raw, 0x008, self.policy)
        _bytes(raw, 0x010, 16, self.family_id)
        _bytes(raw, 0x020, 16, self.image_id)
        _u32(raw, 0x030, self.vmpl)
        _u32(raw, 0x034, self.signature_algorithm)
        _bytes(raw, 0x038, 8, self.current_tcb)
        _u64(raw, 0x040, self.platform_info)
        _u32(raw, 0x048, self.flags)
        _bytes(raw, 0x050, 64, self.report_data)
        _bytes(raw, 0x090, 48, self.measurement)
        _bytes(raw, 0x0C0, 32, self.host_data)
        _bytes(raw, 0x0E0, 48, self.id_key_digest)
        _bytes(raw, 0x110, 48, self.author_key_digest)
        _bytes(raw, 0x140, 32, self.report_id)
        _bytes(raw, 0x160, 32, self.report_id_ma)
        _bytes(raw, 0x180, 8, self.reported_tcb)
        if self.cpuid is not None:
            raw[0x188:0x18B] = bytes([self.cpuid.family, self.cpuid.model, self.cpuid.stepping])
        _bytes(raw, 0x1A0, 64, self.chip_id)
        _bytes(raw, 0x1E0, 8, self.committed_tcb)
        raw[0x1E8:0x1EB] = _firmware(self.current_firmware)
        raw[0x1EC:0x1EF] = _firmware(self.committed_firmware)
        _bytes(raw, 0x1F0, 8, self.launch_tcb)
        if self.launch_mitigations is not None:
            _u64(raw, 0x1F8, self.launch_mitigations)
        if self.current_mitigations is not None:
            _u64(raw, 0x200, self.current_mitigations)
        return bytes(raw)


def encode_flags(flags: SignerFlags) -> int:
    """Give the 32-bit flags of 0x048; no signer is written as "none" (7)."""
    return int(flags.author_key_enabled) | int(flags.chip_key_masked) << 1 | _SIGNING_KEYS[flags.signer] << 2


def _u32(raw: bytearray, offset: int, value: int) -> None:
    raw[offset : offset + 4] = value.to_bytes(4, "little")


def _u64(raw: bytearray, offset: int, value: int) -> None:
    raw[offset : offset + 8] = value.to_bytes(8, "little")


def _bytes(raw: bytearray, offset: int, length: int, value: bytes) -> None:
    if len(value) != length:
        raise ValueError(f"the field at {offset:#05x} takes {length} bytes, not {len(value)}")
    raw[offset : offset + length] = value


def _firmware(version: FirmwareVersion) -> bytes:
    return bytes([version.build, version.minor, version.major])
