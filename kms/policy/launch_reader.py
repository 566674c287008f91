"""Reads the `launch` block of an image, and where it is wrong, finds everything that is."""

from typing import Final, TypeAlias

from kms.identifiers import Measurement, OsImageHash
from kms.measurement.description import MAX_CMDLINE, LaunchDescription, Sha256, os_image_hash
from kms.measurement.errors import MeasurementError
from kms.measurement.kernel_hashes import cmdline_bytes
from kms.measurement.metadata import (
    FOUR_GIB,
    MAX_SECTIONS,
    PAGE,
    FirmwareDescription,
    Section,
    SectionType,
    checked_sections,
    section,
)
from kms.measurement.vmsa import Vmm
from kms.policy import values
from kms.policy.nodes import Members, Node, Scalar, to_json
from kms.policy.parser import Parser, Unread, Wrong, list_of
from kms.policy.reader import Reader, schema_of

Launch: TypeAlias = tuple[LaunchDescription, OsImageHash]


def launch(parent: Reader) -> Parser[Launch]:
    """Make the parser of a document's launch block, which gives the block's hash with it."""
    return Parser(lambda node: _read_launch(node, parent), _LAUNCH)


def _read_launch(node: Node, parent: Reader) -> Launch:
    """Read it as the measurement does; what that refuses is read again, member by member."""
    if not isinstance(node, Members):
        raise Wrong(node, "`launch` is a mapping: `kms image describe` writes it")
    value = to_json(node)
    try:
        return LaunchDescription.parse(value), os_image_hash(value)
    except MeasurementError as error:
        _explain(Reader(node, parent.notes, "`launch`"))
        raise Wrong(node, error.detail) from None


def _explain(reader: Reader) -> None:
    """Find everything that is wrong. Raises `Unread` after its findings were made, or `Wrong`."""
    vmm = reader.required("vmm", _vmm)
    firmware = reader.mapping("firmware", _firmware, example="{digest: ..., ...}")
    kernel = reader.optional("kernel", _kernel, None)
    initrd = reader.optional("initrd", _initrd, None)
    cmdline = reader.optional("cmdline", _cmdline, None)
    if not reader.end():
        raise Unread  # the member that another one lacks may be the misspelt one
    for name, slot in (("initrd", initrd), ("cmdline", cmdline)):
        if slot.value is not None and kernel.value is None:
            raise Wrong(reader.place(name), f"`{name}` is measured only with a `kernel`")
    try:
        LaunchDescription(
            vmm=vmm.value,
            firmware=firmware.value,
            kernel=kernel.value,
            initrd=initrd.value,
            cmdline=cmdline.value,
        )
    except MeasurementError as error:
        # Only where the kernel's hashes go is left to be wrong.
        place = reader.within(reader.place("firmware"), "firmware", example="").place("hashes_table_gpa")
        raise Wrong(place, error.detail) from None


def _firmware(reader: Reader) -> FirmwareDescription:
    digest = reader.required("digest", _digest)
    reset_eip = reader.required("reset_eip", _reset_eip)
    table = reader.required("hashes_table_gpa", _gpa)
    sections = reader.required("sections", _sections(reader))
    reader.end()
    return FirmwareDescription(
        digest=digest.value,
        reset_eip=reset_eip.value,
        hashes_table_gpa=table.value,
        sections=sections.value,
    )


def _sections(parent: Reader) -> Parser[tuple[Section, ...]]:
    def read_item(node: Node) -> Section:
        if not isinstance(node, Members):
            raise Wrong(node, "a section is a mapping, as in {gpa: 8388608, size: 4096, type: 1}")
        return _section(Reader(node, parent.notes, "a section"))

    def read(node: Node) -> tuple[Section, ...]:
        sections = items.read(node)
        try:
            return checked_sections(sections)
        except MeasurementError as error:
            raise Wrong(node, error.detail) from None

    items = list_of(Parser(read_item, schema_of(_section)), "sections")
    return Parser(read, {**items.schema, "minItems": 1, "maxItems": MAX_SECTIONS})


def _section(reader: Reader) -> Section:
    gpa = reader.required("gpa", _gpa)
    size = reader.required("size", _size)
    number = reader.required("type", _section_type)
    reader.end()
    try:
        return section(gpa.value, size.value, number.value)
    except MeasurementError as error:
        raise Wrong(reader.place("gpa" if gpa.value % PAGE else "size"), error.detail) from None


def _read_section_type(node: Node) -> int:
    value = node.value if isinstance(node, Scalar) else None
    if type(value) is not int or value not in _TYPES:
        shown = f"`{node.text}`" if isinstance(node, Scalar) else "this"
        known = ", ".join(f"{each.value} {each.name}" for each in SectionType)
        raise Wrong(node, f"{shown} is not a type of SEV metadata sections: {known}")
    return value


def _read_cmdline(node: Node) -> str:
    cmdline = values.read_text(node, at_most=MAX_CMDLINE)
    try:
        cmdline_bytes(cmdline)
    except MeasurementError as error:
        raise Wrong(node, error.detail) from None
    return cmdline


_TYPES: Final = tuple(each.value for each in SectionType)
_vmm: Final = values.one_of(Vmm, "a hypervisor")
_kernel: Final = values.hex_of(Sha256, "the hash of a kernel")
_initrd: Final = values.hex_of(Sha256, "the hash of an initrd")
_cmdline: Final = Parser(_read_cmdline, {"type": "string", "maxLength": MAX_CMDLINE})
_digest: Final = values.hex_of(Measurement, "a firmware digest")
_reset_eip: Final = values.integer(1, FOUR_GIB - 1, "an address")
_gpa: Final = values.integer(0, FOUR_GIB - 1, "an address")
_size: Final = values.integer(1, FOUR_GIB, "a size")
_section_type: Final = Parser(_read_section_type, {"enum": [*_TYPES]})
_LAUNCH: Final = schema_of(_explain)
