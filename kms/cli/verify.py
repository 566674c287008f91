"""`kms verify`: verify evidence, and explain every check."""

import argparse
import asyncio
from datetime import UTC, datetime
from pathlib import Path

from kms.checks import Check
from kms.cli.output import OK, REFUSED, Unreadable, print_json, read_file
from kms.cli.parsers import Parser, moment
from kms.cli.pins import app_claim, read_identity
from kms.cli.reading import read_policy, read_settings
from kms.cli.verify_authenticity import Given, authenticate
from kms.encoding import from_hex
from kms.errors import MalformedEvidence
from kms.measurement.launch import LaunchFile, parse_launch_file
from kms.packaged import load_advisories
from kms.policy.compiled import Policy
from kms.settings import Settings
from kms.snp.certificate import Certificate
from kms.snp.endorsement import is_revocation_list, load_any
from kms.snp.report import LENGTH, Report
from kms.snp.revocation_list import RevocationList, load_revocation_list
from kms.strict_json import JsonError, JsonValue, parse
from kms.trust import load_roots
from kms.verification import Question, Verification, explain

_REPORT_DATA_LENGTH = 64
_EPILOG = """\
Evidence that does not verify, altered bytes included, is status 1 and names the check; files that cannot be
read, a report of another length, and launch inputs that are not of their format are status 2.

example:
  kms verify --report report.bin --certificates vcek.der --certificates cert_chain.pem --launch launch.json
"""


def main(argv: list[str]) -> int:
    """Verify and explain; 0 verified, 1 not verified, 2 wrong use or unreadable input."""
    arguments = parser().parse_args(argv)
    settings = read_settings(arguments.config)
    now = arguments.at or datetime.now(UTC)
    raw = read_file(arguments.report)
    if len(raw) != LENGTH:
        raise Unreadable(f"{arguments.report}: a report is {LENGTH} bytes, this is {len(raw)}")
    online = not arguments.offline and (arguments.online or "kds_urls" in settings.model_fields_set)
    settings = settings.model_copy(update={} if online else {"kds_urls": []})
    try:
        question = _question(arguments, settings, raw)
        given = _read_given(arguments.certificates)
        roots = load_roots(settings.development_roots)
        authenticated = asyncio.run(authenticate(question.report, given, settings, roots, now))
        outcome = explain(question, authenticated, now, development=settings.development)
    except MalformedEvidence as error:
        failed = Check.of("evidence-format", False, error.detail, reason=error.reason)
        outcome = Verification(checks=(failed,))
    if arguments.json:
        _print_json(outcome)
    else:
        _print(outcome, development=settings.development)
    return OK if outcome.verified else REFUSED


def parser() -> Parser:
    """Give the command's parser."""
    command = Parser(
        prog="kms verify",
        description="Verify SEV-SNP evidence with files and the server's store, and explain every check.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("--report", metavar="FILE", type=Path, required=True, help="the raw report, 1184 bytes")
    add(
        "--certificates",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="PEM or DER: endorsement certificate, chain, revocation list; may be repeated",
    )
    asking = command.add_mutually_exclusive_group()
    asking.add_argument(
        "--online", action="store_true", help="ask the key distribution services for what is missing"
    )
    asking.add_argument("--offline", action="store_true", help="ask nobody, even where KMS_KDS_URLS is set")
    add(
        "--launch",
        metavar="FILE",
        type=Path,
        help="launch description, or dstack's sev_snp_measurement (JSON)",
    )
    add("--app-document", metavar="FILE", type=Path, help="the exact bytes that HOST_DATA commits to")
    add("--report-data", type=_report_data, metavar="HEX", help="what REPORT_DATA must be")
    add("--policy", type=Path, metavar="DIR", help="judge by this policy folder as well")
    add("--app-id", metavar="HEX", help="with --compose-hash: the app that the measured command line names")
    add("--compose-hash", metavar="HEX", help="with --app-id")
    add("--identity", metavar="KEY", help="the KMS identity (or @FILE), for app documents that pin one")
    add("--at", type=moment, metavar="TIME", help="verify as of this time (RFC 3339)")
    add("--config", metavar="FILE", type=Path, help="path of kms.toml, for roots, store and services")
    add("--json", action="store_true", help="one JSON document on standard output")
    return command


def _question(arguments: argparse.Namespace, settings: Settings, raw: bytes) -> Question:
    return Question(
        report=Report.parse(raw),
        advisories=load_advisories(),
        launch=None if arguments.launch is None else _launch(arguments.launch),
        app_document=None if arguments.app_document is None else read_file(arguments.app_document),
        report_data=arguments.report_data,
        policy=_policy(arguments.policy, settings),
        claim=app_claim(arguments.app_id, arguments.compose_hash),
        kms_identities=frozenset()
        if arguments.identity is None
        else frozenset({read_identity(arguments.identity)}),
    )


def _read_given(paths: list[Path]) -> Given:
    certificates: list[Certificate] = []
    lists: list[RevocationList] = []
    for path in paths:
        data = read_file(path)
        if is_revocation_list(data):
            lists.append(load_revocation_list(data))
        else:
            certificates.extend(load_any(data))
    return Given(tuple(certificates), tuple(lists))


def _policy(folder: Path | None, settings: Settings) -> Policy | None:
    return None if folder is None else Policy(read_policy(folder, development=settings.development))


def _launch(path: Path) -> LaunchFile:
    try:
        return parse_launch_file(parse(read_file(path, at_most=1 << 20)))
    except JsonError as error:
        raise Unreadable(f"{path}: {error}") from error


def _report_data(text: str) -> bytes:
    try:
        value = from_hex(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if len(value) != _REPORT_DATA_LENGTH:
        raise argparse.ArgumentTypeError(f"REPORT_DATA has {_REPORT_DATA_LENGTH} bytes")
    return value


def _print_json(outcome: Verification) -> None:
    print_json(
        {
            "verified": outcome.verified,
            "checks": [
                {"name": check.name, "passed": check.passed, "detail": check.detail}
                for check in outcome.checks
            ],
            "boot_info": None if outcome.boot_info is None else outcome.boot_info.to_json(),
        }
    )


def _print(outcome: Verification, *, development: bool) -> None:
    if development:
        print("DEVELOPMENT ROOTS are trusted beside AMD's: this proves nothing about hardware")
    for check in outcome.checks:
        print(f"{'pass' if check.passed else 'FAIL'}  {check.name}: {check.detail}")
    if outcome.boot_info is not None:
        print()
        for name, value in outcome.boot_info.to_json().items():
            print(f"  {name}: {_plain(value)}")
    failed = [check.name for check in outcome.checks if not check.passed]
    print()
    print("verified" if not failed else f"NOT VERIFIED: {', '.join(dict.fromkeys(failed))}")


def _plain(value: JsonValue) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(member)}" for name, member in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)
