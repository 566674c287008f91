"""A guest image of its own: firmware with SEV metadata, kernel, initrd, command line; the oracle measures."""

import hashlib
import random
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import rfc8785
from sevsnpmeasure import guest, vcpu_types
from sevsnpmeasure.sev_mode import SevMode

FIRMWARE_LENGTH = 16 * 4096
RESET_EIP = 0x80B004
HASHES_TABLE_GPA = 0x810C00
SECTIONS = (  # gpa, size, type; in the order in which the hypervisor measures them
    (0x800000, 0x9000, 1),
    (0x80A000, 0x3000, 1),
    (0x80D000, 0x1000, 2),
    (0x80E000, 0x1000, 3),
    (0x80F000, 0x1000, 4),
    (0x811000, 0xF000, 1),
    (0x810000, 0x1000, 0x10),
)


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def firmware(seed: str) -> bytes:
    """Return random pages that end as OVMF does: SEV metadata, then the table of GUIDs, then 32 bytes."""
    image = bytearray(random.Random(seed).randbytes(FIRMWARE_LENGTH))
    items = b"".join(_u32(gpa) + _u32(size) + _u32(kind) for gpa, size, kind in SECTIONS)
    metadata = b"ASEV" + _u32(16 + len(items)) + _u32(1) + _u32(len(SECTIONS)) + items
    metadata_from_end = 1024
    start = FIRMWARE_LENGTH - metadata_from_end
    image[start : start + len(metadata)] = metadata

    def entry(guid: str, data: bytes) -> bytes:
        return data + (len(data) + 18).to_bytes(2, "little") + uuid.UUID(guid).bytes_le

    table = entry("7255371f-3a3b-4b04-927b-1da6efa8d454", _u32(HASHES_TABLE_GPA) + _u32(0x400))
    table += entry("00f771de-1a7e-4fcb-890e-68c77e2fb44e", _u32(RESET_EIP))
    table += entry("dc886566-984a-4798-a75e-5585a7bf67cc", _u32(metadata_from_end))
    footer_length = (len(table) + 18).to_bytes(2, "little")
    table += footer_length + uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
    end = FIRMWARE_LENGTH - 32
    image[end - len(table) : end] = table
    return bytes(image)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One bootable image; `cmdline` may carry {app_id} and {compose_hash}."""

    name: str
    ovmf: Path
    kernel: Path
    initrd: Path
    cmdline: str
    enforces: tuple[str, ...] = ("host-data", "dstack-mr-config")

    def launch(self) -> dict[str, object]:
        """Return the launch description that a policy carries."""
        sections = [{"gpa": gpa, "size": size, "type": kind} for gpa, size, kind in SECTIONS]
        return {
            "vmm": "qemu",
            "firmware": {
                "digest": guest.calc_snp_ovmf_hash(str(self.ovmf)).hex(),
                "reset_eip": RESET_EIP,
                "hashes_table_gpa": HASHES_TABLE_GPA,
                "sections": sections,
            },
            "kernel": hashlib.sha256(self.kernel.read_bytes()).hexdigest(),
            "initrd": hashlib.sha256(self.initrd.read_bytes()).hexdigest(),
            "cmdline": self.cmdline,
        }

    def os_image_hash(self) -> str:
        return hashlib.sha256(
            rfc8785.dumps(cast("dict[str, rfc8785._impl._Value]", self.launch()))
        ).hexdigest()

    def document(self, **changes: object) -> dict[str, object]:
        """Return the `kind: image` document."""
        return {
            "kind": "image",
            "name": self.name,
            "launch": self.launch(),
            "os_image_hash": self.os_image_hash(),
            "enforces": list(self.enforces),
            "vcpu_types": ["EPYC-v4", "EPYC-Milan"],
            "vcpus": {"min": 1, "max": 8},
            "guest_features": ["0x1"],
            **changes,
        }

    def measurement(self, vcpus: int, vcpu_type: str, features: int, app_id: str, compose: str) -> bytes:
        """Return the 48-byte launch digest of a guest started for this app."""
        cmdline = self.cmdline.replace("{app_id}", app_id).replace("{compose_hash}", compose)
        return _measure(self, cmdline, vcpus, vcpu_type, features)


@cache
def _measure(image: Image, cmdline: str, vcpus: int, vcpu_type: str, features: int) -> bytes:
    digest = guest.calc_launch_digest(
        SevMode.SEV_SNP,
        vcpus,
        vcpu_types.CPU_SIGS[vcpu_type],
        str(image.ovmf),
        str(image.kernel),
        str(image.initrd),
        cmdline,
        features,
    )
    return bytes(digest)


def build_image(folder: Path, name: str, cmdline: str, enforces: tuple[str, ...]) -> Image:
    """Write an image's files, which differ from every other image's."""
    contents = {"ovmf": firmware("one firmware for all"), "kernel": f"kernel {name}".encode() * 97}
    contents["initrd"] = f"initrd {name}".encode() * 89
    paths = {part: folder / f"{name}.{part}" for part in contents}
    for part, path in paths.items():
        path.write_bytes(contents[part])
    return Image(name=name, cmdline=cmdline, enforces=enforces, **paths)
