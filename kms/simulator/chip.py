"""A SIMULATED EPYC chip, and the guests that it launches: reports in the layout and signature of hardware.

Chips and guests are values: ``replace(chip, reported_tcb=…)`` is the chip after a firmware update, and
``replace(guest, vmpl=1)`` another guest. What no hardware would sign is made from the fields:
``chip.sign_report(replace(guest.fields(data), vmpl=0xFFFFFFFF).encode())``.
"""

import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from hashlib import shake_256
from typing import Self

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from kms.identifiers import ChipId
from kms.simulator.authorities import BACKDATED, Authority
from kms.simulator.certificate_table import certificate_table
from kms.simulator.endorsement_extensions import TURIN_HARDWARE_ID_LENGTH
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.platforms import TYPICAL
from kms.simulator.report_bytes import ECDSA_P384_SHA384, SIGNED_LENGTH, ReportFields, encode_flags
from kms.snp import tcb
from kms.snp.certificate_table import ARK, ASK, VCEK, VLEK
from kms.snp.flags import Signer, SignerFlags
from kms.snp.product import Cpuid, Product
from kms.snp.report import LENGTH, FirmwareVersion
from kms.snp.tcb import TcbVersion

POLICY = 0x30000  # the bit that must be 1, and SMT allowed: what QEMU asks for by default
NO_MIGRATION_AGENT = b"\xff" * 32  # REPORT_ID_MA, SNP ABI 56860

_VCEK_LIFE = timedelta(days=7 * 365)
_VLEK_LIFE = timedelta(days=365)
_SIGNATURE_HALF = 72  # R and S: little-endian, 48 bytes of value and 24 of zeros
_P384_ORDER = ec.SECP384R1().group_order


def simulated_chip_id(product: Product, seed: bytes) -> ChipId:
    """Give a chip id that depends on the seed alone: 64 bytes, of which Turin fills 8."""
    length = TURIN_HARDWARE_ID_LENGTH if product is Product.TURIN else 64
    return ChipId(shake_256(b"simulated chip id\x00" + seed).digest(length).ljust(64, b"\x00"))


