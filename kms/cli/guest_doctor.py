"""``kms guest doctor``: say what is missing in this guest, and how to fix it."""

import argparse
from typing import TYPE_CHECKING

from kms.cli.findings_report import tell
from kms.cli.guest_machine import add_machine_options, evidence_options, guest_config
from kms.cli.parsers import Group
from kms.errors import ConfigurationError
from kms.findings import Finding, ok, refused, unknown

if TYPE_CHECKING:
    from kms.guest.config import GuestConfig


def add_doctor(group: Group) -> None:
    """Add ``kms guest doctor``."""
    command = group.add(
        "doctor",
        summary="say what this guest is missing",
        description="Look at everything that a guest's keys depend on, and say what is wrong and what to do:"
        " kernel, SEV-SNP, one report from the hardware, app document and workload, clock, the way to the"
        " server and its identity, and what disks need. It fetches no key and changes nothing; run it as"
        " root. Without a server only this machine is looked at. Exit status: 0 nothing failed, 1 something"
        " did, 2 wrong use.",
        example="kms guest doctor --config /etc/attested-kms/guest.toml",
    )
    add_machine_options(command)
    command.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from kms.guest.doctor import System, examine
    from kms.guest.hardware import EvidenceOptions

    config, configuration = _configuration(arguments)
    options = evidence_options(arguments, EvidenceOptions() if config is None else config.evidence)
    return tell([configuration, *examine(System(), config, options)], as_json=arguments.json)


def _configuration(arguments: argparse.Namespace) -> "tuple[GuestConfig | None, Finding]":
    """Give what the file and the options say, and what is to be said of it.

    Raises:
        WrongUse, Unreadable: the options make no sense.

    """
    from kms.guest.config import DEFAULT_CONFIG, default_config

    name, file = "configuration", arguments.config
    try:
        if file is None and arguments.server is None and (file := default_config()) is None:
            seen = f"there is no {DEFAULT_CONFIG}: only this machine is looked at"
            return None, unknown(name, seen, "name the server: --config FILE, or --server URL")
        config = guest_config(arguments)
    except ConfigurationError as error:
        return None, refused(name, error)
    return config, ok(name, "from the command line" if file is None else f"{file} can be read")
