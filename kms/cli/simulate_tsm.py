"""``kms simulate tsm``: the configfs-tsm of a SIMULATED guest, mounted where a program will look for it."""

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kms.cli.output import OK, Unreadable, print_json, read_file
from kms.cli.parsers import Group, Parser

if TYPE_CHECKING:
    from kms.simulator.machine import SimulatedMachine

Launch = Callable[[argparse.Namespace, bytes | None], "SimulatedMachine"]

_MAX_DOCUMENT: Final = 64 << 10  # protocol, section 1
_ENDS: Final = (signal.SIGINT, signal.SIGTERM)


def add_tsm(group: Group, launch: Launch) -> Parser:
    """Add the command, and give its parser; `launch` starts a guest from the options that the caller adds."""
    command = group.add(
        "tsm",
        summary="mount the configfs-tsm of a SIMULATED guest, for programs that fetch keys",
        description="Mount, with FUSE, what /sys/kernel/config/tsm/report would be in the SIMULATED guest"
        " that `kms simulate guest` launches from the same files, until SIGTERM or SIGINT: for `kms guest"
        " fetch --tsm MOUNTPOINT`, and for clients of your own. Takes root.",
        example="kms simulate tsm rack /run/tsm --append 'console=ttyS0' --app-document app.json",
    )
    command.set_defaults(run=lambda arguments: _tsm(arguments, launch))
    return command


def _tsm(arguments: argparse.Namespace, launch: Launch) -> int:
    from kms.simulator.tsm_fuse import SimulatedTsm
    from kms.simulator.tsm_reports import reports_of

    document = arguments.app_document
    machine = launch(arguments, None if document is None else read_file(document, at_most=_MAX_DOCUMENT))
    mountpoint: Path = arguments.mountpoint
    # Before the thread that answers begins: a signal must find this one waiting, whenever it comes.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    try:
        with SimulatedTsm(reports_of(machine.guest)).serve(mountpoint):
            if arguments.json:
                print_json({"simulated": True, "mountpoint": str(mountpoint)})
                sys.stdout.flush()
            sys.stderr.write(f"SIMULATED configfs-tsm at {mountpoint}: it protects nothing\n")
            signal.sigwait(_ENDS)
    except OSError as error:
        raise Unreadable(f"cannot mount at {error.filename or mountpoint}: {error.strerror}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return OK
