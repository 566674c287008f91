"""``kms ledger export``: the ledger as a file, to be verified where there is no server."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from kms.cli.ledger_asking import COMMAND
from kms.cli.ledger_leaves import read_leaves
from kms.cli.office import add_office_options, in_office
from kms.cli.output import OK, Unreadable, print_json
from kms.cli.parsers import Group
from kms.cli.progress import tell_progress
from kms.cli.saying import AnswerUnreadable, Line, fields, say
from kms.errors import LedgerUnavailable

if TYPE_CHECKING:
    from kms.administration.office import Office
    from kms.ledger.export import ExportHeader
    from kms.operators import Actor


def add_export(group: Group) -> None:
    """Add ``kms ledger export``."""
    command = group.add(
        "export",
        summary="write the whole ledger into one file",
        description="Write every entry up to the newest checkpoint, and the checkpoint, into a new file of"
        " JSON lines, mode 0600: entries name guests and operators. `kms ledger verify --export` verifies it"
        " anywhere; nothing is verified here. Exit status: 0 written, 2 not.",
        example="kms ledger export ledger.jsonl",
    )
    command.add_argument("file", metavar="FILE", type=Path, help="a new file")
    add_office_options(command)
    command.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    path: Path = arguments.file

    async def work(office: "Office", actor: "Actor") -> int:
        header = await _header(office, actor)
        with _new_file(path) as file:
            await _write(file, office, actor, header)
        if arguments.json:
            print_json({"file": str(path), "size": header.size, "origin": header.origin, "key": header.key})
        else:
            say([Line(f"{path}: {header.size} entries"), Line(f"the ledger's key: {header.key}")])
        return OK

    return in_office(arguments, work)


@contextmanager
def _new_file(path: Path) -> Iterator[IO[str]]:
    """Make a file, mode 0600, that is on disk afterwards, or gone if the work fails."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Unreadable(f"{path} exists, and is never overwritten") from None
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise Unreadable(f"{path}: {error.strerror}") from error
        raise


async def _header(office: "Office", actor: "Actor") -> "ExportHeader":
    from kms.ledger.checkpoint import CheckpointInvalid, open_checkpoint
    from kms.ledger.export import ExportHeader

    told = fields(await office.ledger.statement(actor), "ledger")
    origin, key = told.text("origin"), told.text("key")
    note = await office.ledger.checkpoint(actor)
    try:
        size = open_checkpoint(note, key).size
    except CheckpointInvalid as error:
        raise AnswerUnreadable(f"the checkpoint is none: {error.detail}") from None
    return ExportHeader(origin=origin, key=key, checkpoint=note, size=size)


async def _write(file: IO[str], office: "Office", actor: "Actor", header: "ExportHeader") -> None:
    from kms.ledger.export import ExportedLeaf

    file.write(header.line())
    tell, at = tell_progress(f"{COMMAND} export"), 0
    while at < header.size:
        leaves = await read_leaves(office, actor, at, limit=header.size - at)
        for leaf in leaves:
            if leaf.index != at or leaf.entry is None:
                break
            file.write(ExportedLeaf(index=at, place=leaf.place, entry=leaf.entry).line())
            at += 1
        else:
            tell(at, header.size)
            if leaves:
                continue
        raise LedgerUnavailable(f"entry {at} is not in the record: `kms ledger verify` says more")
