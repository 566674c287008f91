"""`kms serve`: run the server."""

import argparse
import asyncio
import gc
import json
import sys
from pathlib import Path
from typing import Final

from kms.cli.output import OK, REFUSED
from kms.cli.parsers import Parser
from kms.cli.reading import read_settings
from kms.listening import Inherited
from kms.settings import Settings, load_settings


def main(argv: list[str]) -> int:
    """Run the server until it is told to stop; it refuses to start with a reason and a remedy."""
    arguments = parser().parse_args(argv)
    # A worker's supervisor has said what is doubtful about the settings.
    worker = arguments.worker is not None
    settings = load_settings(arguments.config)[0] if worker else read_settings(arguments.config)
    if arguments.print_config:
        sys.stdout.write(json.dumps(settings.shown(), indent=2) + "\n")
        return OK
    from kms.telemetry.logs import configure_logs

    configure_logs(settings.log_level, settings.server_name)
    if arguments.worker is None and settings.workers > 1:
        from kms.supervising import supervise

        return asyncio.run(supervise(settings, arguments.config))
    return _serve(settings, arguments.worker)


# Python's collector looks for cycles whenever so many objects more were made than freed. A release makes some
# hundreds that live until it is answered and are in no cycle: at Python's own 700 its looks were a twentieth
# of all work. Of what is in cycles (exceptions, mostly), this many are a few megabytes.
_COLLECT_AFTER: Final = 20_000


def _serve(settings: Settings, inherited: Inherited | None) -> int:
    import uvloop

    from kms.hardening import lock_memory
    from kms.serving import serve

    gc.set_threshold(_COLLECT_AFTER)
    if settings.lock_memory:
        lock_memory()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(serve(settings, inherited))
        except asyncio.CancelledError:
            return REFUSED  # told twice: it cut off what was in flight
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
    # How a supervisor starts its workers (kms/supervising.py); descriptors mean nothing to anybody else.
    add("--worker", type=Inherited.parse, help=argparse.SUPPRESS)
    return command
