"""``kms policy lint``, ``schema``, ``diff``, ``history``, ``show``: nothing here changes anything."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kms.cli.office import add_office_options, in_office
from kms.cli.output import OK, REFUSED, WrongUse, print_json
from kms.cli.parsers import Group, count
from kms.cli.policy_fetching import Fetched, fetch_revision
from kms.cli.policy_history import fetch_changes, revision_in_force, whole_candidate, whole_name
from kms.cli.policy_words import change_lines, diff_lines
from kms.cli.reading import read_candidate, revision_name
from kms.cli.saying import Line, fields, printable, say

if TYPE_CHECKING:
    from kms.administration.office import Office
    from kms.operators import Actor


def add_lint(group: Group) -> None:
    """Add ``kms policy lint``."""
    lint = group.add(
        "lint",
        summary="find everything that is wrong with a policy folder",
        description="Find everything that is wrong with a policy folder: file, line, column, and what was"
        " probably meant. Exit status: 0 no errors (warnings do not count), 1 errors, 2 unreadable.",
        example="kms policy lint policies/",
    )
    lint.add_argument("folder", metavar="DIR", type=Path, help="the policy folder")
    lint.add_argument("--development", action="store_true", help="as a server in development mode would")
    lint.set_defaults(run=_lint)


def add_schema(group: Group) -> None:
    """Add ``kms policy schema``."""
    schema = group.add(
        "schema",
        summary="print the JSON Schema of policy documents, for editors",
        description="Print the JSON Schema of policy documents: editors complete and check with it while"
        " a policy is written. What refers to other documents only `kms policy lint` can check.",
        example="kms policy schema > policy.schema.json",
    )
    schema.set_defaults(run=_schema)


def add_diff(group: Group) -> None:
    """Add ``kms policy diff``."""
    diff = group.add(
        "diff",
        summary="say what a policy would change",
        description="Say what a policy folder would change of what is in force, or how two revisions differ:"
        " what widens (+) what guests may have, what narrows (-), and what does neither (.).",
        example="kms policy diff policies/",
    )
    diff.add_argument("what", metavar="DIR|REV", help="the policy; of two, the older one (a revision)")
    diff.add_argument("newer", metavar="DIR|REV", nargs="?", help="the newer one")
    diff.add_argument(
        "--from", dest="old", metavar="REV", type=revision_name, help="instead of what is in force"
    )
    add_office_options(diff)
    diff.set_defaults(run=_diff)


def add_history(group: Group) -> None:
    """Add ``kms policy history``."""
    history = group.add(
        "history",
        summary="list what was in force, newest first",
        description="List every change of the policy in force, newest first: which revision, when, by whom,"
        " why, and who signed.",
        example="kms policy history --limit 5",
    )
    history.add_argument("--limit", metavar="N", type=count, default=20, help="so many (default 20)")
    add_office_options(history)
    history.set_defaults(run=_history)


def add_show(group: Group) -> None:
    """Add ``kms policy show``."""
    show = group.add(
        "show",
        summary="show a revision as it was written",
        description="Show a revision, or what is in force, as it was written, or write its files into a new"
        " folder. Files that are not what the revision's digest names are not shown; its documents are then.",
        example="kms policy show sha256:38d1… --files restored/",
    )
    show.add_argument(
        "revision", metavar="REV", type=revision_name, nargs="?", help="the revision (default: in force)"
    )
    show.add_argument("--files", metavar="DIR", type=Path, help="write the files into this new folder")
    add_office_options(show)
    show.set_defaults(run=_show)


def _lint(arguments: argparse.Namespace) -> int:
    from collections import Counter
    from datetime import UTC, datetime

    from kms.background import collector_at_rest
    from kms.packaged import load_advisories
    from kms.policy.findings import Severity
    from kms.policy.lint import lint
    from kms.policy.revision import Revision
    from kms.policy_folder.reading import read_folder

    files = read_folder(arguments.folder)
    with collector_at_rest():
        result = lint(
            files,
            development=arguments.development,
            now=datetime.now(UTC),
            advisories=load_advisories(),
        )
        found = Counter(finding.severity for finding in result.findings)
        digest = None if found[Severity.ERROR] else Revision.from_lint(result).digest
    if arguments.json:
        from kms.administration.policy_shapes import findings_json

        print_json(
            {
                "valid": digest is not None,
                "revision": digest,
                "documents": len(result.sources),
                "errors": found[Severity.ERROR],
                "warnings": found[Severity.WARNING],
                "findings": findings_json(result.findings),
            }
        )
    else:
        for finding in result.findings:
            print(printable(str(finding)))
        print(
            f"{len(result.sources)} document(s) in {len(files)} file(s):"
            f" {found[Severity.ERROR]} error(s), {found[Severity.WARNING]} warning(s)"
        )
        if digest is not None:
            print(f"revision {digest}")
    return REFUSED if digest is None else OK


def _schema(_: argparse.Namespace) -> int:
    from kms.policy.json_schema import policy_schema

    print_json(policy_schema())
    return OK


def _diff(arguments: argparse.Namespace) -> int:
    what, newer, old = arguments.what, arguments.newer, arguments.old
    if newer is not None:
        first = read_candidate(what)
        if old is not None or not isinstance(first, str):
            raise WrongUse("of two policies the first is a revision, and --from is not said as well")
        what, old = newer, first
    new = read_candidate(what)

    async def work(office: "Office", actor: "Actor") -> int:
        diff = await office.policies.diff(
            actor,
            old=None if old is None else await whole_name(office, actor, old),
            new=await whole_candidate(office, actor, new),
        )
        if arguments.json:
            print_json(diff)
        else:
            say(diff_lines(fields(diff, "diff")))
        return OK

    return in_office(arguments, work)


def _history(arguments: argparse.Namespace) -> int:
    async def work(office: "Office", actor: "Actor") -> int:
        changes = await fetch_changes(office, actor, arguments.limit)
        if arguments.json:
            print_json({"changes": changes})
        elif changes:
            say([line for change in changes for line in change_lines(fields(change, "change"))])
        else:
            say([Line("no policy was ever in force")])
        return OK

    return in_office(arguments, work)


def _show(arguments: argparse.Namespace) -> int:
    async def work(office: "Office", actor: "Actor") -> int:
        if arguments.revision is None:
            name = await revision_in_force(office, actor)
        else:
            name = await whole_name(office, actor, arguments.revision)
        fetched = await fetch_revision(office, actor, name)
        if arguments.files is not None:
            fetched.write(arguments.files)
        if arguments.json:
            print_json(fetched.to_json())
        elif arguments.files is None:
            say(_text(fetched))
        else:
            say([Line(f"wrote {len(fetched.files)} file(s) to {arguments.files}")])
        return OK

    return in_office(arguments, work)


def _text(fetched: Fetched) -> Iterator[Line]:
    for name, content in fetched.files.items():
        yield Line(f"# {name}", "bold")
        yield from map(Line, content.decode("utf-8").splitlines())
