"""``kms policy explain`` and ``what-if``: why a guest was refused, and who would be."""

import argparse
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kms.cli.office import add_office_options, in_office
from kms.cli.output import OK, REFUSED, Unreadable, WrongUse, print_json, read_file
from kms.cli.parsers import Group, moment, span
from kms.cli.policy_history import whole_candidate
from kms.cli.policy_words import rehearsal_lines
from kms.cli.reading import read_candidate
from kms.cli.saying import Line, each_of, fields, optional_text, say, when
from kms.strict_json import Fields, JsonError, JsonValue

if TYPE_CHECKING:
    from kms.administration.office import Office
    from kms.operators import Actor

_RELEASE_ID: Final = re.compile(r"[0-9a-f]{32}")
_MAX_EVIDENCE: Final = 2 << 20  # bytes; a release request is at most 1 MiB
_SINCE: Final = timedelta(days=30)


def add_explain(group: Group) -> None:
    """Add ``kms policy explain``."""
    explain = group.add(
        "explain",
        summary="explain why a guest was released or refused",
        description="Explain a recorded decision by its release or request id, or what would be decided of"
        " evidence in a file: every check with what was seen, what was wanted, and the document and line that"
        " says so; those that failed first. A file holds evidence, or a whole release request. Exit status: 0"
        " allowed, 1 denied, 2 not found or unreadable.",
        example="kms policy explain 019f3c8e5a7b7d10a2c4e6f8091b2d3e",
    )
    explain.add_argument("what", metavar="RELEASE_ID|EVIDENCE.json", help="the id that the guest was given")
    explain.add_argument("--at", metavar="TIME", type=moment, help="judge a file as of this time (RFC 3339)")
    add_office_options(explain)
    explain.set_defaults(run=_explain)


def add_what_if(group: Group) -> None:
    """Add ``kms policy what-if``."""
    what_if = group.add(
        "what-if",
        summary="say which recorded guests a policy would newly refuse or allow",
        description="Judge every guest that was recorded lately by a policy that is not in force: which would"
        " newly be refused, which newly allowed, by app, image, chip and reason. Exit status: 0 nobody is"
        " newly refused, 1 somebody is.",
        example="kms policy what-if policies/ --since 30d",
    )
    what_if.add_argument("policy", metavar="DIR|REV", help="the policy")
    what_if.add_argument(
        "--since", metavar="TIME", type=span, default=_SINCE, help="guests seen that lately (default 30d)"
    )
    add_office_options(what_if)
    what_if.set_defaults(run=_what_if)


def _explain(arguments: argparse.Namespace) -> int:
    evidence, request = None, None
    # Not by `pathlib`: a text too long for a name would be an error of the system's.
    is_file = os.path.exists(arguments.what)  # noqa: PTH110
    is_id = _RELEASE_ID.fullmatch(arguments.what) is not None and not is_file
    if not is_id and not is_file:
        raise Unreadable(f"{arguments.what}: neither a request id (32 hex digits) nor a file")
    if is_id and arguments.at is not None:
        raise WrongUse("--at is for evidence in a file: what is recorded has its own time")
    if is_file:
        evidence, request = _read_evidence(Path(arguments.what))

    async def work(office: "Office", actor: "Actor") -> int:
        if is_id:
            answer = await office.records.explain(actor, arguments.what)
        else:
            answer = await office.records.verify(actor, evidence, request=request, at=arguments.at)
        if arguments.json:
            print_json(answer)
        else:
            say(_explanation(fields(answer, "explanation")))
        return OK if answer.get("decision") == "allow" else REFUSED

    return in_office(arguments, work)


def _read_evidence(path: Path) -> tuple[JsonValue, bytes | None]:
    """Read evidence, or the body of a release or verification: evidence and the request that it is over."""
    from kms.encoding import from_base64
    from kms.strict_json import parse_object

    try:
        body = parse_object(read_file(path, at_most=_MAX_EVIDENCE))
        if "evidence" not in body:
            return body, None
        request = body.get("request")
        return body["evidence"], from_base64(request) if isinstance(request, str) else None
    except (JsonError, ValueError) as error:
        raise Unreadable(f"{path}: {error}") from error


def _explanation(answer: Fields) -> Iterator[Line]:
    allowed, code = answer.text("decision") == "allow", optional_text(answer, "code")
    decided_at, revision = optional_text(answer, "decided_at"), optional_text(answer, "policy_revision")
    verdict = "allowed" if allowed else f"DENIED: {code or 'no code'}"
    yield Line(verdict, "green" if allowed else "bold red")
    if decided_at is not None:
        yield Line(f"  decided {when(decided_at)} by {revision or 'no policy'}", "dim")
    checks = [_Check(check) for check in each_of(answer, "checks")]
    for check in sorted(checks, key=lambda each: each.passed):
        yield from check.lines()
    if (nearest := optional_text(answer, "nearest")) is not None:
        yield Line(f"nearest  {nearest}", "yellow")


class _Check:
    """One check: what was seen, what was wanted, and where that is written."""

    def __init__(self, check: Fields) -> None:
        self.passed = check.take("passed") is True
        self._name, self._detail = check.text("name"), check.text("detail")
        self._reason, self._wanted = optional_text(check, "reason"), optional_text(check, "wanted")
        says = check.take("says")
        self._place = None if says is None else _place(fields(says, "says"))

    def lines(self) -> Iterator[Line]:
        """Say what was seen, what was wanted, and where that is written: of what passed in one line."""
        if self.passed:
            wanted = None if self._wanted is None else f"wanted {self._wanted}"
            more = "; ".join(each for each in (wanted, self._place) if each is not None)
            yield Line(f"pass  {self._name}: {self._detail}{f' ({more})' if more else ''}", "dim")
            return
        yield Line(f"FAIL  {self._reason or self._name}: {self._detail}", "red")
        if self._wanted is not None:
            yield Line(f"      wanted  {self._wanted}")
        if self._place is not None:
            yield Line(f"      says    {self._place}")


def _place(says: Fields) -> str:
    document, member, file = says.text("document"), optional_text(says, "member"), optional_text(says, "file")
    named = document if member is None else f"{document}.{member}"
    line, column = says.take("line"), says.take("column")
    if file is None or not isinstance(line, int):
        return named
    at = f"{file}:{line}:{column}" if isinstance(column, int) else f"{file}:{line}"
    return f"{at} {named}"


def _what_if(arguments: argparse.Namespace) -> int:
    new = read_candidate(arguments.policy)

    async def work(office: "Office", actor: "Actor") -> int:
        candidate = await whole_candidate(office, actor, new)
        answer = await office.policies.what_if(actor, candidate, since=arguments.since)
        if arguments.json:
            print_json(answer)
        else:
            say(rehearsal_lines(fields(answer, "what-if")))
        return REFUSED if answer.get("newly_refused") else OK

    return in_office(arguments, work)
