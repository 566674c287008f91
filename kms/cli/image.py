"""``kms image``: describe a guest image for the policy, and list the measurements it may show."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from kms.cli.measure import file_sha256
from kms.cli.output import OK, Unreadable, WrongUse, print_json, read_file
from kms.cli.parsers import Group, Parser, run_group
from kms.errors import ConfigurationError
from kms.identifiers import AppId, ComposeHash
from kms.measurement.description import LaunchDescription, os_image_hash
from kms.measurement.errors import MeasurementError
from kms.measurement.firmware import MAX_FIRMWARE, Firmware
from kms.measurement.guest_features import parse_features
from kms.measurement.images import Binding, Image
from kms.measurement.listing import image_json, measurement_rows
from kms.measurement.vmsa import Vmm
from kms.strict_json import JsonValue

_RANGE = re.compile(r"([0-9]{1,4})-([0-9]{1,4})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def main(argv: list[str]) -> int:
    """Run one of the commands. Raises `KmsError` for what cannot be read, measured or found."""
    return run_group(parser(), argv)


def parser() -> Parser:
    """Give the parser of this group of commands."""
    group = Group("kms image", "Describe guest images and list what they may measure.")
    _add_describe(group)
    _add_measurements(group)
    return group.parser


def _add_describe(group: Group) -> None:
    describe = group.add(
        "describe",
        summary="write a `kind: image` policy document",
        example="kms image describe --ovmf OVMF.fd --kernel vmlinuz --initrd initrd.img"
        " --append 'console=ttyS0' --name os-1 --enforces host-data --output policies/os-1.yaml",
    )
    add = describe.add_argument
    add("--ovmf", metavar="FILE", required=True, help="firmware with SEV metadata")
    add("--kernel", metavar="FILE", help="kernel of a measured direct boot")
    add("--initrd", metavar="FILE", help="its initrd")
    add("--append", metavar="CMDLINE", help="its command line; the exact bytes are measured")
    add("--name", required=True, help="name for the policy")
    add(
        "--enforces",
        metavar="BINDING[,BINDING]",
        required=True,
        help=f"what the image itself checks before it runs a workload: {', '.join(Binding)}; or none",
    )
    add("--vcpu-type", metavar="TYPE[,TYPE]", action="append", help="vCPU types (default EPYC-v4)")
    add("--vcpus", metavar="MIN-MAX", default="1-64", help="numbers of vCPUs (default 1-64, at most 512)")
    add("--guest-features", metavar="0xN[,0xN]", default="0x1", help="SEV_FEATURES values (default 0x1)")
    add("--vmm-type", choices=[vmm.value for vmm in Vmm], default="qemu", type=str.lower, help="hypervisor")
    add("--output", metavar="FILE", help="write there, in a new folder if need be, not to standard output")
    describe.set_defaults(run=_describe)


def _add_measurements(group: Group) -> None:
    listing = group.add(
        "measurements",
        summary="list every measurement that an image may show",
        example="kms image measurements os-1 --policy policies/",
    )
    add = listing.add_argument
    add("name", metavar="NAME", help="name of the image document")
    source = listing.add_mutually_exclusive_group(required=True)
    source.add_argument("--policy", metavar="DIR", help="policy folder that documents the image")
    source.add_argument("--document", metavar="FILE", help="one policy file that documents the image")
    add("--app-id", metavar="HEX", help="fills {app_id} of the command line")
    add("--compose-hash", metavar="HEX", help="fills {compose_hash} of the command line")
    listing.set_defaults(run=_measurements)


def _describe(args: argparse.Namespace) -> int:
    for name in ("ovmf", "kernel", "initrd", "output"):
        if getattr(args, name) == "":
            raise WrongUse(f"--{name} is empty")
    if args.kernel is None and (args.initrd is not None or args.append is not None):
        raise WrongUse("--initrd and --append are measured only with --kernel")
    range_ = _RANGE.fullmatch(args.vcpus)
    if range_ is None:
        raise WrongUse("--vcpus takes a range such as 1-64")
    if not _NAME.fullmatch(args.name):
        raise WrongUse("--name takes letters, digits, dots, dashes and underscores, at most 128")
    description = _description(args)
    launch = description.to_json()
    image = Image(
        name=args.name,
        os_image_hash=os_image_hash(launch),
        description=description,
        enforces=_bindings(args.enforces),
        vcpu_types=tuple(dict.fromkeys(",".join(args.vcpu_type or ["EPYC-v4"]).split(","))),
        vcpus_minimum=int(range_[1]),
        vcpus_maximum=int(range_[2]),
        guest_features=tuple(parse_features(text) for text in args.guest_features.split(",")),
    )
    text = "".join(f"{line}\n" for line in _yaml(image))
    if args.output is not None:
        _write(Path(args.output), text)
    if args.json:
        print_json(_document(image))
    elif args.output is None:
        print(text, end="")
    return OK


def _description(args: argparse.Namespace) -> LaunchDescription:
    firmware = Firmware.parse(read_file(Path(args.ovmf), at_most=MAX_FIRMWARE)).describe()
    if not firmware.reset_eip:
        raise MeasurementError("the firmware's SEV-ES reset address is 0: only one vCPU could start")
    return LaunchDescription(
        vmm=Vmm(args.vmm_type),
        firmware=firmware,
        kernel=None if args.kernel is None else file_sha256(Path(args.kernel)),
        initrd=None if args.initrd is None else file_sha256(Path(args.initrd)),
        cmdline=args.append,
    )


def _bindings(text: str) -> frozenset[Binding]:
    names = set() if text == "none" else set(text.split(","))
    if not names <= set(Binding):
        raise WrongUse(f"--enforces takes {', '.join(Binding)} or none")
    return frozenset(Binding(name) for name in names)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error


def _document(image: Image) -> dict[str, JsonValue]:
    return {
        "kind": "image",
        "name": image.name,
        "launch": image.description.to_json(),
        **image_json(image),
    }


def _yaml(image: Image) -> Iterator[str]:
    """Write the policy document. Hex is quoted: readers make numbers of 1e5 and of all-digit digests."""
    description, firmware = image.description, image.description.firmware
    yield "kind: image"
    yield f"name: {_quoted(image.name or '')}"
    yield "launch:"
    yield f"  vmm: {description.vmm.value}"
    yield "  firmware:"
    yield f"    digest: {_quoted(firmware.digest.hex())}"
    yield f"    reset_eip: {firmware.reset_eip}"
    yield f"    hashes_table_gpa: {firmware.hashes_table_gpa}"
    yield "    sections:"
    for each in firmware.sections:
        yield f"      - {{gpa: {each.gpa}, size: {each.size}, type: {int(each.type)}}}"
    for name, digest in (("kernel", description.kernel), ("initrd", description.initrd)):
        if digest is not None:
            yield f"  {name}: {_quoted(digest.hex())}"
    if description.cmdline is not None:
        yield f"  cmdline: {_quoted(description.cmdline)}"
    yield f"os_image_hash: {_quoted(image.os_image_hash.hex())}"
    yield f"enforces: [{', '.join(sorted(image.enforces))}]"
    yield f"vcpu_types: [{', '.join(image.vcpu_types)}]"
    yield f"vcpus: {{min: {image.vcpus_minimum}, max: {image.vcpus_maximum}}}"
    yield f"guest_features: [{', '.join(_quoted(hex(features)) for features in image.guest_features)}]"


def _quoted(text: str) -> str:
    """Write a YAML double-quoted scalar (YAML 1.2.2, section 5.7), everything but printable ASCII escaped."""
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _escaped(character: str) -> str:
    code = ord(character)
    if character in {'"', "\\"}:
        return "\\" + character
    if 0x20 <= code <= 0x7E:
        return character
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def images_from(path: Path) -> list[Image]:
    """Read the images that a policy file or folder documents.

    Raises:
        KmsError: it cannot be read, or is no valid policy.

    """
    from kms.cli.reading import read_policy
    from kms.policy.documents import ImageDocument

    documents = read_policy(path, development=False).documents
    return [document.image for document in documents if isinstance(document, ImageDocument)]


def _measurements(args: argparse.Namespace) -> int:
    named = [image for image in images_from(Path(args.policy or args.document)) if image.name == args.name]
    if len(named) != 1:
        raise ConfigurationError(
            f"{len(named)} image documents of this name", remedy="Give the name of one documented image."
        )
    image = named[0]
    rows = list(measurement_rows(image, _named_app(image, args)))
    if args.json:
        print_json({"image": image.name, "os_image_hash": image.os_image_hash.hex(), "measurements": rows})
        return OK
    for row in rows:
        print(f"{row['measurement']}  {row['vcpus']:>3} vCPUs  {row['vcpu_type']}  {row['guest_features']}")
    return OK


def _named_app(image: Image, args: argparse.Namespace) -> tuple[AppId, ComposeHash] | None:
    """Give the app that fills the command line, or None where the image's own is measured as it stands."""
    from kms.cli.pins import app_claim

    claim = app_claim(args.app_id, args.compose_hash)
    if claim is not None and claim.app_id is not None and claim.compose_hash is not None:
        return claim.app_id, claim.compose_hash
    if Binding.CMDLINE in image.enforces:
        raise ConfigurationError(
            "the image's command line differs for each app",
            remedy="Give --app-id and --compose-hash to list the measurements of one.",
        )
    return None
