"""``kms guest doctor``: say what is missing in this guest, and how to fix it."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from kms.cli.guest_machine import add_machine_options, evidence_options, guest_config
from kms.cli.output import OK, REFUSED, print_json
from kms.cli.parsers import Group
from kms.cli.saying import Line, say
from kms.errors import ConfigurationError

if TYPE_CHECKING:
    from kms.guest.config import GuestConfig
    from kms.guest.doctor import Finding

_STYLES: Final = {"ok": "green", "warning": "yellow", "failed": "bold red", "unknown": "cyan"}


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
    found: list[Finding] = [configuration, *examine(System(), config, options)]
    failures = sum(each.failed for each in found)
    if arguments.json:
        print_json({"healthy": not failures, "checks": [_document(each) for each in found]})
    else:
        say(line for each in found for line in _lines(each))
        say([Line(f"{failures} of {len(found)} checks failed" if failures else "nothing failed")])
    return REFUSED if failures else OK


def _configuration(arguments: argparse.Namespace) -> "tuple[GuestConfig | None, Finding]":
    """Give what the file and the options say, and what is to be said of it.

    Raises:
        WrongUse, Unreadable: the options make no sense.

    """
    from kms.guest.config import DEFAULT_CONFIG
    from kms.guest.doctor.finding import ok, refused, unknown

    name, file = "configuration", arguments.config
    if file is None and arguments.server is None:
        if not DEFAULT_CONFIG.exists():
            seen = f"there is no {DEFAULT_CONFIG}: only this machine is looked at"
            return None, unknown(name, seen, "name the server: --config FILE, or --server URL")
        file = DEFAULT_CONFIG
    try:
        config = guest_config(arguments)
    except ConfigurationError as error:
        return None, refused(name, error)
    return config, ok(name, "from the command line" if file is None else f"{file} can be read")


def _document(each: "Finding") -> dict[str, str]:
    return {
        "name": each.name,
        "status": each.status.value,
        "detail": each.detail,
        "remedy": each.remedy,
    }


def _lines(each: "Finding") -> Iterator[Line]:
    status = each.status.value
    yield Line(f"{status:<8} {each.name:<20} {each.detail}", _STYLES[status])
    if each.remedy:
        yield Line(f"{'':<29} → {each.remedy}")
