"""``kms policy status``: what is in force, who must sign, and what waits."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kms.cli.office import add_office_options, in_office
from kms.cli.output import OK, REFUSED, print_json
from kms.cli.parsers import Group
from kms.cli.policy_words import change_lines
from kms.cli.saying import Line, fields, optional_text, say, texts
from kms.strict_json import Fields

if TYPE_CHECKING:
    from kms.administration.office import Office
    from kms.operators import Actor


def add_status(group: Group) -> None:
    """Add ``kms policy status``."""
    status = group.add(
        "status",
        summary="say what is in force, who must sign, and what waits",
        description="Say what is in force and since which change, how many documents of each kind it has, who"
        " must sign a change, and how many proposals wait. Exit status: 0, or 1 if what the database names"
        " may not be used.",
        example="kms policy status",
    )
    add_office_options(status)
    status.set_defaults(run=_status)


def _status(arguments: argparse.Namespace) -> int:
    async def work(office: "Office", actor: "Actor") -> int:
        status = await office.policies.status(actor)
        if arguments.json:
            print_json(status)
        else:
            say(_lines(fields(status, "status")))
        return OK if status.get("trusted") is True else REFUSED

    return in_office(arguments, work)


def _lines(status: Fields) -> Iterator[Line]:
    active = status.take("active")
    if status.take("trusted") is not True:
        why = optional_text(status, "untrusted") if status.has("untrusted") else None
        yield Line("NOT TRUSTED: what the database says is in force may not be used", "bold red")
        yield Line(f"  {why or 'the server does not say why'}", "red")
        yield Line("  next: find out who wrote that, then kms policy apply DIR")
    elif active is None:
        yield Line("no policy is in force: nobody gets a key", "yellow")
    if active is not None:
        yield Line("in force:", "green")
        yield from change_lines(fields(active, "active"))
        kinds = [f"{number} {kind}" for kind, number in status.members("documents").items()]
        yield Line(f"documents: {', '.join(kinds)}")
    trust = status.take("trust")
    if trust is None:
        yield Line("signatures: none are asked for (no trust file)")
    else:
        asked = fields(trust, "trust")
        widen, narrow = asked.integer("widen"), asked.integer("narrow")
        yield Line(f"signatures: {widen} to widen, {narrow} to narrow, of {', '.join(texts(asked, 'keys'))}")
    if waiting := status.integer("proposals"):
        yield Line(f"waiting: {waiting} proposal(s), see kms policy proposals", "yellow")
    else:
        yield Line("waiting: nothing")
