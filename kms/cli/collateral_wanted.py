"""What ``kms collateral fetch`` is to ask for: chips by report, by address or by their values; lines."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from kms.cli.collateral_store import line_name
from kms.cli.output import Unreadable, WrongUse, read_file
from kms.errors import MalformedEvidence
from kms.identifiers import ChipId
from kms.snp import tcb
from kms.snp.flags import Signer
from kms.snp.kds_paths import (
    HWID_LENGTH_ON_TURIN,
    PARAMETERS,
    ChainOf,
    Line,
    RevocationListOf,
    VcekOf,
    Wanted,
    chip_id_of,
    hwid_of,
    parse_path,
)
from kms.snp.product import Product
from kms.snp.revocation import RevocationMode
from kms.snp.tcb import TcbVersion

_LINES = {line_name(Line(signer, product)): Line(signer, product) for signer in Signer for product in Product}
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})+")
_LEVEL = re.compile(r"([a-z]+)=([0-9]{1,3})")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Let a command take what `wanted_of` reads."""
    add = command.add_argument
    add(
        "--chip",
        metavar="HEX",
        help="chip id, as reports show it (64 bytes; on Turin the first 8 are enough)",
    )
    add(
        "--product",
        choices=[each.value for each in Product],
        help="with --chip, unless that has 8 bytes (Turin); or for reports of version 2",
    )
    add(
        "--tcb",
        metavar="LEVELS",
        help="with --chip: bootloader=4,tee=0,snp=24,microcode=219 (on Turin fmc=1 too), or the 16 hex digits"
        " of a report's TCB_VERSION",
    )
    add(
        "--report",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="take chip, product and reported TCB from a raw report; may be repeated",
    )
    add(
        "--url",
        action="append",
        default=[],
        help="take them from an address at AMD's service, of which only path and query count: `snphost show"
        " vcek-url` prints it on a host; may be repeated",
    )
    add(
        "--line",
        metavar="LINE",
        choices=sorted(_LINES),
        action="append",
        default=[],
        help="chain and revocation list of vcek/milan, vlek/milan, vcek/genoa, …; may be repeated",
    )


def wanted_of(arguments: argparse.Namespace, mode: RevocationMode) -> Iterator[Wanted]:
    """Give what to ask for, chains and lists before the chips' certificates.

    Raises:
        WrongUse: the arguments do not fit together, or are malformed.
        Unreadable: a report cannot be read, or does not say of which chip it is.

    """
    for name in arguments.line:
        yield ChainOf(_LINES[name])
        yield RevocationListOf(_LINES[name])
    product = None if arguments.product is None else Product(arguments.product)
    vceks = [_of_report(path, product) for path in arguments.report]
    vceks += [_of_url(url) for url in arguments.url]
    if arguments.chip is not None or arguments.tcb is not None:
        if arguments.chip is None or arguments.tcb is None:
            raise WrongUse("--chip and --tcb go together")
        if product is None:
            if len(arguments.chip) != 2 * HWID_LENGTH_ON_TURIN:
                raise WrongUse("--product: a chip id of 64 bytes does not say whether it is Milan or Genoa")
            product = Product.TURIN
        vceks.append(VcekOf(product, _chip(arguments.chip, product), _tcb(arguments.tcb, product)))
    for vcek in vceks:
        line = Line(Signer.VCEK, vcek.product)
        yield ChainOf(line)
        if mode is not RevocationMode.OFF:
            yield RevocationListOf(line)
    yield from vceks


def _of_url(url: str) -> VcekOf:
    try:
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True, max_num_fields=len(PARAMETERS))
    except ValueError:
        wanted = None
    else:
        wanted = parse_path(parts.path, dict(pairs)) if len(dict(pairs)) == len(pairs) else None
    if not isinstance(wanted, VcekOf):
        raise WrongUse("--url: not the address of a VCEK, as /vcek/v1/Milan/HWID?blSPL=4&teeSPL=0&…")
    return wanted


def _chip(text: str, product: Product) -> ChipId:
    try:
        chip_id = chip_id_of(bytes.fromhex(text) if _HEX.fullmatch(text) else b"")
    except ValueError as error:
        raise WrongUse(f"--chip: {error}") from None
    # A Turin chip's id has 8 bytes, and no other product's; the KDS knows no chip by the rest.
    if chip_id_of(hwid_of(product, chip_id)) != chip_id:
        raise WrongUse(f"--chip: a Turin chip id has {HWID_LENGTH_ON_TURIN} bytes, then zeros")
    if product is not Product.TURIN and len(text) != 2 * len(chip_id):
        raise WrongUse(f"--chip: {len(chip_id)} bytes, unless the product is turin")
    return chip_id


def _tcb(text: str, product: Product) -> TcbVersion:
    if _HEX.fullmatch(text) and len(text) == 2 * tcb.LENGTH:
        raw = bytes.fromhex(text)
        if not tcb.reserved_bytes_are_zero(raw, product):
            raise WrongUse(f"--tcb: bytes that are reserved on {product.certificate_name} are not zero")
        return tcb.decode(raw, product)
    found = [_LEVEL.fullmatch(part) for part in text.split(",")]
    levels = {match[1]: int(match[2]) for match in found if match is not None}
    names = tcb.component_names(product)
    if len(levels) != len(found) or set(levels) != set(names) or max(levels.values()) > 0xFF:
        raise WrongUse(f"--tcb: write {','.join(f'{name}=N' for name in names)}, each 0 to 255")
    return TcbVersion(**levels)


def _of_report(path: Path, product: Product | None) -> VcekOf:
    from kms.snp.report import LENGTH, Report

    try:
        report = Report.parse(read_file(path, at_most=LENGTH))
    except MalformedEvidence as error:
        raise Unreadable(f"{path}: {error.detail}") from error
    if report.flags.signer is Signer.VLEK:
        raise Unreadable(f"{path}: signed by a VLEK, which only the cloud provider hands out: import it")
    if report.chip_id is None:
        raise Unreadable(f"{path}: it does not say of which chip it is (CHIP_ID is masked)")
    product = report.product or product
    if product is None:
        raise WrongUse(f"{path} does not say of which product it is: --product is needed")
    return VcekOf(product, report.chip_id, tcb.decode(report.tcbs.reported, product))
