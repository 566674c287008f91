"""A software SNP platform: reports of 1184 bytes, signed as the firmware signs them, and the host's table.

Offsets are those of ATTESTATION_REPORT in AMD's SEV-SNP firmware ABI (56860).
"""

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from tests.conformance.own_authority import Chip

REPORT_LENGTH, SIGNED_LENGTH = 0x4A0, 0x2A0
SIGNER_VCEK, SIGNER_VLEK, SIGNER_NONE = 0, 1, 7
MASK_CHIP_KEY = 1 << 1

# SEC 2, 2.5.1: the order of P-384's base point.
P384_ORDER = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16
)

# GHCB specification, certificate table: GUIDs are written big-endian here, unlike in the firmware's tables.
TABLE_GUIDS = {
    "vcek": "63da758d-e664-4564-adc5-f4b93be8accd",
    "vlek": "a8074bc2-a25a-483e-aae6-39c045a0b8a1",
    "ask": "4ab7b379-bbac-4fe4-a02f-05aef327c782",
    "ark": "c0b406a4-a803-4952-9743-3fb6014cd0ae",
}


@dataclass(slots=True, kw_only=True)
class Report:
    """The fields of a report; the defaults describe an ordinary guest on an up-to-date host."""

    version: int = 3
    guest_svn: int = 0
    policy: int = 0x30000  # SMT allowed, reserved bit 17
    family_id: bytes = bytes(16)
    image_id: bytes = bytes(16)
    vmpl: int = 0
    signature_algorithm: int = 1
    current_tcb: bytes
    platform_info: int = 0x25  # SMT, ECC, alias check complete: as on real Milan hosts
    flags: int = SIGNER_VCEK << 2
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes = bytes(48)
    author_key_digest: bytes = bytes(48)
    report_id: bytes = field(default_factory=lambda: os.urandom(32))
    report_id_ma: bytes = b"\xff" * 32
    reported_tcb: bytes
    cpuid: tuple[int, int, int]
    chip_id: bytes
    committed_tcb: bytes
    current_firmware: tuple[int, int, int] = (1, 55, 29)  # major, minor, build
    committed_firmware: tuple[int, int, int] = (1, 55, 29)
    launch_tcb: bytes
    launch_mitigations: int = 0x3F  # written by version 5 only
    current_mitigations: int = 0x3F

    def body(self) -> bytearray:
        """Return the 0x2A0 bytes that the firmware signs."""
        body = bytearray(SIGNED_LENGTH)

        def put(offset: int, value: bytes) -> None:
            body[offset : offset + len(value)] = value

        def number(offset: int, value: int, length: int) -> None:
            put(offset, value.to_bytes(length, "little"))

        number(0x000, self.version, 4)
        number(0x004, self.guest_svn, 4)
        number(0x008, self.policy, 8)
        put(0x010, self.family_id)
        put(0x020, self.image_id)
        number(0x030, self.vmpl, 4)
        number(0x034, self.signature_algorithm, 4)
        put(0x038, self.current_tcb)
        number(0x040, self.platform_info, 8)
        number(0x048, self.flags, 4)
        put(0x050, self.report_data)
        put(0x090, self.measurement)
        put(0x0C0, self.host_data)
        put(0x0E0, self.id_key_digest)
        put(0x110, self.author_key_digest)
        put(0x140, self.report_id)
        put(0x160, self.report_id_ma)
        put(0x180, self.reported_tcb)
        if self.version >= 3:
            put(0x188, bytes(self.cpuid))
        put(0x1A0, self.chip_id)
        put(0x1E0, self.committed_tcb)
        put(0x1E8, bytes(reversed(self.current_firmware)))
        put(0x1EC, bytes(reversed(self.committed_firmware)))
        put(0x1F0, self.launch_tcb)
        if self.version >= 5:
            number(0x1F8, self.launch_mitigations, 8)
            number(0x200, self.current_mitigations, 8)
        return body


def signature_bytes(r: int, s: int) -> bytes:
    """R and S as 72-byte little-endian numbers, then zeros to 512 bytes."""
    return r.to_bytes(72, "little") + s.to_bytes(72, "little") + bytes(368)


def sign(body: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the whole report for the signed part of one."""
    r, s = decode_dss_signature(key.sign(body, ec.ECDSA(hashes.SHA384())))
    return body + signature_bytes(r, s)


def report_on(chip: Chip, **fields: object) -> Report:
    """Return what this chip's firmware would report, with these fields, by name."""
    tcb = chip.product.pack(chip.product.tcb)
    report = Report(
        current_tcb=tcb,
        report_data=bytes(64),
        measurement=bytes(48),
        host_data=bytes(32),
        reported_tcb=tcb,
        cpuid=chip.product.cpuid,
        chip_id=chip.chip_id,
        committed_tcb=tcb,
        launch_tcb=tcb,
        version=5 if chip.product.turin else 3,
    )
    for name, value in fields.items():
        setattr(report, name, value)
    return report


def certificate_table(entries: dict[str, bytes]) -> bytes:
    """Return the kernel's auxblob: 24-byte entries, a zero entry, then the certificates."""
    offset = 24 * (len(entries) + 1)
    header, blobs = b"", b""
    for name, blob in entries.items():
        header += uuid.UUID(TABLE_GUIDS[name]).bytes
        header += (offset + len(blobs)).to_bytes(4, "little") + len(blob).to_bytes(4, "little")
        blobs += blob
    return header + bytes(24) + blobs


BytesEdit = Callable[[bytearray], None]


def set_bytes(offset: int, value: bytes) -> BytesEdit:
    """Return an edit that overwrites the bytes at an offset."""

    def edit(data: bytearray) -> None:
        data[offset : offset + len(value)] = value

    return edit


def flip_bit(offset: int, bit: int = 0) -> BytesEdit:
    def edit(data: bytearray) -> None:
        data[offset] ^= 1 << bit

    return edit
