"""`kms serve`: run the server."""

import asyncio
import json
import sys
from pathlib import Path

from kms.cli.output import OK, Parser
from kms.settings import load_settings


def main(argv: list[str]) -> int:
    """Run the server until it is told to stop; it refuses to start with a reason and a remedy."""
    parser = Parser(prog="kms serve", description="Run the server. Settings: kms.toml and KMS_… variables.")
    parser.add_argument("--config", type=Path, help="path of kms.toml (default: KMS_CONFIG, else none)")
    parser.add_argument("--print-config", action="store_true", help="show the effective settings, and stop")
    arguments = parser.parse_args(argv)
    settings, warnings = load_settings(arguments.config)
    for warning in warnings:
        sys.stderr.write(f"kms serve: warning: {warning}\n")
    if arguments.print_config:
        sys.stdout.write(json.dumps(settings.shown(), indent=2) + "\n")
        return OK
    import uvloop

    from kms.telemetry.logs import configure_logs
    from kms.wiring import serve

    configure_logs(settings.log_level)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings))
    return OK
