"""A launch description: everything of a guest image that is measured, as hashes, in the policy's JSON form.

A description that `LaunchDescription.parse` accepts can be measured for every `Machine`.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Self

import rfc8785

from kms.identifiers import FixedBytes, Measurement, OsImageHash
from kms.measurement.errors import MeasurementError
from kms.measurement.kernel_hashes import check_table_place, cmdline_bytes
from kms.measurement.metadata import (
    FOUR_GIB,
    MAX_SECTIONS,
    FirmwareDescription,
    Section,
    checked_sections,
    section,
)
from kms.measurement.vmsa import Vmm
from kms.strict_json import Fields, JsonValue

MAX_CMDLINE: Final = 65536  # characters; Linux itself reads 2048


class Sha256(FixedBytes):
    """A SHA-256 digest: 32 bytes."""

    lengths = frozenset({32})


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchDescription:
    """The ``launch:`` block of an image: hypervisor, firmware, and SHA-256 of kernel and initrd.

    Without `kernel` there is neither `initrd` nor `cmdline`, and the hash page is measured as zeros. With
    it, no `initrd` means an empty one and no `cmdline` an empty one, as QEMU measures them.
    """

    vmm: Vmm
    firmware: FirmwareDescription
    kernel: bytes | None = None
    initrd: bytes | None = None
    cmdline: str | None = None

    def __post_init__(self) -> None:
        if self.kernel is None:
            if self.initrd is not None or self.cmdline is not None:
                raise MeasurementError("launch: initrd or cmdline without a kernel would not be measured")
            return
        check_table_place(self.firmware.sections, self.firmware.hashes_table_gpa)
        cmdline_bytes(self.cmdline or "")

    @classmethod
    def parse(cls, value: JsonValue) -> Self:
        """Read the JSON form. Raises `MeasurementError` for anything that could not be measured."""
        fields = Fields(value, "launch", MeasurementError)
        description = cls.take(fields)
        fields.end()
        return description

    @classmethod
    def take(cls, fields: Fields) -> Self:
        """Read the members of a description and leave others to the caller. Raises as `parse`."""
        firmware = fields.object("firmware")
        description = cls(
            vmm=fields.convert("vmm", fields.text("vmm", at_most=16), _vmm),
            firmware=FirmwareDescription(
                digest=firmware.hex("digest", Measurement),
                reset_eip=firmware.integer("reset_eip", minimum=1, maximum=FOUR_GIB - 1),
                hashes_table_gpa=firmware.integer("hashes_table_gpa", maximum=FOUR_GIB - 1),
                sections=take_sections(firmware, "sections", type_name="type"),
            ),
            kernel=fields.hex("kernel", Sha256) if fields.has("kernel") else None,
            initrd=fields.hex("initrd", Sha256) if fields.has("initrd") else None,
            cmdline=fields.text("cmdline", at_most=MAX_CMDLINE) if fields.has("cmdline") else None,
        )
        firmware.end()
        return description

    def to_json(self) -> dict[str, JsonValue]:
        """Give the JSON form, which `parse` reads back to an equal description."""
        value: dict[str, JsonValue] = {
            "vmm": self.vmm.value,
            "firmware": {
                "digest": self.firmware.digest.hex(),
                "reset_eip": self.firmware.reset_eip,
                "hashes_table_gpa": self.firmware.hashes_table_gpa,
                "sections": [
                    {"gpa": each.gpa, "size": each.size, "type": int(each.type)}
                    for each in self.firmware.sections
                ],
            },
        }
        if self.kernel is not None:
            value["kernel"] = self.kernel.hex()
        if self.initrd is not None:
            value["initrd"] = self.initrd.hex()
        if self.cmdline is not None:
            value["cmdline"] = self.cmdline
        return value


def os_image_hash(launch: JsonValue) -> OsImageHash:
    """Give SHA-256 of the RFC 8785 form of a launch block as it was written.

    Raises:
        MeasurementError: a value that has no such form.

    """
    try:
        return OsImageHash(sha256(rfc8785.dumps(launch)).digest())
    except (rfc8785.CanonicalizationError, RecursionError):
        raise MeasurementError("the launch description has no RFC 8785 form") from None


def _vmm(text: str) -> Vmm:
    # Not Vmm(text): its error repeats the text.
    if text not in {vmm.value for vmm in Vmm}:
        raise ValueError("not a known hypervisor")
    return Vmm(text)


def take_sections(fields: Fields, name: str, *, type_name: str) -> tuple[Section, ...]:
    """Read a required array of sections, whose type stands in the member `type_name`.

    Raises:
        MeasurementError: no sections, too many, or one that cannot be launched.

    """
    sections = []
    for value in fields.array(name, at_most=MAX_SECTIONS):
        item = Fields(value, f"{name}[]", MeasurementError)
        sections.append(section(item.integer("gpa"), item.integer("size"), item.integer(type_name)))
        item.end()
    return checked_sections(sections)
