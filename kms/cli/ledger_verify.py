"""``kms ledger verify``: that the ledger is what was written, where it is kept, served or exported."""

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kms.cli.ledger_asking import (
    COMMAND,
    add_deadline,
    add_key_options,
    asking,
    given_key,
    public_ledger,
    read_checkpoint,
    verifier_key,
)
from kms.cli.ledger_leaves import read_leaves
from kms.cli.ledger_words import report_json, report_lines
from kms.cli.office import add_office_options, in_office
from kms.cli.output import OK, REFUSED, Unreadable, WrongUse, print_json
from kms.cli.parsers import Group
from kms.cli.progress import tell_progress
from kms.cli.saying import fields, say
from kms.errors import ConfigurationError, NotFound
from kms.guest.errors import Refused
from kms.guest.published_ledger import PublishedLedger
from kms.ledger.findings import Finding, Report
from kms.ledger.tiles import TileName, width_at
from kms.ledger_ports import Leaf, LedgerHead, Recorded

if TYPE_CHECKING:
    from kms.administration.office import Office
    from kms.operators import Actor

_TOLD_EVERY: Final = 1000  # entries of an export


def add_verify(group: Group) -> None:
    """Add ``kms ledger verify``."""
    command = group.add(
        "verify",
        summary="verify the ledger from its first entry to its last",
        description="Verify the ledger, and name what is wrong with it. On this machine's database: every"
        " entry and its MAC, the rows that it is looked up by, tiles, the checkpoints that are kept (of very"
        " many some thousands), the anchor. With --server as an auditor does: every entry by pages, and the"
        " public tiles. With --export a file, without any server. --checkpoint is one from before, which must"
        " be the beginning of what there is now. Exit status: 0 sound, 1 something is wrong, 2 it cannot be"
        " read.",
        example="kms ledger verify --server https://kms:8443 --ca ca.pem --token-file auditor.token"
        " --key @ledger.key --checkpoint yesterday.checkpoint",
    )
    add = command.add_argument
    add(
        "--checkpoint",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="a checkpoint from before, as `kms ledger watch` keeps it; repeat for more",
    )
    add("--export", metavar="FILE", type=Path, help="verify what `kms ledger export` wrote; needs --key")
    add_office_options(command)
    add_deadline(command)
    add_key_options(command)
    command.set_defaults(run=asking(_verify))


def _verify(arguments: argparse.Namespace) -> int:
    if arguments.export is not None:
        report = _exported(arguments)
    elif arguments.server is not None:
        with public_ledger(arguments) as ledger:
            return in_office(arguments, lambda office, actor: _served(arguments, ledger, office, actor))
    else:
        report = asyncio.run(_local(arguments))
    return _told(report, as_json=arguments.json)


def _told(report: Report, *, as_json: bool) -> int:
    if as_json:
        print_json(report_json(report))
    else:
        say(report_lines(report))
    return OK if report.sound and report.checkpoint is not None else REFUSED


def _older(arguments: argparse.Namespace, key: str) -> list[str]:
    return [read_checkpoint(each, key)[0] for each in arguments.checkpoint]


async def _local(arguments: argparse.Namespace) -> Report:
    from kms.administration.auditing import audit, kept_checkpoints
    from kms.cli.reading import read_settings
    from kms.ledger.checkpoint import Checkpoint
    from kms.ledger.merkle import EMPTY_ROOT
    from kms.wiring import open_ledger

    if arguments.token_file is not None or arguments.ca is not None or arguments.identity is not None:
        raise WrongUse("--token-file, --ca and --identity go with --server")
    async with open_ledger(read_settings(arguments.config)) as local:
        key = local.key.verifier_key
        if given_key(arguments) not in {None, key}:
            raise ConfigurationError("the ledger of this machine's root key has another key than --key")

        def signed(size: int, root: bytes) -> str:
            return local.key.sign(Checkpoint(origin=local.key.origin, size=size, root=root))

        # The anchor first: it only goes forward, and never says more than the database had.
        seen = await local.anchor.read_ledger()
        head = await local.reader.head() or LedgerHead(
            size=0, place=0, note=signed(0, EMPTY_ROOT), made_at=datetime.now(UTC)
        )
        kept = await kept_checkpoints(local.reader, head.size)
        older = _older(arguments, key) + kept.notes
        if seen is not None:
            older.append(signed(seen.size, seen.root))
        report = await audit(
            local.reader,
            head,
            key,
            older=older,
            verifies=local.seal.verifies,
            progress=tell_progress(f"{COMMAND} verify"),
        )
    return replace(report, checkpoints_left_out=kept.left_out)


async def _served(
    arguments: argparse.Namespace, ledger: PublishedLedger, office: "Office", actor: "Actor"
) -> int:
    from kms.administration.auditing import audit

    key = verifier_key(arguments, ledger)
    older = _older(arguments, key)
    note, checkpoint = ledger.advance(None, key)
    size, place = checkpoint.size, checkpoint.size
    # Where something was recorded that is no leaf, the last place is beyond the size. (What is missing is
    # named below.)
    with suppress(NotFound):
        place = fields(await office.ledger.entry(actor, max(size - 1, 0)), "entry").integer("place")
    head = LedgerHead(size=size, place=place, note=note, made_at=datetime.now(UTC))
    report = await audit(
        _Served(ledger, office, actor, size),
        head,
        key,
        older=older,
        progress=tell_progress(f"{COMMAND} verify"),
    )
    return _told(report, as_json=arguments.json)


class _Served:
    """A server's ledger: its entries as an auditor gets them, and the tiles that anybody gets."""

    def __init__(self, ledger: PublishedLedger, office: "Office", actor: "Actor", size: int) -> None:
        self._ledger = ledger
        self._office = office
        self._actor = actor
        self._size = size

    async def tile(self, level: int, number: int) -> bytes | None:
        """Give a tile as wide as it was at the checkpoint."""
        try:
            return self._ledger.tile(TileName(level, number, width_at(self._size, level, number)))
        except Refused:
            return None

    async def leaves(self, start: int, *, limit: int) -> tuple[Leaf, ...]:
        """Give entries as leaves; their MACs stay on the server."""
        limit = min(limit, self._size - start)
        return await read_leaves(self._office, self._actor, start, limit=limit) if limit > 0 else ()

    async def unsequenced(self) -> AsyncIterator[Recorded]:
        """Give nothing: what is in no checkpoint is the server's business."""
        nothing: tuple[Recorded, ...] = ()
        for each in nothing:
            yield each

    async def strays(self) -> AsyncIterator[Finding]:
        """Give nothing, as above."""
        nothing: tuple[Finding, ...] = ()
        for each in nothing:
            yield each


def _exported(arguments: argparse.Namespace) -> Report:
    """Verify an export, line by line."""
    from kms.ledger.export import MAX_LINE, read_export
    from kms.ledger.verifying import LedgerVerification

    key = given_key(arguments)
    if key is None or arguments.server is not None:
        raise WrongUse("--export asks nobody: it needs --key, and no --server")
    older, tell = _older(arguments, key), tell_progress(f"{COMMAND} verify")
    try:
        with arguments.export.open("rb") as file:
            export = read_export(iter(lambda: file.readline(MAX_LINE + 1), b""))
            verification = LedgerVerification(export.header.checkpoint, key, older=older)
            for leaf in export.leaves:
                verification.read_leaf(leaf.index, leaf.place, leaf.entry)
                if leaf.index % _TOLD_EVERY == 0:
                    tell(leaf.index, export.header.size)
    except OSError as error:
        raise Unreadable(f"{arguments.export}: {error.strerror}") from error
    return verification.report()
