"""``kms ledger watch``: follow a server's ledger as a stranger, and say loudly if it is not what it was."""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kms.cli.asking import report_refused
from kms.cli.ledger_asking import (
    COMMAND,
    add_deadline,
    add_key_options,
    asking,
    public_ledger,
    read_checkpoint,
    verifier_key,
)
from kms.cli.ledger_words import checkpoint_json
from kms.cli.output import OK, REFUSED, Unreadable, WrongUse, print_json
from kms.cli.parsers import Group, seconds
from kms.cli.saying import Line, say

if TYPE_CHECKING:
    from kms.guest.published_ledger import NotAppendOnly, NotShown, PublishedLedger
    from kms.ledger.checkpoint import Checkpoint

_INTERVAL: Final = 60.0  # seconds
_MODE: Final = 0o644  # checkpoints are public
_MOST_UNSHOWN: Final = 20  # looks in a row that end without a proof, though checkpoints come


def add_watch(group: Group) -> None:
    """Add ``kms ledger watch``."""
    command = group.add(
        "watch",
        summary="follow a server's ledger, and say if anything before was changed or removed",
        description="Fetch the newest checkpoint again and again, and prove by the public tiles that it"
        " continues the last one. That one is kept in --state, as the signed note that it is: `kms ledger"
        " verify --checkpoint` takes it. It needs no token, and survives outages. If the ledger was cut or"
        " forked, it says so, keeps the checkpoint that shows it beside the state (.conflict), leaves the"
        " state as it is, and ends. On an answer that is malformed, or if checkpoints come without proofs"
        f" {_MOST_UNSHOWN} times in a row, it raises an alarm and goes on. Exit status: 0 (--once) the"
        " ledger continues, 1 it does not, its checkpoint is forged, or (--once) an answer is malformed, 2"
        " wrong use, or (--once) no server.",
        example="kms ledger watch --server https://kms:8443 --ca ca.pem --key @ledger.key"
        " --state /var/lib/auditor/kms.checkpoint",
    )
    add = command.add_argument
    add("--server", metavar="URL", required=True, help="https://HOST:PORT")
    add("--ca", metavar="FILE", type=Path, help="PEM of the only CA to trust (default: the system's)")
    add("--state", metavar="FILE", type=Path, required=True, help="the last checkpoint; made if not there")
    add("--once", action="store_true", help="look once, and end")
    add(
        "--interval",
        metavar="SECONDS",
        type=seconds,
        default=_INTERVAL,
        help=f"between two looks (default {_INTERVAL:g})",
    )
    add_deadline(command)
    add_key_options(command)
    command.set_defaults(run=asking(_watch))


def _watch(arguments: argparse.Namespace) -> int:
    if arguments.json and not arguments.once:
        raise WrongUse("--json needs --once: a watch without end is no document")
    from kms.guest.published_ledger import NotShown

    with public_ledger(arguments) as ledger:
        key = verifier_key(arguments, ledger)
        if arguments.once:
            return _look(arguments, ledger, key)
        unshown = 0
        while True:
            try:
                status = _look_patiently(arguments, ledger, key)
            except NotShown as error:
                unshown += 1
                say([_unshown(error, unshown)], error=True)
            else:
                unshown = 0
                if status != OK:
                    return status
            time.sleep(arguments.interval)


def _look_patiently(arguments: argparse.Namespace, ledger: "PublishedLedger", key: str) -> int:
    """Look once; that nobody answers is said, and no reason to end. Raises `NotShown`."""
    from kms.guest.errors import AnswerRejected, Refused, ServerUnreachable, ServerUntrusted

    try:
        return _look(arguments, ledger, key)
    except AnswerRejected as error:
        # No outage makes such an answer, and a fork could hide behind it.
        say([Line(f"ALARM: {error.reason}: {error.detail}", "bold red")], error=True)
    except (Refused, ServerUnreachable, ServerUntrusted) as error:
        again = f"the next look is in {arguments.interval:g} s"
        say([Line(f"{COMMAND} watch: {error.detail}; {again}", "yellow")], error=True)
    return OK


def _unshown(error: "NotShown", times: int) -> Line:
    if times < _MOST_UNSHOWN:
        return Line(f"{COMMAND} watch: {error.detail}; {times} times in a row", "yellow")
    return Line(f"ALARM: {error.code}, {times} times in a row: {error.detail}", "bold red")


def _look(arguments: argparse.Namespace, ledger: "PublishedLedger", key: str) -> int:
    from kms.guest.published_ledger import NotAppendOnly

    # Read each time: whoever replaces the file while we wait means it.
    seen = read_checkpoint(arguments.state, key)[1] if arguments.state.exists() else None
    try:
        note, now = ledger.advance(seen, key)
    except NotAppendOnly as error:
        return _alarm(arguments, error)
    if now != seen:
        _keep(arguments.state, note)
    if arguments.json:
        print_json({"continues": True, "seen": checkpoint_json(seen), "checkpoint": checkpoint_json(now)})
    elif now != seen or arguments.once:
        say([_line(seen, now)])
        sys.stdout.flush()
    return OK


def _line(seen: "Checkpoint | None", now: "Checkpoint") -> Line:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    known = (
        "the first checkpoint that was seen: nothing is known of before"
        if seen is None
        else f"{now.size - seen.size} new, and the {seen.size} before them are as they were"
    )
    return Line(f"{at}  {now.size} entries, root {now.root.hex()}: {known}", "green")


def _alarm(arguments: argparse.Namespace, error: "NotAppendOnly") -> int:
    """Say it, and keep the proof: two checkpoints of one key that do not fit together."""
    conflict = arguments.state.with_name(f"{arguments.state.name}.conflict")
    keep = f"keep {arguments.state}"
    if error.note:
        _keep(conflict, error.note)
        keep += f", and {conflict}, which the server shows now: the ledger's key signed both"
    if arguments.json:
        report_refused(COMMAND, error, None, as_json=True)
    else:
        alarm = Line(f"ALARM: {error.reason}: {error.detail}", "bold red")
        say([alarm, Line(f"{keep}; then ask those who run the KMS")], error=True)
    return REFUSED


def _keep(path: Path, note: str) -> None:
    from kms import private_files

    try:
        private_files.replace(path, note.encode("utf-8"), mode=_MODE)
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error