@dataclass(frozen=True, slots=True)
class Endorsement:
    """A VCEK or VLEK: the private key of one TCB, and its certificate (DER)."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: bytes = field(repr=False)


# Not slotted: the endorsement is made once, and `cached_property` needs a place for it.
@dataclass(frozen=True, kw_only=True)
class SimulatedChip:
    """A chip and the firmware on it. `SimulatedChip.typical` fills in an up-to-date host.

    With a `csp_id` the host has loaded a VLEK, and reports are signed by it instead of the VCEK.
    Certificates are issued as of `now`. As in hardware, the endorsement key follows from the chip's `secret`
    (32 bytes) and the reported TCB, so that another TCB is another key.
    """

    hierarchy: AmdHierarchy = field(repr=False)
    chip_id: ChipId
    now: datetime
    cpuid: Cpuid
    current_tcb: TcbVersion
    reported_tcb: TcbVersion
    committed_tcb: TcbVersion
    current_firmware: FirmwareVersion
    committed_firmware: FirmwareVersion
    platform_info: int
    mitigations: int
    report_version: int
    csp_id: str | None = None
    mask_chip_id: bool = False
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    @classmethod
    def typical(cls, hierarchy: AmdHierarchy, *, chip_id: ChipId, now: datetime) -> Self:
        """Give an up-to-date chip of the hierarchy's product."""
        platform = TYPICAL[hierarchy.product]
        return cls(
            hierarchy=hierarchy,
            chip_id=chip_id,
            now=now,
            cpuid=platform.cpuid,
            current_tcb=platform.tcb,
            reported_tcb=platform.tcb,
            committed_tcb=platform.tcb,
            current_firmware=platform.firmware,
            committed_firmware=platform.firmware,
            platform_info=platform.platform_info,
            mitigations=platform.mitigations,
            report_version=platform.report_version,
        )

    @property
    def signer(self) -> Signer:
        """Which kind of endorsement key signs."""
        return Signer.VCEK if self.csp_id is None else Signer.VLEK

    def launch(
        self,
        measurement: bytes,
        *,
        host_data: bytes = bytes(32),
        policy: int = POLICY,
        vmpl: int = 0,
        report_id: bytes | None = None,
    ) -> "SimulatedGuest":
        """Start a guest on the firmware as it is now. Without a `report_id` it gets a random one."""
        return SimulatedGuest(
            chip=self,
            measurement=measurement,
            host_data=host_data,
            policy=policy,
            vmpl=vmpl,
            report_id=secrets.token_bytes(32) if report_id is None else report_id,
            launch_tcb=self.current_tcb,
            launch_mitigations=self.mitigations,
        )

    @cached_property
    def endorsement(self) -> Endorsement:
        """The key and certificate of the reported TCB."""
        product = self.hierarchy.product
        reported_tcb = tcb.encode(self.reported_tcb, product)
        provider = (self.csp_id or "").encode("ascii")
        seed = b"simulated endorsement key\x00" + self.secret + reported_tcb + provider
        # 64 bytes modulo a number of 48: no measurable bias.
        scalar = int.from_bytes(shake_256(seed).digest(64), "big") % (_P384_ORDER - 1) + 1
        key = ec.derive_private_key(scalar, ec.SECP384R1())
        public_key = key.public_key()
        start = (self.now - BACKDATED).replace(microsecond=0)
        if self.csp_id is None:
            certificate = self.hierarchy.issue_vcek(
                public_key, self.reported_tcb, self.chip_id, not_before=start, not_after=start + _VCEK_LIFE
            )
        else:
            certificate = self.hierarchy.issue_vlek(
                public_key, self.reported_tcb, self.csp_id, not_before=start, not_after=start + _VLEK_LIFE
            )
        return Endorsement(key, certificate)

    def certificates(self) -> tuple[bytes, bytes, bytes]:
        """Give the DER certificates from leaf to root: VCEK, ASK, ARK or VLEK, ASVK, ARK."""
        return (
            self.endorsement.certificate,
            self._authority().certificate,
            self.hierarchy.ark.certificate,
        )

    def certificate_table(self) -> bytes:
        """Give the same certificates as the kernel's certificate table."""
        leaf, authority, root = self.certificates()
        leaf_guid = VCEK if self.signer is Signer.VCEK else VLEK
        return certificate_table([(leaf_guid, leaf), (ASK, authority), (ARK, root)])

    def sign_report(self, signed: bytes) -> bytes:
        """Sign any 0x2A0 bytes with the endorsement key: the 1184 bytes of a report.

        The signature is deterministic (RFC 6979), so that the same fields give the same report.

        Raises:
            ValueError: of another length.

        """
        if len(signed) != SIGNED_LENGTH:
            raise ValueError(f"the signed part of a report is {SIGNED_LENGTH} bytes, not {len(signed)}")
        scheme = ec.ECDSA(SHA384(), deterministic_signing=True)
        halves = decode_dss_signature(self.endorsement.key.sign(signed, scheme))
        signature = b"".join(half.to_bytes(_SIGNATURE_HALF, "little") for half in halves)
        return (signed + signature).ljust(LENGTH, b"\x00")

    def _authority(self) -> Authority:
        return self.hierarchy.ask if self.csp_id is None else self.hierarchy.asvk


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedGuest:
    """A guest on a SIMULATED chip. Ids and digests have the lengths of the report's fields.

    `author_key_enabled` is the flag that `author_key_digest` counts.
    """

    chip: SimulatedChip
    measurement: bytes
    host_data: bytes
    policy: int
    vmpl: int
    report_id: bytes
    launch_tcb: TcbVersion
    launch_mitigations: int
    guest_svn: int = 0
    family_id: bytes = bytes(16)
    image_id: bytes = bytes(16)
    id_key_digest: bytes = bytes(48)
    author_key_digest: bytes = bytes(48)
    author_key_enabled: bool = False

    def fields(self, report_data: bytes) -> ReportFields:
        """Give what a report over these 64 bytes says."""
        chip = self.chip
        product = chip.hierarchy.product
        flags = SignerFlags(
            author_key_enabled=self.author_key_enabled, chip_key_masked=False, signer=chip.signer
        )
        has_mitigations = chip.report_version >= 5
        return ReportFields(
            version=chip.report_version,
            guest_svn=self.guest_svn,
            policy=self.policy,
            family_id=self.family_id,
            image_id=self.image_id,
            vmpl=self.vmpl,
            signature_algorithm=ECDSA_P384_SHA384,
            current_tcb=tcb.encode(chip.current_tcb, product),
            platform_info=chip.platform_info,
            flags=encode_flags(flags),
            report_data=report_data,
            measurement=self.measurement,
            host_data=self.host_data,
            id_key_digest=self.id_key_digest,
            author_key_digest=self.author_key_digest,
            report_id=self.report_id,
            report_id_ma=NO_MIGRATION_AGENT,
            reported_tcb=tcb.encode(chip.reported_tcb, product),
            cpuid=chip.cpuid if chip.report_version >= 3 else None,
            chip_id=bytes(64) if chip.mask_chip_id else chip.chip_id,
            committed_tcb=tcb.encode(chip.committed_tcb, product),
            current_firmware=chip.current_firmware,
            committed_firmware=chip.committed_firmware,
            launch_tcb=tcb.encode(self.launch_tcb, product),
            launch_mitigations=self.launch_mitigations if has_mitigations else None,
            current_mitigations=chip.mitigations if has_mitigations else None,
        )

    def report(self, report_data: bytes) -> bytes:
        """Ask the chip for a report over 64 bytes: 1184 bytes.

        Raises:
            ValueError: a field does not have its length.

        """
        return self.chip.sign_report(self.fields(report_data).encode())
