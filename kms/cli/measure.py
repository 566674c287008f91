"""``kms measure``: sev-snp-measure's command, flag by flag.

Output equals that of sev-snp-measure 0.0.13 wherever that is right; what it wrongly accepts is refused
(docs/reference/measurement.md lists both). Starts fast: nothing is imported that a measurement does not need.
"""

import argparse
import os
from base64 import b64encode
from collections.abc import Iterable
from enum import StrEnum
from hashlib import sha256

from kms import __version__
from kms.cli.output import OK, Unreadable, print_json, read_file
from kms.cli.parsers import Help, Parser, integer
from kms.encoding import from_hex
from kms.identifiers import Measurement
from kms.measurement import other_modes
from kms.measurement.errors import MeasurementError
from kms.measurement.firmware import MAX_FIRMWARE, Firmware, firmware_digest
from kms.measurement.kernel_hashes import NO_INITRD, hash_table
from kms.measurement.snp import Machine, machine_digest, metadata_digest, vmsa_pages
from kms.measurement.vcpu_types import VCPU_TYPES, cpuid_signature
from kms.measurement.vmsa import Vmm, VmsaVariant

_MAX_FILE = 4 << 30  # bytes of kernel or initrd: they are loaded below 4 GiB
_CHUNK = 1 << 20


class _Mode(StrEnum):
    SEV = "sev"
    SEV_ES = "seves"
    SEV_SNP = "snp"
    OVMF_HASH = "snp:ovmf-hash"
    SEV_SNP_SVSM = "snp:svsm"


# sev-snp-measure's spelling of the hypervisors, and ours of those it does not know.
_VMMS = {"QEMU": Vmm.QEMU} | {vmm.value: vmm for vmm in Vmm}


def main(argv: list[str]) -> int:
    """Run the command. Raises `KmsError` for what cannot be read or measured."""
    if argv[:1] == ["id-block"]:
        from kms.cli import measure_id_block

        return measure_id_block.main(argv[1:])
    command = parser()
    args = command.parse_args(argv)
    mode = _Mode(args.mode)
    _check_usage(command, args, mode)
    if mode is _Mode.OVMF_HASH:
        digest = firmware_digest(read_file(args.ovmf, at_most=MAX_FIRMWARE))
        _print(args, mode, digest.hex(), sentence=False)
        return OK
    vmm, variant = _VMMS[args.vmm_type], VmsaVariant(args.vmsa_variant)
    machine = None if mode is _Mode.SEV else Machine(args.vcpus, _signature(args), args.guest_features)
    measurement, pages = _measure(args, mode, machine, vmm, variant)
    if args.dump_vmsa:
        _dump(pages)
    _print(args, mode, _encoded(measurement, args.output_format), sentence=args.verbose)
    return OK


