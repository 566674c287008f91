"""`kms serve`: run the server."""

import asyncio
import json
import sys
from pathlib import Path

from kms.cli.output import OK
from kms.cli.parsers import Parser
from kms.cli.reading import read_settings


def main(argv: list[str]) -> int:
    """Run the server until it is told to stop; it refuses to start with a reason and a remedy."""
    arguments = parser().parse_args(argv)
    settings = read_settings(arguments.config)
    if arguments.print_config:
        sys.stdout.write(json.dumps(settings.shown(), indent=2) + "\n")
        return OK
    import uvloop

    from kms.hardening import lock_memory
    from kms.serving import serve
    from kms.telemetry.logs import configure_logs

    configure_logs(settings.log_level)
    if settings.lock_memory:
        lock_memory()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings))
    return OK


def parser() -> Parser:
    """Give the command's parser."""
    command = Parser(
        prog="kms serve",
        description="Run the server. Settings: kms.toml and KMS_… variables.",
        epilog="example: KMS_POLICY_DIR=policies kms serve",
    )
    add = command.add_argument
    add("--config", metavar="FILE", type=Path, help="path of kms.toml (default: KMS_CONFIG, else none)")
    add("--print-config", action="store_true", help="show the effective settings, and stop")
    return command
