"""Structured logs: one JSON object a line on standard error, or plain lines on a terminal.

What may be logged: request ids, codes, reasons, counts, names of operators' things. Never: keys, tokens,
request or evidence bytes, app or chip ids of strangers.
"""

import json
import logging
import os
import sys
import warnings
from functools import partial
from typing import Any, Final, TextIO, cast

import structlog

from kms.strict_json import dump_json

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure_logs(level: str, server: str = "") -> None:
    """Set the process's logging, once, at start. Every line says which `server` and process wrote it."""
    global _stream  # noqa: PLW0603 -- as the logging itself: one for the process
    _stream = stream = UnfailingStream(sys.stderr)
    # Traces name places, never what stood in variables there: on the way of the keys those are secrets.
    render: list[structlog.typing.Processor] = [
        structlog.processors.ExceptionRenderer(
            structlog.tracebacks.ExceptionDictTransformer(show_locals=False, use_rich=False)
        ),
        structlog.processors.JSONRenderer(serializer=_line),
    ]
    if sys.stderr.isatty():
        render = [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            partial(_of_process, server),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", stream)),
        cache_logger_on_first_use=True,
    )
    # Libraries' own loggers: warnings and worse, as plain lines.
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )
    quiet_certificate_warnings()


def _line(event: structlog.typing.EventDict, **options: Any) -> str:
    """Give the JSON of a line; what the fast encoder has no form for is left to the one that always has."""
    try:
        return dump_json(event).decode()
    except TypeError:
        return json.dumps(event, **options)


def log_lines_lost() -> int:
    """Give how many lines of this process could not be written."""
    return 0 if _stream is None else _stream.lost


def _of_process(
    server: str,
    _logger: structlog.typing.WrappedLogger,
    _method: str,
    event: structlog.typing.EventDict,
) -> structlog.typing.EventDict:
    """Say whose line it is: several processes, and several machines, end in one place."""
    if server:
        event["server"] = server
    event["pid"] = os.getpid()  # looked up at each line: a worker may be a copy of the process that logs
    return event


class UnfailingStream:
    """A stream whose reader may go away, or whose disk may be full, without stopping who writes to it.

    A log line stands between a recorded release and its answer: if writing it raised, the record would say
    "released" of keys that never left. `lost` counts the lines.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost = 0

    def write(self, text: str) -> int:
        """Write, or count what could not be written."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            self.lost += 1
            return len(text)

    def flush(self) -> None:
        """Flush, or let it be."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self.lost += 1


_stream: UnfailingStream | None = None


def configure_logs_of_commands() -> None:
    """Send warnings and worse to standard error, where they cannot spoil what a command prints.

    Unconfigured, structlog prints everything to standard output: into a JSON document, or into a key on
    its way to a disk.
    """
    structlog.configure(
        processors=[
            # A processor, not a wrapper class: who captures logs (tests) replaces processors, and sees all.
            _only_warnings,
            structlog.processors.add_log_level,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        # Looked up at each line: programs may call commands with another standard error each time.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )
    quiet_certificate_warnings()


def _only_warnings(
    _logger: structlog.typing.WrappedLogger, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    if method in {"debug", "info"}:
        raise structlog.DropEvent
    return event


def quiet_certificate_warnings() -> None:
    """Silence, for the whole process, what the library says of certificates that others made.

    AMD's certificates have serial number 0, and always will; strangers' have names of any length.

    Once at start, not around each parse: changing the filters is not thread-safe (docs/decisions/0005).
    """
    warnings.filterwarnings("ignore", message="Parsed a serial number which wasn't positive")
    warnings.filterwarnings("ignore", message="Attribute's length must be")
