"""`kms doctor`: look whether everything that a server stands on is as it must be."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kms.cli.output import OK, REFUSED, print_json
from kms.cli.parsers import Parser
from kms.cli.saying import Line, say
from kms.errors import ConfigurationError
from kms.settings import load_settings

if TYPE_CHECKING:
    from kms.doctor import Diagnosis

_STYLES: Final = {"ok": "green", "warning": "yellow", "failed": "bold red", "unknown": "cyan"}


def main(argv: list[str]) -> int:
    """Look at everything, change nothing, and say what to do about what is wrong."""
    arguments = parser().parse_args(argv)
    found = _examined(arguments.config)
    healthy = not any(each.failed for each in found)
    if arguments.json:
        print_json({"healthy": healthy, "checks": [_document(each) for each in found]})
    else:
        say(line for each in found for line in _lines(each))
        failures = sum(each.failed for each in found)
        say([Line(f"{failures} of {len(found)} checks failed" if failures else "nothing failed")])
    return OK if healthy else REFUSED


def parser() -> Parser:
    """Give the command's parser."""
    command = Parser(
        prog="kms doctor",
        description="Look at everything that a server with these settings stands on, and say what is wrong"
        " and what to do: settings, machine, clock, files, TLS, database, root key, policy, certificates, key"
        " distribution services. It changes nothing; run it as the user who runs the server, before the first"
        " start too. Exit status: 0 nothing failed, 1 something did, 2 wrong use.",
        epilog="example: kms doctor --config /etc/attested-kms/kms.toml",
    )
    add = command.add_argument
    add("--config", metavar="FILE", type=Path, help="path of kms.toml (default: KMS_CONFIG, else none)")
    add("--json", action="store_true", help="one JSON document on standard output")
    return command


def _examined(config: Path | None) -> "tuple[Diagnosis, ...]":
    from kms.doctor import examine
    from kms.doctor.diagnosis import refused

    try:
        settings, warnings = load_settings(config)
    except ConfigurationError as error:
        return (refused("settings", error, "docs/reference/settings.md has every setting"),)
    return asyncio.run(examine(settings, warnings))


def _document(each: "Diagnosis") -> dict[str, str]:
    return {
        "name": each.name,
        "status": each.status.value,
        "detail": each.detail,
        "remedy": each.remedy,
    }


def _lines(each: "Diagnosis") -> Iterator[Line]:
    status = each.status.value
    yield Line(f"{status:<8} {each.name:<20} {each.detail}", _STYLES[status])
    if each.remedy:
        yield Line(f"{'':<29} → {each.remedy}")
