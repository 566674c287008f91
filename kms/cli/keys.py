"""``kms keys``: epochs of the root, and the KMS identity; backup, and roots of other KMSs, beside them."""

import argparse
import re
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Final

from kms.cli import keys_backup, keys_dstack
from kms.cli.keys_words import (
    epoch_lines,
    keys_lines,
    new_generation_lines,
    retired_lines,
    rotation_lines,
)
from kms.cli.office import add_office_options, in_office
from kms.cli.output import OK, print_json
from kms.cli.parsers import Group, Parser, count, moment, run_group, span
from kms.cli.saying import Line, fields, say
from kms.identifiers import AppId
from kms.keys.epochs import LATELY
from kms.strict_json import Fields

if TYPE_CHECKING:
    from kms.administration.office import Json, KeyWork, Office
    from kms.operators import Actor

# Of this millennium, as the routes take it.
_RFC_3339: Final = re.compile(r"2\d{3}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)", re.ASCII)


def main(argv: list[str]) -> int:
    """Run ``kms keys`` and give the exit status."""
    return run_group(parser(), argv)


def parser() -> Parser:
    """Give the parser of this group of commands."""
    group = Group("kms keys", "Age keys by epochs, back their root up, and see who took which.")
    _add_list(group)
    _add_rotate(group)
    _add_schedule(group)
    _add_retire(group)
    _add_rotation(group)
    keys_backup.add_commands(group)
    keys_dstack.add_commands(group)
    return group.parser


def _add_list(group: Group) -> None:
    command = group.add(
        "list", summary="list the epochs, and the generations of the identity", example="kms keys list"
    )
    add_office_options(command)
    command.set_defaults(run=_list)


def _add_rotate(group: Group) -> None:
    command = group.add(
        "rotate",
        summary="make the next epoch, current at once",
        description="Make the next epoch, current at once; one that was scheduled becomes current now. Guests"
        " that ask for no epoch get keys of it from then on, and those of every epoch that is not retired if"
        " they ask. The identity is not touched by this, for guests have it in their images: --identity makes"
        " its next generation, and no epoch.",
        example="kms keys rotate",
    )
    command.add_argument(
        "--identity", action="store_true", help="make the next generation of the KMS identity instead"
    )
    add_office_options(command)
    command.set_defaults(run=_rotate, at=None)


def _add_schedule(group: Group) -> None:
    command = group.add(
        "schedule",
        summary="make the next epoch, current from a time on",
        description="Make the next epoch, current from a time on; one that was scheduled gets this time.",
        example="kms keys schedule --at 2026-12-01T00:00:00Z",
    )
    command.add_argument(
        "--at", metavar="TIME", type=_zoned, required=True, help="from when on: RFC 3339, with its zone"
    )
    add_office_options(command)
    command.set_defaults(run=_rotate, identity=False)


def _add_retire(group: Group) -> None:
    command = group.add(
        "retire",
        summary="give keys of an epoch to nobody any more",
        description="Give keys of an epoch to nobody any more, for ever. Refused, with a list, while guests"
        " that were seen lately did not move on to a newer epoch: they could not open what they encrypted."
        " Exit status: 0 retired, 1 refused.",
        example="kms keys retire 1 --seen-within 90d",
    )
    command.add_argument("epoch", metavar="EPOCH", type=count, help="its number")
    command.add_argument(
        "--seen-within",
        metavar="TIME",
        type=span,
        default=LATELY,
        help="guests not seen for longer do not count (default 30d)",
    )
    command.add_argument("--force", action="store_true", help="though guests are left behind")
    add_office_options(command)
    command.set_defaults(run=_retire)


def _add_rotation(group: Group) -> None:
    command = group.add(
        "rotation",
        summary="say which guests took which epoch, and who lacks the current one",
        example="kms keys rotation --since 7d",
    )
    command.add_argument("--app", metavar="ID", type=_app, help="of this app only, by its id (hex)")
    command.add_argument(
        "--since", metavar="TIME", type=span, default=LATELY, help="guests seen that lately (default 30d)"
    )
    add_office_options(command)
    command.set_defaults(run=_rotation)


def _list(arguments: argparse.Namespace) -> int:
    return _do(arguments, lambda keys, actor: keys.keys(actor), keys_lines)


def _rotate(arguments: argparse.Namespace) -> int:
    if arguments.identity:
        return _do(arguments, lambda keys, actor: keys.rotate_identity(actor), new_generation_lines)
    return _do(arguments, lambda keys, actor: keys.rotate(actor, at=arguments.at), epoch_lines)


def _retire(arguments: argparse.Namespace) -> int:
    def retire(keys: "KeyWork", actor: "Actor") -> "Awaitable[Json]":
        return keys.retire(actor, arguments.epoch, seen_within=arguments.seen_within, force=arguments.force)

    return _do(arguments, retire, retired_lines)


def _rotation(arguments: argparse.Namespace) -> int:
    async def work(office: "Office", actor: "Actor") -> int:
        answer = await office.keys.rotation(actor, app=arguments.app, since=arguments.since)
        if arguments.json:
            print_json(answer)
        else:
            keys = await office.keys.keys(actor)
            say(rotation_lines(fields(answer, "rotation"), fields(keys, "keys")))
        return OK

    return in_office(arguments, work)


def _do(
    arguments: argparse.Namespace,
    ask: "Callable[[KeyWork, Actor], Awaitable[Json]]",
    lines: Callable[[Fields], Iterable[Line]],
) -> int:
    async def work(office: "Office", actor: "Actor") -> int:
        answer = await ask(office.keys, actor)
        if arguments.json:
            print_json(answer)
        else:
            say(lines(fields(answer, "answer")))
        return OK

    return in_office(arguments, work)


def _zoned(text: str) -> datetime:
    # Without a zone, an operator may mean another one than this program: the epoch would change hours early.
    if not _RFC_3339.fullmatch(text):
        raise argparse.ArgumentTypeError("takes a time with its zone, as 2026-12-01T00:00:00Z")
    return moment(text)


def _app(text: str) -> str:
    try:
        return AppId.from_hex(text).hex()
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
