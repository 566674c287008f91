"""``kms operator``: who may operate the KMS, and what they did."""

import argparse
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Final

from kms.cli.office import add_office_options, in_office
from kms.cli.output import OK, print_json
from kms.cli.parsers import Group, Parser, count, run_group, span
from kms.cli.saying import Line, fields, optional_text, say, when
from kms.operators import Role
from kms.strict_json import Fields, JsonValue

if TYPE_CHECKING:
    from kms.administration.office import Json, Office
    from kms.operators import Actor

_PAGE: Final = 500  # items in one answer, at most
_EVERYONE: Final = 100_000
_STYLES: Final = {"active": "", "not-authentic": "red"}


def main(argv: list[str]) -> int:
    """Run ``kms operator`` and give the exit status."""
    return run_group(parser(), argv)


def parser() -> Parser:
    """Give the parser of this group of commands."""
    group = Group("kms operator", "Say who may operate the KMS, and see what they did.")
    _add_add(group)
    _add_list(group)
    _add_revoke(group)
    _add_log(group)
    return group.parser


def _add_add(group: Group) -> None:
    command = group.add(
        "add",
        summary="add an operator, with a token that is shown once, or a client certificate",
        description="Add an operator. The token is printed once, alone on standard output, and is kept"
        " nowhere. A name can be given again when it gives access no more.",
        example="(umask 077; kms operator add alice --role operator --life 30d > alice.token)",
    )
    add = command.add_argument
    add("name", metavar="NAME", help="1 to 128 letters, digits and characters of ._@-")
    add("--role", choices=[role.value for role in Role], required=True, help="what the operator may do")
    add("--life", metavar="TIME", type=span, help="how long: 90d (default for tokens), at most 366d")
    add(
        "--certificate-subject",
        metavar="S",
        help="instead of a token: subject of a client certificate of KMS_OPERATOR_CA, as"
        " CN=alice,O=Example (openssl x509 -noout -subject -nameopt RFC2253)",
    )
    add_office_options(command)
    command.set_defaults(run=_add)


def _add_list(group: Group) -> None:
    command = group.add(
        "list", summary="list operators, also those whose access has ended", example="kms operator list"
    )
    add_office_options(command)
    command.set_defaults(run=_list)


def _add_revoke(group: Group) -> None:
    command = group.add(
        "revoke", summary="end an operator's access at once, for ever", example="kms operator revoke alice"
    )
    command.add_argument("name", metavar="NAME", help="the operator")
    add_office_options(command)
    command.set_defaults(run=_revoke)


def _add_log(group: Group) -> None:
    command = group.add(
        "log", summary="show what operators did, newest first", example="kms operator log --limit 100"
    )
    command.add_argument("--limit", metavar="N", type=count, default=50, help="so many (default 50)")
    add_office_options(command)
    command.set_defaults(run=_log)


def _add(arguments: argparse.Namespace) -> int:
    async def work(office: "Office", actor: "Actor") -> int:
        role = Role(arguments.role)
        answer = await office.operators.add(
            actor, arguments.name, role, life=arguments.life, subject=arguments.certificate_subject
        )
        if arguments.json:
            print_json(answer)
            return OK
        told = fields(answer, "answer")
        operator = fields(told.take("operator"), "operator")
        say([_operator(operator)], error=True)
        token = optional_text(told, "token")
        if token is not None:
            say(
                [Line("The token is shown only now: keep it where only this operator can read it.")],
                error=True,
            )
            sys.stdout.write(f"{token}\n")
        return OK

    return in_office(arguments, work)


def _list(arguments: argparse.Namespace) -> int:
    async def work(office: "Office", actor: "Actor") -> int:
        async def page(after: str | None, limit: int) -> "Json":
            return await office.operators.operators(actor, after=after, limit=limit)

        found = await _collect(page, "operators", _EVERYONE)
        if arguments.json:
            print_json({"operators": found})
        elif found:
            say([_operator(fields(each, "operator")) for each in found])
        else:
            say([Line("there are no operators yet: kms operator add NAME --role admin")])
        return OK

    return in_office(arguments, work)


def _revoke(arguments: argparse.Namespace) -> int:
    async def work(office: "Office", actor: "Actor") -> int:
        answer = await office.operators.revoke(actor, arguments.name)
        if arguments.json:
            print_json(answer)
        else:
            say([_operator(fields(fields(answer, "answer").take("operator"), "operator"))])
        return OK

    return in_office(arguments, work)


def _log(arguments: argparse.Namespace) -> int:
    async def work(office: "Office", actor: "Actor") -> int:
        async def page(before: str | None, limit: int) -> "Json":
            return await office.operators.actions(actor, before=before, limit=limit)

        found = await _collect(page, "actions", arguments.limit)
        if arguments.json:
            print_json({"actions": found})
        else:
            say([line for each in found for line in _action(fields(each, "action"))])
        return OK

    return in_office(arguments, work)


async def _collect(
    page: "Callable[[str | None, int], Awaitable[Json]]", name: str, most: int
) -> list[JsonValue]:
    found: list[JsonValue] = []
    cursor: str | None = None
    while len(found) < most:
        answer = fields(await page(cursor, min(_PAGE, most - len(found))), name)
        found += answer.array(name, at_most=_PAGE)
        cursor = optional_text(answer, "next")
        if cursor is None:
            break
    return found


def _operator(operator: Fields) -> Line:
    name, standing = operator.text("name"), operator.text("standing")
    if standing == "not-authentic":
        return Line(f"{name}: not authentic: written by hand, and gives nobody access", _STYLES[standing])
    subject, token_id = optional_text(operator, "subject"), optional_text(operator, "token_id")
    proof = f"token {token_id}" if subject is None else f"certificate {subject}"
    expires, used = optional_text(operator, "expires_at"), optional_text(operator, "last_used_at")
    until = "without expiry" if expires is None else f"until {when(expires)}"
    last = "never used" if used is None else f"last used {when(used)}"
    text = f"{name}: {operator.text('role')}, {standing}, {proof}, {until}, {last}"
    return Line(text, _STYLES.get(standing, "dim"))


def _action(action: Fields) -> Iterator[Line]:
    if action.text("kind") != "action":
        yield Line(f"an entry that cannot be read any more: {action.text('action_id')}", "red")
        return
    proof, client = action.text("proof"), optional_text(action, "client")
    who = f"{action.text('operator')} ({action.text('role')}, {proof}{f', {client}' if client else ''})"
    target, outcome = optional_text(action, "target"), action.text("outcome")
    what = action.text("action") + (f" {target}" if target else "")
    yield Line(f"{when(action.text('at'))}  {who}: {what}: {outcome}", "" if outcome == "done" else "yellow")
