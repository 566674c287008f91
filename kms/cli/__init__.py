"""The command line: a table of commands, each in a module of its own that is imported only when it runs.

A command module has ``main(argv: list[str]) -> int``. Exit status: 0 done or allowed, 1 refused or not
verified, 2 wrong use or malformed input. With ``--json``, standard output is always one JSON document,
errors included.
"""

import importlib
import sys
from typing import NamedTuple

from kms import __version__
from kms.cli.output import OK, WRONG_USE, report_error
from kms.errors import KmsError


# A named tuple: importing `dataclasses` would take a third of the time in which `kms measure` starts.
class Command(NamedTuple):
    """An entry of ``kms --help``."""

    module: str
    summary: str
    example: str


COMMANDS = {
    "demo": Command(
        "kms.cli.demo",
        "the whole story on this machine: server, simulated chip, policy, guest, attacks",
        "kms demo",
    ),
    "serve": Command(
        "kms.cli.serve",
        "run the server",
        "KMS_POLICY_DIR=policies kms serve",
    ),
    "measure": Command(
        "kms.cli.measure",
        "compute a launch measurement (the flags of sev-snp-measure)",
        "kms measure --mode snp --vcpus 2 --vcpu-type EPYC-v4 --ovmf OVMF.fd --kernel vmlinuz",
    ),
    "verify": Command(
        "kms.cli.verify",
        "verify evidence offline and explain every check",
        "kms verify --report report.bin --certificates vcek.der --certificates cert_chain.pem",
    ),
    "image": Command(
        "kms.cli.image",
        "describe a guest image for the policy, list the measurements it may show",
        "kms image describe --ovmf OVMF.fd --kernel vmlinuz --name os-1 --enforces host-data",
    ),
    "policy": Command(
        "kms.cli.policy",
        "check and apply policies",
        "kms policy lint policies/",
    ),
    "guest": Command(
        "kms.cli.guest",
        "the guest's side: prove what this machine is and fetch its keys",
        "kms guest fetch --server https://kms:8443 --ca ca.pem --identity KEY --key disk",
    ),
}


def run(argv: list[str]) -> int:
    """Run one command and give the exit status."""
    if not argv or argv[0] in {"-h", "--help", "help"}:
        sys.stdout.write(_help())
        return OK if argv else WRONG_USE
    if argv[0] in {"-V", "--version", "version"}:
        sys.stdout.write(f"kms {__version__}\n")
        return OK
    command = COMMANDS.get(argv[0])
    if command is None:
        sys.stderr.write("kms: no such command; `kms --help` lists them\n")
        return WRONG_USE
    try:
        module = importlib.import_module(command.module)
        status: int = module.main(argv[1:])
    except KmsError as error:
        report_error(f"kms {argv[0]}", error, as_json="--json" in argv)
        return WRONG_USE
    except BrokenPipeError:
        # The reader (`| head`) left; that is its right.
        return OK
    except KeyboardInterrupt:
        return 130
    return status


def _help() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [
        "kms: release keys to confidential guests that can prove what they are",
        "",
        "usage: kms COMMAND [--help]",
        "",
    ]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<{width}}  {command.summary}")
        lines.append(f"  {'':<{width}}    $ {command.example}")
    lines += [
        "",
        "exit status: 0 done or allowed, 1 refused or not verified, 2 wrong use or malformed input",
        "",
    ]
    return "\n".join(lines)
