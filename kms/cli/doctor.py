"""`kms doctor`: look whether everything that a server stands on is as it must be."""

import asyncio
from pathlib import Path

from kms.cli.findings_report import tell
from kms.cli.parsers import Parser
from kms.errors import ConfigurationError
from kms.findings import Finding, refused
from kms.settings import load_settings


def main(argv: list[str]) -> int:
    """Look at everything, change nothing, and say what to do about what is wrong."""
    arguments = parser().parse_args(argv)
    return tell(_examined(arguments.config), as_json=arguments.json)


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


def _examined(config: Path | None) -> tuple[Finding, ...]:
    from kms.doctor import examine

    try:
        settings, warnings = load_settings(config)
    except ConfigurationError as error:
        return (refused("settings", error, "docs/reference/settings.md has every setting"),)
    return asyncio.run(examine(settings, warnings))
