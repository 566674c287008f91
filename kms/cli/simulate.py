"""``kms simulate``: SIMULATED hosts and guests, for who wants to try things without an EPYC chip.

Nothing here is protected. A server believes such a chip only where `KMS_DEVELOPMENT_ROOTS` names its root,
and then says so everywhere.
"""

import argparse
import hmac
import json
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kms.cli.guest_machine import add_receipt_option, keep_receipt
from kms.cli.output import OK, REFUSED, WRONG_USE, Unreadable, WrongUse, print_json, read_file, report_error
from kms.cli.parsers import Group, Parser, run_group
from kms.cli.simulate_tsm import add_tsm

if TYPE_CHECKING:
    from kms.keys.envelope import Payload
    from kms.keys.names import KeyRequest
    from kms.simulator.chip import SimulatedChip
    from kms.simulator.hierarchy import AmdHierarchy
    from kms.simulator.machine import SimulatedMachine
    from kms.strict_json import JsonValue

_LOUD: Final = "SIMULATED hardware, which protects nothing\n"
_AUTHORITIES: Final = "authorities"
_ROOTS: Final = "development-roots.pem"
_FIRMWARE, _KERNEL, _INITRD = "OVMF.fd", "vmlinuz", "initrd.img"
_MOST_CHIPS: Final = 64
_MAX_DOCUMENT: Final = 64 << 10  # protocol, section 1
_SEED: Final = b"simulated host"
# What the server's "no" to a genuine question is.
_NO: Final = frozenset({403, 409, 410})


def main(argv: list[str]) -> int:
    """Run ``kms simulate`` and give the exit status."""
    return run_group(parser(), argv)


def parser() -> Parser:
    """Give the parser of this group of commands."""
    group = Group("kms simulate", "SIMULATED hosts and guests, to try a server with. They protect nothing.")
    host = group.add(
        "host",
        summary="make a SIMULATED host: chips, the root that certifies them, and an image to launch",
        description="Make a SIMULATED host in a new folder: the root of its chips for KMS_DEVELOPMENT_ROOTS,"
        " and a firmware, kernel and initrd to be measured, not run. Prints the ids of its chips.",
        example="kms simulate host rack",
    )
    host.add_argument("folder", metavar="DIR", type=Path, help="the new folder")
    host.add_argument(
        "--chips", metavar="N", type=_chip_number, default=2, help=f"how many (default 2, most {_MOST_CHIPS})"
    )
    host.set_defaults(run=_host)
    guest = group.add(
        "guest",
        summary="launch a SIMULATED guest on such a host, and let it fetch keys",
        description="Launch a SIMULATED guest on one of the host's chips, from the files in its folder, and"
        " let it fetch keys as `kms guest fetch` does, without a pinned identity. Shows fingerprints of keys,"
        " never keys. Exit status: 0 keys, 1 refused, 2 wrong use or no server.",
        example="kms simulate guest rack --chip 1 --append 'console=ttyS0' --app-document app.json"
        " --server https://127.0.0.1:8443 --ca kms-data/tls/ca.pem",
    )
    _add_launch_options(guest)
    add = guest.add_argument
    add("--key", metavar="NAME[@SCOPE]", action="append", help="a key to ask for; repeat (default: disk)")
    add("--evidence", metavar="FILE", type=Path, help="write its evidence there, for `kms policy explain`")
    add_receipt_option(guest)
    add("--server", metavar="URL", required=True, help="https://HOST:PORT")
    add("--ca", metavar="FILE", type=Path, help="PEM of the only CA to trust (default: the system's)")
    guest.set_defaults(run=_guest)
    tsm = add_tsm(group, _launch)
    _add_launch_options(tsm)
    tsm.add_argument("mountpoint", metavar="MOUNTPOINT", type=Path, help="a folder that exists")
    return group.parser


def _add_launch_options(command: Parser) -> None:
    """Add which guest is launched, and from what."""
    add = command.add_argument
    add("folder", metavar="DIR", type=Path, help="the host's folder")
    add("--chip", metavar="N", type=_chip_number, default=1, help="the chip that it runs on (default 1)")
    add("--append", metavar="CMDLINE", help="the kernel's command line, which is measured")
    add("--app-document", metavar="FILE", type=Path, help="the document that HOST_DATA commits to")


def _chip_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 2 and 1 <= int(text) <= _MOST_CHIPS):
        raise argparse.ArgumentTypeError(f"takes a number from 1 to {_MOST_CHIPS}")
    return int(text)


