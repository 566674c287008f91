"""``kms ledger``: what was decided and done, and the proof that nothing of it was changed or removed."""

import argparse
import json
from typing import TYPE_CHECKING, Final

from kms.cli.ledger_asking import add_key_options, add_public_options, asking, public_ledger, verifier_key
from kms.cli.ledger_export import add_export
from kms.cli.ledger_prove import add_prove
from kms.cli.ledger_rollback import add_accept_rollback
from kms.cli.ledger_verify import add_verify
from kms.cli.ledger_watch import add_watch
from kms.cli.ledger_words import entry_line, index_of
from kms.cli.office import add_office_options, in_office
from kms.cli.output import OK, WrongUse, print_json
from kms.cli.parsers import Group, Parser, count, run_group
from kms.cli.saying import Line, fields, say
from kms.encoding import from_base64
from kms.strict_json import JsonError, JsonValue, parse

if TYPE_CHECKING:
    from kms.administration.office import Office
    from kms.operators import Actor

_PAGE: Final = 200  # entries in one answer, some ten kilobytes each


def main(argv: list[str]) -> int:
    """Run ``kms ledger`` and give the exit status."""
    return run_group(parser(), argv)


def parser() -> Parser:
    """Give the parser of this group of commands."""
    group = Group(
        "kms ledger",
        "What was decided and done, and the proof that nothing of it was changed or removed since.",
    )
    _add_list(group)
    _add_show(group)
    add_verify(group)
    add_export(group)
    add_prove(group)
    add_watch(group)
    _add_key(group)
    add_accept_rollback(group)
    return group.parser


def _add_list(group: Group) -> None:
    command = group.add(
        "list",
        summary="list entries, newest first",
        description="List entries of the ledger, newest first, or from an index on. What was recorded within"
        " the last second is not in a checkpoint yet, and so is not listed.",
        example="kms ledger list --limit 20 --kind action",
    )
    add = command.add_argument
    add("--limit", metavar="N", type=count, default=50, help="so many (default 50)")
    add("--from", metavar="INDEX", type=index_of, dest="start", help="from this index on, in order")
    add("--kind", choices=["decision", "action"], help="only entries of this kind")
    add_office_options(command)
    command.set_defaults(run=_list)


def _add_show(group: Group) -> None:
    command = group.add(
        "show",
        summary="show one entry whole",
        example="kms ledger show 019abfc2a1e77c3e8d5f00112233aabb",
    )
    command.add_argument(
        "entry", metavar="ID|INDEX", help="a release id, an action's id, or the entry's index"
    )
    add_office_options(command)
    command.set_defaults(run=_show)


def _add_key(group: Group) -> None:
    command = group.add(
        "key",
        summary="show the key that checkpoints are verified with",
        description="Show the ledger's verifier key (https://c2sp.org/signed-note): on this machine from the"
        " root key, from a server with the signature of the KMS identity over it, which is checked against"
        " --identity. Auditors keep it.",
        example="kms ledger key --server https://kms:8443 --ca ca.pem --identity @kms.id",
    )
    add_public_options(command)
    add_key_options(command, key=False)
    command.set_defaults(run=asking(_key))


def _list(arguments: argparse.Namespace) -> int:
    async def work(office: "Office", actor: "Actor") -> int:
        if arguments.start is None:
            found = await _newest(office, actor, arguments.limit, arguments.kind)
        else:
            found = await _from(office, actor, arguments.start, arguments.limit, arguments.kind)
        if arguments.json:
            print_json({"entries": found})
        else:
            say([entry_line(fields(each, "entry")) for each in found])
        return OK

    return in_office(arguments, work)


async def _newest(office: "Office", actor: "Actor", limit: int, kind: str | None) -> list[JsonValue]:
    """Give the newest entries of a kind, newest first."""
    told = fields(await office.ledger.statement(actor), "ledger")
    end, found = told.integer("size"), list[JsonValue]()
    while end > 0 and len(found) < limit:
        start = max(0, end - min(_PAGE, limit))
        answer = await office.ledger.entries(actor, start=start, limit=end - start, kind=kind)
        found += reversed(fields(answer, "entries").array("entries", at_most=_PAGE))
        end = start
    return found[:limit]


async def _from(
    office: "Office", actor: "Actor", start: int, limit: int, kind: str | None
) -> list[JsonValue]:
    """Give entries of a kind from an index on."""
    found: list[JsonValue] = []
    at: int | None = start
    while at is not None and len(found) < limit:
        answer = fields(
            await office.ledger.entries(actor, start=at, limit=min(_PAGE, limit), kind=kind), "entries"
        )
        found += answer.array("entries", at_most=_PAGE)
        at = answer.nullable("next", answer.integer)
    return found[:limit]


def _show(arguments: argparse.Namespace) -> int:
    which: int | str = arguments.entry
    if len(arguments.entry) < 16:
        try:
            which = index_of(arguments.entry)
        except argparse.ArgumentTypeError as error:
            raise WrongUse(f"ID|INDEX: an index {error}") from None

    async def work(office: "Office", actor: "Actor") -> int:
        answer = await office.ledger.entry(actor, which)
        content = _content(answer.get("entry"))
        if arguments.json:
            print_json({**answer, "content": content})
            return OK
        say([entry_line(fields(answer, "entry"))])
        lines = json.dumps(content, indent=2).splitlines()
        say([Line(each) for each in lines])
        return OK

    return in_office(arguments, work)


def _content(entry: JsonValue) -> JsonValue:
    """Read the entry's bytes; None where they are not there, or no JSON."""
    try:
        return parse(from_base64(entry)) if isinstance(entry, str) else None
    except (ValueError, JsonError):
        return None


def _key(arguments: argparse.Namespace) -> int:
    if arguments.server is not None:
        with public_ledger(arguments) as ledger:
            key = verifier_key(arguments, ledger)
        _print_key(key, as_json=arguments.json)
        return OK

    async def work(office: "Office", actor: "Actor") -> int:
        _print_key(fields(await office.ledger.statement(actor), "ledger").text("key"), as_json=arguments.json)
        return OK

    return in_office(arguments, work)


def _print_key(key: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"key": key})
    else:
        say([Line(key)])
