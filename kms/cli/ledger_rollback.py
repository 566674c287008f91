"""``kms ledger accept-rollback``: go on with an older database, knowing that entries are lost."""

import argparse
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kms.cli.office import command_line_actor
from kms.cli.output import OK, WrongUse, print_json
from kms.cli.parsers import Group
from kms.cli.saying import Line, printable, say

if TYPE_CHECKING:
    from kms.ledger_ports import SeenLedger
    from kms.strict_json import JsonValue

_MOST_MESSAGE: Final = 4096  # characters


def add_accept_rollback(group: Group) -> None:
    """Add ``kms ledger accept-rollback``."""
    command = group.add(
        "accept-rollback",
        summary="go on with a database that is older than what was seen",
        description="After an older copy of the database was restored, servers refuse: the anchor"
        " (KMS_LEDGER_ANCHOR) has seen more of the ledger. Where nothing newer can be had, this lets them go"
        " on from what the database holds, and records that, and why, as an entry. What was lost stays lost:"
        " receipts of it can never be proven, and everybody who keeps a newer checkpoint will see that the"
        " ledger was cut. Only where the anchor is; once for each anchor.",
        example="kms ledger accept-rollback --message 'disk of db-1 lost, restored the backup of 03:00'",
    )
    add = command.add_argument
    add("--message", metavar="TEXT", required=True, help="why; it is kept in the ledger")
    add(
        "--config",
        metavar="FILE",
        type=Path,
        help="path of kms.toml: work on its database (default: KMS_CONFIG, else none)",
    )
    command.set_defaults(run=_accept)


def _accept(arguments: argparse.Namespace) -> int:
    from kms.cli.reading import read_settings
    from kms.wiring import open_ledger

    message = printable(arguments.message).strip()[:_MOST_MESSAGE]
    if not message:
        raise WrongUse("--message says why the ledger may go back: it is kept for ever")

    async def work() -> "tuple[SeenLedger, SeenLedger]":
        async with open_ledger(read_settings(arguments.config)) as local:
            done = await local.acceptance.accept(command_line_actor(), message)
            return done.before, done.after

    before, after = asyncio.run(work())
    if arguments.json:
        print_json({"before": _json(before), "after": _json(after)})
    else:
        say(
            [
                Line(
                    f"accepted: there were {before.size} entries, and the ledger goes on from {after.size}",
                    "yellow",
                ),
                Line("next: start the servers, or wait some seconds; tell those who watch the ledger why"),
            ]
        )
    return OK


def _json(ledger: "SeenLedger") -> "JsonValue":
    return {"size": ledger.size, "root": ledger.root.hex(), "place": ledger.place}
