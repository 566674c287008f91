"""The SNP attestation report: 1184 bytes from the chip, parsed once and never re-serialised.

Layout: SNP ABI 56860, ATTESTATION_REPORT, versions 2 to 5. All integers little-endian. The signature
covers the raw bytes 0x000 to 0x29F; they are kept as received, because re-encoding a parsed report loses
what the parser does not know (field lesson 6).
"""

from dataclasses import dataclass
from functools import lru_cache

from typing_extensions import override

from kms.errors import MalformedEvidence
from kms.identifiers import ChipId, KeyDigest, Measurement
from kms.snp import tcb
from kms.snp.flags import (
    FLAGS_RESERVED_MASK,
    POLICY_HIGHEST_BIT,
    POLICY_RESERVED_ONE,
    GuestPolicy,
    PlatformInfo,
    SignerFlags,
)
from kms.snp.product import Cpuid, Product, product_of
from kms.snp.tcb import TcbVersions

LENGTH = 0x4A0
SIGNED_LENGTH = 0x2A0
VERSIONS = (2, 3, 4, 5)
VMPL_HOST = 0xFFFFFFFF  # the host asked (SNP_HV_REPORT_REQ), with REPORT_DATA of its own making
_ECDSA_P384_SHA384 = 1

# Order of the base point of P-384 (FIPS 186-5 / SEC 2).
_P384_ORDER = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16
)
_SIGNATURE_HALF = 72  # R and S: 72 bytes each, of which a P-384 value fills 48
_P384_LENGTH = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareVersion:
    """SEV firmware (ABI) version and build."""

    major: int
    minor: int
    build: int

    @override
    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.build}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RawTcbs:
    """The four TCB_VERSIONs of a report, 8 bytes each, to be decoded once the product is known."""

    current: bytes
    reported: bytes
    committed: bytes
    launch: bytes

    def decode(self, product: Product) -> TcbVersions:
        """Read them in the product's layout."""
        return TcbVersions(
            current=tcb.decode(self.current, product),
            reported=tcb.decode(self.reported, product),
            committed=tcb.decode(self.committed, product),
            launch=tcb.decode(self.launch, product),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A well-formed report. It is only what somebody claims: `kms.snp.verify` says whether a chip signed it.

    `chip_id` is None when the field is all zero (masked, or VLEK). `product` is what the CPUID fields say
    (version 3 and later), None in version 2 and for a CPU we do not know. Mitigation vectors are None
    before version 5. `signature` is None only where the flags say that nobody signed (chip key masked, or
    signer "none") and both halves are zero, as hardware writes it.
    """

    raw: bytes
    version: int
    guest_svn: int
    policy: GuestPolicy
    family_id: bytes
    image_id: bytes
    vmpl: int
    flags: SignerFlags
    tcbs: RawTcbs
    platform_info: PlatformInfo
    report_data: bytes
    measurement: Measurement
    host_data: bytes
    id_key_digest: KeyDigest
    author_key_digest: KeyDigest
    report_id: bytes
    report_id_ma: bytes
    cpuid: Cpuid | None
    product: Product | None
    chip_id: ChipId | None
    current_firmware: FirmwareVersion
    committed_firmware: FirmwareVersion
    launch_mitigations: int | None
    current_mitigations: int | None
    signature: tuple[int, int] | None

    @property
    def signed_bytes(self) -> bytes:
        """The bytes that the signature covers, as received."""
        return self.raw[:SIGNED_LENGTH]

    @classmethod
    def parse(cls, raw: bytes) -> "Report":
        """Parse 1184 bytes.

        Raises:
            MalformedEvidence: length, version, signature algorithm, a reserved range or bit, POLICY bits,
                or a signature half out of range. The detail names the offset.

        """
        if len(raw) != LENGTH:
            raise MalformedEvidence(f"a report is {LENGTH} bytes, not {len(raw)}", reason="report-length")
        version = _u32(raw, 0x000)
        if version not in VERSIONS:
            raise MalformedEvidence(f"report version {version} at 0x000", reason="report-version")
        algorithm = _u32(raw, 0x034)
        if algorithm != _ECDSA_P384_SHA384:
            raise MalformedEvidence(f"signature algorithm {algorithm} at 0x034", reason="signature-algorithm")
        _check_reserved(raw, version)
        policy = _u64(raw, 0x008)
        if not policy & POLICY_RESERVED_ONE or policy >> (POLICY_HIGHEST_BIT + 1):
            raise MalformedEvidence(
                f"POLICY {policy:#x} at 0x008 has wrong reserved bits", reason="policy-bits"
            )
        flags = SignerFlags.decode(_u32(raw, 0x048))
        cpuid = Cpuid(raw[0x188], raw[0x189], raw[0x18A]) if version >= 3 else None
        product = product_of(cpuid) if cpuid else None
        tcbs = RawTcbs(
            current=raw[0x038:0x040],
            reported=raw[0x180:0x188],
            committed=raw[0x1E0:0x1E8],
            launch=raw[0x1F0:0x1F8],
        )
        if product is not None:
            check_tcb_reserved(tcbs, product)
        return cls(
            raw=raw,
            version=version,
            guest_svn=_u32(raw, 0x004),
            policy=GuestPolicy.decode(policy),
            family_id=raw[0x010:0x020],
            image_id=raw[0x020:0x030],
            vmpl=_u32(raw, 0x030),
            flags=flags,
            tcbs=tcbs,
            platform_info=PlatformInfo(_u64(raw, 0x040)),
            report_data=raw[0x050:0x090],
            measurement=Measurement(raw[0x090:0x0C0]),
            host_data=raw[0x0C0:0x0E0],
            id_key_digest=KeyDigest(raw[0x0E0:0x110]),
            author_key_digest=KeyDigest(raw[0x110:0x140]),
            report_id=raw[0x140:0x160],
            report_id_ma=raw[0x160:0x180],
            cpuid=cpuid,
            product=product,
            chip_id=ChipId(raw[0x1A0:0x1E0]) if any(raw[0x1A0:0x1E0]) else None,
            current_firmware=_firmware(raw[0x1E8:0x1EB]),
            committed_firmware=_firmware(raw[0x1EC:0x1EF]),
            launch_mitigations=_u64(raw, 0x1F8) if version >= 5 else None,
            current_mitigations=_u64(raw, 0x200) if version >= 5 else None,
            signature=_signature(raw, flags),
        )


def check_tcb_reserved(tcbs: RawTcbs, product: Product) -> None:
    """Refuse TCB versions with a reserved byte set, in the product's layout.

    For a version 2 report the product is known only by its chain, so its verification calls this again.
    """
    for name in ("current", "reported", "committed", "launch"):
        if not tcb.reserved_bytes_are_zero(getattr(tcbs, name), product):
            raise MalformedEvidence(f"{name} TCB has a reserved byte set ({product})", reason="tcb-reserved")


def _check_reserved(raw: bytes, version: int) -> None:
    ranges = [
        (0x04C, 0x050),
        # CPUID family, model, stepping are reserved before version 3.
        (0x188 if version < 3 else 0x18B, 0x1A0),
        (0x1EB, 0x1EC),
        (0x1EF, 0x1F0),
        # The two mitigation vectors are reserved before version 5.
        (0x1F8 if version < 5 else 0x208, 0x2A0),
        (0x2A0 + 2 * _SIGNATURE_HALF, LENGTH),
    ]
    for start, end in ranges:
        if raw[start:end] != bytes(end - start):
            raise MalformedEvidence(
                f"reserved bytes {start:#05x} to {end - 1:#05x} are set", reason="reserved-bytes"
            )
    if _u32(raw, 0x048) & FLAGS_RESERVED_MASK:
        raise MalformedEvidence("reserved bits of the flags at 0x048 are set", reason="reserved-bits")


def _signature(raw: bytes, flags: SignerFlags) -> tuple[int, int] | None:
    unsigned = flags.chip_key_masked or flags.signer is None
    if unsigned and not any(raw[0x2A0 : 0x2A0 + 2 * _SIGNATURE_HALF]):
        return None
    return _half(raw, 0x2A0, "R"), _half(raw, 0x2A0 + _SIGNATURE_HALF, "S")


def _half(raw: bytes, offset: int, name: str) -> int:
    # Little-endian, 72 bytes; reading them big-endian or ignoring the upper bytes are real bugs of others.
    if any(raw[offset + _P384_LENGTH : offset + _SIGNATURE_HALF]):
        raise MalformedEvidence(f"{name} at {offset:#05x} is longer than 48 bytes", reason="signature-range")
    value = int.from_bytes(raw[offset : offset + _P384_LENGTH], "little")
    if not 0 < value < _P384_ORDER:
        raise MalformedEvidence(
            f"{name} at {offset:#05x} is not in the range of P-384", reason="signature-range"
        )
    return value


@lru_cache(maxsize=256)  # a fleet shows few of them, each again and again
def _firmware(raw: bytes) -> FirmwareVersion:
    build, minor, major = raw
    return FirmwareVersion(build=build, minor=minor, major=major)


def _u32(raw: bytes, offset: int) -> int:
    return int.from_bytes(raw[offset : offset + 4], "little")


def _u64(raw: bytes, offset: int) -> int:
    return int.from_bytes(raw[offset : offset + 8], "little")
