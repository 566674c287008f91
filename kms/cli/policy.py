"""``kms policy``: what operators do with policies."""

import argparse
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from kms.cli.output import OK, REFUSED, print_json
from kms.cli.parsers import Group, Parser, run_group
from kms.policy.findings import Finding, PolicyInvalid, Severity


def main(argv: list[str]) -> int:
    """Run ``kms policy`` and give the exit status."""
    return run_group(parser(), argv)


def parser() -> Parser:
    """Give the parser of this group of commands."""
    group = Group("kms policy", "Check policies and put them in force.")
    _add_lint(group)
    _add_apply(group)
    return group.parser


def _add_lint(group: Group) -> None:
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


def _lint(arguments: argparse.Namespace) -> int:
    from kms.packaged import load_advisories
    from kms.policy.lint import lint
    from kms.policy.revision import Revision
    from kms.policy_folder.reading import read_folder

    files = read_folder(arguments.folder)
    result = lint(
        files,
        development=arguments.development,
        now=datetime.now(UTC),
        advisories=load_advisories(),
    )
    count = Counter(finding.severity for finding in result.findings)
    revision = None if count[Severity.ERROR] else Revision.from_lint(result).digest
    if arguments.json:
        print_json(
            {
                "valid": revision is not None,
                "revision": revision,
                "documents": len(result.sources),
                "errors": count[Severity.ERROR],
                "warnings": count[Severity.WARNING],
                "findings": [_finding(each) for each in result.findings],
            }
        )
    else:
        for finding in result.findings:
            print(finding)
        print(
            f"{len(result.sources)} document(s) in {len(files)} file(s):"
            f" {count[Severity.ERROR]} error(s), {count[Severity.WARNING]} warning(s)"
        )
        if revision is not None:
            print(f"revision {revision}")
    return REFUSED if revision is None else OK


def _finding(finding: Finding) -> dict[str, str | int]:
    return {
        "file": finding.file,
        "line": finding.line,
        "column": finding.column,
        "severity": finding.severity.value,
        "message": finding.message,
    }


def _add_apply(group: Group) -> None:
    apply = group.add(
        "apply",
        summary="put a policy folder in force",
        description="Put a policy folder in force on the database of the settings, all of it or nothing. A"
        " running server follows within 2 s. Exit status: 0 in force, 1 errors in it, 2 unreadable.",
        example="kms policy apply policies/ --message 'new kernel'",
    )
    add = apply.add_argument
    add("folder", metavar="DIR", type=Path, help="the policy folder")
    add("--message", metavar="TEXT", default="", help="why; kept with the revision")
    add("--config", metavar="FILE", type=Path, help="path of kms.toml (default: KMS_CONFIG, else none)")
    apply.set_defaults(run=_apply)


def _apply(arguments: argparse.Namespace) -> int:
    import asyncio
    import getpass

    from kms.cli.reading import read_settings
    from kms.policy.revision import Revision
    from kms.policy_folder.reading import read_folder
    from kms.wiring import apply_policy

    settings = read_settings(arguments.config)
    try:
        revision = Revision.from_files(read_folder(arguments.folder), development=settings.development)
    except PolicyInvalid as error:
        _print_refused(error, as_json=arguments.json)
        return REFUSED
    author = f"{getpass.getuser()} (command line)"
    changed = asyncio.run(apply_policy(settings, revision, author=author, message=arguments.message))
    if arguments.json:
        print_json({"applied": True, "changed": changed, "revision": revision.digest})
    else:
        print(f"{'in force' if changed else 'already in force'}: {revision.digest}")
    return OK


def _print_refused(error: PolicyInvalid, *, as_json: bool) -> None:
    if as_json:
        print_json({"applied": False, "findings": [_finding(each) for each in error.findings]})
        return
    for finding in error.findings:
        print(finding)
    print("nothing was applied")