def parser() -> Parser:
    """Give the command's parser."""
    names = ", ".join(VCPU_TYPES)
    command = Parser(
        prog="kms measure",
        formatter_class=Help,
        allow_abbrev=True,  # as sev-snp-measure
        description="Calculate AMD SEV/SEV-ES/SEV-SNP guest launch measurement.",
        epilog="example: kms measure --mode snp --vcpus 2 --vcpu-type EPYC-v4 --ovmf OVMF.fd;"
        " `kms measure id-block --help` is about ID blocks",
    )
    add = command.add_argument
    add("--version", action="version", version=f"kms measure {__version__}")
    add("-v", "--verbose", action="store_true", help="Print a sentence, not the digest alone")
    add("--mode", choices=[mode.value for mode in _Mode], help="Guest mode", required=True)
    add("--vcpus", metavar="N", type=int, help="Number of guest vcpus")
    add("--vcpu-type", metavar="CPUTYPE", choices=list(VCPU_TYPES), help=f"Type of guest vcpu ({names})")
    add("--vcpu-sig", metavar="VALUE", type=integer, help="Guest vcpu signature value")
    add("--vcpu-family", metavar="FAMILY", type=int, help="Guest vcpu family")
    add("--vcpu-model", metavar="MODEL", type=int, help="Guest vcpu model")
    add("--vcpu-stepping", metavar="STEPPING", type=int, help="Guest vcpu stepping")
    add("--vmm-type", metavar="VMMTYPE", default="QEMU", help=f"Type of guest vmm ({', '.join(_VMMS)})")
    add("--ovmf", metavar="PATH", help="OVMF file to calculate hash from", required=True)
    add("--kernel", metavar="PATH", help="Kernel file to calculate hash from")
    add("--initrd", metavar="PATH", help="Initrd file to calculate hash from (use with --kernel)")
    add("--append", metavar="CMDLINE", help="Kernel command line (use with --kernel); its exact bytes count")
    add("--guest-features", metavar="VALUE", type=integer, default=0x1, help="SEV_FEATURES (default 0x1)")
    add("--output-format", choices=["hex", "base64"], help="Measurement output format", default="hex")
    add("--snp-ovmf-hash", metavar="HASH", help="Precalculated hash of the OVMF binary (hex string)")
    add(
        "--dump-vmsa",
        action="store_true",
        help="Write measured VMSAs to vmsa<N>.bin (seves, snp, and snp:svsm modes only)",
    )
    add(
        "--vmsa-variant",
        choices=[variant.value for variant in VmsaVariant],
        default=VmsaVariant.CURRENT.value,
        help="Initial vCPU state of other hosts: before-6.10 (QEMU on Linux before 6.10), rdx-0 (EC2"
        " instances from before 2026), svsm-fcw (snp:svsm with the x87 control word set)",
    )
    add("--json", action="store_true", help="Print one JSON document")
    group = command.add_argument_group(
        title="snp:svsm Mode",
        description="AMD SEV-SNP with Coconut-SVSM. This mode additionally requires --svsm and either"
        " --vars-file or --vars-size to be set.",
    )
    group.add_argument("--svsm", metavar="PATH", help="SVSM binary")
    sizes = group.add_mutually_exclusive_group()
    sizes.add_argument("--vars-size", type=int, metavar="SIZE", help="Size of the OVMF_VARS file in bytes")
    sizes.add_argument("--vars-file", metavar="PATH", help="OVMF_VARS file; only its size counts")
    return command


def _check_usage(parser: Parser, args: argparse.Namespace, mode: _Mode) -> None:
    for name in ("ovmf", "kernel", "initrd", "svsm", "vars_file"):
        if getattr(args, name) == "":
            # An unset shell variable must not silently measure a guest without its kernel.
            parser.error(f"--{name.replace('_', '-')} is empty")
    if mode is _Mode.OVMF_HASH:
        return
    if args.initrd and args.kernel is None:
        parser.error("--kernel required when using --initrd")
    if args.append and args.kernel is None:
        parser.error("--kernel required when using --append")
    if args.vmm_type not in _VMMS:
        parser.error(f"unknown VMM type '{args.vmm_type}'")
    if args.snp_ovmf_hash and mode is not _Mode.SEV_SNP:
        parser.error("--snp-ovmf-hash is for --mode snp only")
    if mode is not _Mode.SEV:
        _check_vcpu_usage(parser, args, mode)
    elif args.dump_vmsa:
        parser.error("--dump-vmsa is not available in the selected mode")


def _check_vcpu_usage(parser: Parser, args: argparse.Namespace, mode: _Mode) -> None:
    if args.vcpus is None:
        parser.error(f"missing --vcpus N in guest mode '{args.mode}'")
    if args.vcpu_family and (args.vcpu_model is None or args.vcpu_stepping is None):
        parser.error("--vcpu-family takes --vcpu-model and --vcpu-stepping with it")
    named = args.vcpu_family or args.vcpu_sig or args.vcpu_type
    if _VMMS[args.vmm_type] is Vmm.QEMU and not named:
        parser.error(f"missing --vcpu-type or --vcpu-sig or --vcpu-family in guest mode '{args.mode}'")
    if mode is _Mode.SEV_SNP_SVSM:
        _check_svsm_usage(parser, args)


