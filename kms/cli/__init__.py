"""The command line: a table of commands, each in a module of its own that is imported only when it runs.

A command module has ``parser() -> Parser`` and ``main(argv: list[str]) -> int``. Exit status: 0 done or
allowed, 1 refused or not verified, 2 wrong use or malformed input. With ``--json``, standard output is always
one JSON document, errors included; logs are on standard error.
"""

import importlib
import os
import sys
from typing import NamedTuple

from kms import __version__
from kms.cli.output import OK, REFUSED, WRONG_USE, WrongUse, print_json, report_error
from kms.errors import KmsError, NotFound, OperatorRefusal

_INTERRUPTED = 130  # as shells say it: 128 + SIGINT
_READER_LEFT = 141  # 128 + SIGPIPE: what was to be printed was not, so it must not read as "allowed"


# A named tuple: importing `dataclasses` would take a third of the time in which `kms measure` starts.
class Command(NamedTuple):
    """An entry of ``kms --help``. `quiet` commands import nothing that logs, and need no logging set up."""

    module: str
    summary: str
    example: str
    quiet: bool = False


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
    "doctor": Command(
        "kms.cli.doctor",
        "look at everything that a server stands on: what is wrong, and what to do",
        "kms doctor --config kms.toml",
    ),
    "measure": Command(
        "kms.cli.measure",
        "compute a launch measurement (the flags of sev-snp-measure)",
        "kms measure --mode snp --vcpus 2 --vcpu-type EPYC-v4 --ovmf OVMF.fd --kernel vmlinuz",
        quiet=True,
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
        "check policies, put them in force, sign, explain, revoke",
        "kms policy apply policies/ --message 'new kernel' --gate",
    ),
    "operator": Command(
        "kms.cli.operator",
        "say who may operate the KMS, and see what they did",
        "kms operator add alice --role operator",
    ),
    "keys": Command(
        "kms.cli.keys",
        "make, schedule and retire epochs of the keys, back their root up, import other roots",
        "kms keys rotate",
    ),
    "ledger": Command(
        "kms.cli.ledger",
        "what was decided and done, and the proof that nothing of it was changed or removed",
        "kms ledger verify",
    ),
    "collateral": Command(
        "kms.cli.collateral",
        "keep AMD's certificates: fetch, import, export, verify, mirror",
        "kms collateral fetch --report report.bin",
    ),
    "simulate": Command(
        "kms.cli.simulate",
        "SIMULATED hosts and guests, to try a server without an EPYC chip",
        "kms simulate host rack",
    ),
    "guest": Command(
        "kms.cli.guest",
        "the guest's side: prove what this machine is and fetch its keys",
        "kms guest fetch --server https://kms:8443 --ca ca.pem --identity @kms.id --app-document app.json"
        " --key disk | cryptsetup open /dev/vdb data --key-file -",
    ),
    "env": Command(
        "kms.cli.env",
        "secrets for an app: its owner seals them, and only its guests open them",
        "kms env seal --app 86e59625be93207bc2351c4d1bba20037cec8e16 --server https://kms:8443 --ca ca.pem"
        " --identity @kms.id --output app.env.sealed app.env",
    ),
}


def run(argv: list[str]) -> int:
    """Run one command and give the exit status; what it printed has left this process."""
    try:
        status = _answered(argv)
    except BrokenPipeError:
        status = _READER_LEFT
    except KeyboardInterrupt:
        status = _INTERRUPTED
    return _flushed(status)


def _answered(argv: list[str]) -> int:
    try:
        return _run(argv)
    except OperatorRefusal as refusal:
        from kms.cli.refusals import report_refusal

        report_refusal(" ".join(["kms", *argv[:1]]), refusal, as_json="--json" in argv)
        # What is not there is a name that was written wrongly; everything else was understood, and refused.
        return WRONG_USE if isinstance(refusal, NotFound) else REFUSED
    except KmsError as error:
        report_error(" ".join(["kms", *argv[:1]]), error, as_json="--json" in argv)
        return WRONG_USE
    except SystemExit as leaving:
        # Only `argparse` leaves this way: after --help and --version.
        return int(leaving.code or OK)


def _run(argv: list[str]) -> int:
    name = argv[0] if argv else ""
    if name in {"-h", "--help", "help"}:
        sys.stdout.write(_help())
        return OK
    if name in {"-V", "--version", "version"}:
        if "--json" in argv:
            print_json({"version": __version__})
        else:
            sys.stdout.write(f"kms {__version__}\n")
        return OK
    command = COMMANDS.get(name)
    if not argv:
        raise WrongUse("a command is missing", usage=_help())
    if command is None:
        raise WrongUse("no such command; `kms --help` lists them")
    if not command.quiet:
        from kms.hardening import keep_memory_private
        from kms.telemetry.logs import configure_logs_of_commands

        configure_logs_of_commands()
        keep_memory_private()
    status: int = importlib.import_module(command.module).main(argv[1:])
    return status


def _flushed(status: int) -> int:
    """Write out what is buffered, while somebody can still say that it went wrong."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # The interpreter would try again when it ends, and print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            sys.stderr.write(f"kms: standard output: {error.strerror}\n")
            return WRONG_USE
    # A reader that left (`| head`) has seen what it wanted; the verdict stands.
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