def _host(arguments: argparse.Namespace) -> int:
    from kms.simulator.firmware import build_firmware
    from kms.simulator.hierarchy import AmdHierarchy
    from kms.simulator.kernel import fake_initrd, fake_kernel
    from kms.snp.product import Product

    sys.stderr.write(_LOUD)
    folder: Path = arguments.folder
    try:
        folder.mkdir(mode=0o700, parents=True)
        hierarchy = AmdHierarchy.generate(Product.MILAN, now=datetime.now(UTC))
        hierarchy.save(folder / _AUTHORITIES)
        for name, content in (
            (_ROOTS, hierarchy.ark.pem),
            (_FIRMWARE, build_firmware(seed=_SEED)),
            (_KERNEL, fake_kernel(_SEED)),
            (_INITRD, fake_initrd(_SEED)),
        ):
            (folder / name).write_bytes(content)
    except OSError as error:
        raise Unreadable(f"{error.filename or folder}: {error.strerror}") from error
    chips = [_chip(hierarchy, number).chip_id.hex() for number in range(1, arguments.chips + 1)]
    if arguments.json:
        print_json({"simulated": True, "roots": str(folder / _ROOTS), "chips": chips})
    else:
        for number, chip_id in enumerate(chips, 1):
            print(f"chip {number}  {chip_id}")
    return OK


def _guest(arguments: argparse.Namespace) -> int:
    from kms.guest.client import KeyClient
    from kms.guest.errors import Refused

    sys.stderr.write(_LOUD)
    keys = _keys(arguments.key or ["disk"])
    document = arguments.app_document
    app_document = None if document is None else read_file(document, at_most=_MAX_DOCUMENT)
    source = _Source(_launch(arguments, app_document), arguments.evidence)
    client = KeyClient(arguments.server, ca_file=arguments.ca, identity=None, source=source)
    try:
        payload = client.fetch(keys, app_document=app_document)
    except Refused as refusal:
        problem = refusal.problem
        if arguments.json:
            reasons = list(problem.reasons)
            body = {"status": problem.status, "code": problem.code, "reasons": reasons}
            print_json({"error": {**body, "request_id": problem.request_id}})
        else:
            report_error("kms simulate", refusal, as_json=False)
        return REFUSED if problem.status in _NO else WRONG_USE
    if arguments.receipt is not None:
        keep_receipt(arguments.receipt, payload)
    _show(payload, as_json=arguments.json)
    return OK


@dataclass(frozen=True, slots=True)
class _Source:
    """The guest's hardware; what it gives is kept in a file, where one is named."""

    machine: "SimulatedMachine"
    file: Path | None

    def evidence(self, report_data: bytes) -> "dict[str, JsonValue]":
        """Give evidence; see `kms.guest.evidence.EvidenceSource`."""
        evidence = self.machine.evidence(report_data)
        if self.file is not None:
            try:
                self.file.write_text(json.dumps(evidence), "ascii")
            except OSError as error:
                raise Unreadable(f"{self.file}: {error.strerror}") from error
        return evidence


def _show(payload: "Payload", *, as_json: bool) -> None:
    from kms.cli.demo_story import fingerprint

    rows = [
        {"name": f"{key.name}@{key.scope}", "epoch": key.epoch, "fingerprint": fingerprint(key)}
        for key in payload.keys
    ]
    if as_json:
        print_json({"simulated": True, "release_id": payload.release_id, "keys": rows})
        return
    print(f"release {payload.release_id}")
    for row in rows:
        print(f"key {row['name']}, epoch {row['epoch']}, fingerprint {row['fingerprint']}")


def _keys(names: list[str]) -> "list[KeyRequest]":
    from kms.keys.names import KeyRequest

    try:
        return [
            KeyRequest.parse(name, scope or "app")
            for name, _, scope in (each.partition("@") for each in names)
        ]
    except ValueError as error:
        raise WrongUse(f"--key: {error}") from None


def _launch(arguments: argparse.Namespace, app_document: bytes | None) -> "SimulatedMachine":
    from kms.simulator.hierarchy import AmdHierarchy
    from kms.simulator.machine import SimulatedMachine, describe

    folder: Path = arguments.folder
    try:
        hierarchy = AmdHierarchy.load(folder / _AUTHORITIES)
    except (OSError, ValueError) as error:
        raise Unreadable(f"{folder}: not what `kms simulate host` made: {error}") from error
    firmware, kernel, initrd = (read_file(folder / name) for name in (_FIRMWARE, _KERNEL, _INITRD))
    description = describe(firmware=firmware, kernel=kernel, initrd=initrd, cmdline=arguments.append)
    return SimulatedMachine.launch(_chip(hierarchy, arguments.chip), description, app_document=app_document)


def _chip(hierarchy: "AmdHierarchy", number: int) -> "SimulatedChip":
    """Give a chip of the host. Its id is the same on every host; its secret is this host's."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    from kms.simulator.chip import SimulatedChip, simulated_chip_id

    name = f"simulated chip {number}".encode()
    root = hierarchy.ark.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    chip = SimulatedChip.typical(
        hierarchy, chip_id=simulated_chip_id(hierarchy.product, name), now=datetime.now(UTC)
    )
    return replace(chip, secret=hmac.digest(root, name, "sha256"))