def _check_svsm_usage(parser: Parser, args: argparse.Namespace) -> None:
    if _VMMS[args.vmm_type] is not Vmm.QEMU:
        parser.error("snp:svsm mode is for --vmm-type QEMU only")
    if args.svsm is None:
        parser.error("snp:svsm mode requires --svsm")
    if not args.vars_size and not args.vars_file:
        parser.error("snp:svsm mode requires --vars-size or --vars-file")
    if args.kernel is not None:
        parser.error("snp:svsm mode measures no kernel")


def _signature(args: argparse.Namespace) -> int:
    if args.vcpu_family:
        return cpuid_signature(args.vcpu_family, args.vcpu_model, args.vcpu_stepping)
    if args.vcpu_sig:
        return int(args.vcpu_sig)
    # Without any (not QEMU), the hypervisor does not show it.
    return VCPU_TYPES[args.vcpu_type] if args.vcpu_type else 0


def _measure(
    args: argparse.Namespace, mode: _Mode, machine: Machine | None, vmm: Vmm, variant: VmsaVariant
) -> tuple[bytes, Iterable[bytes]]:
    """Give the measurement and the VMSA pages that are part of it."""
    firmware = Firmware.parse(read_file(args.ovmf, at_most=MAX_FIRMWARE))
    table = _hash_table(args)
    if machine is None:
        return other_modes.sev_measurement(firmware, table), ()
    if mode is _Mode.SEV_ES:
        digest = other_modes.seves_measurement(firmware, table, vmm, machine, variant)
        return digest, other_modes.seves_vmsa_pages(firmware, vmm, machine, variant)
    if mode is _Mode.SEV_SNP_SVSM:
        vars_size = _file_size(args.vars_file) if args.vars_file else args.vars_size
        data = read_file(args.svsm, at_most=MAX_FIRMWARE)
        svsm = other_modes.svsm_image(firmware, data, vars_size)
        digest = other_modes.svsm_measurement(firmware, svsm, machine, variant)
        return digest, other_modes.svsm_vmsa_pages(svsm, machine, variant)
    description = firmware.describe(_given_digest(args.snp_ovmf_hash) if args.snp_ovmf_hash else None)
    prefix = metadata_digest(vmm, description, table)
    digest = machine_digest(prefix, vmm, machine, description.reset_eip, variant)
    return digest, vmsa_pages(vmm, machine, description.reset_eip, variant)


def _given_digest(text: str) -> Measurement:
    try:
        return Measurement(from_hex(text.lower()))
    except ValueError:
        raise MeasurementError("--snp-ovmf-hash must be 96 hex digits") from None


def _hash_table(args: argparse.Namespace) -> bytes | None:
    if args.kernel is None:
        return None
    initrd = NO_INITRD if args.initrd is None else file_sha256(args.initrd)
    return hash_table(file_sha256(args.kernel), initrd, args.append or "")


def file_sha256(path: str | os.PathLike[str]) -> bytes:
    """Give SHA-256 of a file, read piece by piece. Raises `Unreadable`."""
    digest, length = sha256(), 0
    try:
        with open(path, "rb") as file:  # noqa: PTH123  # see `read_file`
            while piece := file.read(_CHUNK):
                digest.update(piece)
                length += len(piece)
                if length > _MAX_FILE:
                    raise Unreadable(f"{path}: longer than {_MAX_FILE} bytes")
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error
    return digest.digest()


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error


def _dump(pages: Iterable[bytes]) -> None:
    for number, page in enumerate(pages):
        path = f"vmsa{number}.bin"
        try:
            with open(path, "wb") as file:  # noqa: PTH123
                file.write(page)
        except OSError as error:
            raise Unreadable(f"{path}: {error.strerror}") from error


def _encoded(measurement: bytes, output_format: str) -> str:
    return measurement.hex() if output_format == "hex" else b64encode(measurement).decode("ascii")


def _print(args: argparse.Namespace, mode: _Mode, measurement: str, *, sentence: bool) -> None:
    if args.json:
        print_json({"mode": mode.value, "measurement": measurement})
    elif sentence:
        print(f"Calculated {mode.name} guest measurement: {measurement}")
    else:
        print(measurement)
