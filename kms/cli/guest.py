"""``kms guest``: the guest's side."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kms.cli.output import OK, REFUSED, WRONG_USE, Unreadable, WrongUse, print_json, read_file
from kms.cli.parsers import Group, Parser, integer, run_group, seconds
from kms.errors import KmsError

if TYPE_CHECKING:
    from kms.guest.errors import Problem
    from kms.guest.evidence import EvidenceSource
    from kms.keys.envelope import Payload
    from kms.keys.names import KeyRequest
    from kms.strict_json import JsonValue

_DEFAULT_TSM: Final = "/sys/kernel/config/tsm/report"
_MAX_DOCUMENT: Final = 64 << 10  # protocol, section 1
_MAX_LAUNCH: Final = 64 << 10
# What the server's "no" to a genuine question is; everything else is a question that makes no sense to it.
_NO: Final = frozenset({403, 409, 410})


def main(argv: list[str]) -> int:
    """Run ``kms guest`` and give the exit status."""
    return run_group(parser(), argv)


def parser() -> Parser:
    """Give the parser of this group of commands."""
    group = Group("kms guest", "The guest's side: prove what this machine is, get its keys.")
    fetch = group.add(
        "fetch",
        summary="fetch keys",
        description="Prove what this machine is and fetch its keys. One key goes to standard output as raw"
        " bytes, for a pipe; several need --json or --output. --json prints the keys, unless --output holds"
        " them. Keys are never shown on a terminal. Exit status: 0 keys, 1 refused by the server or an answer"
        " that must not be used, 2 wrong use, no evidence or no server.",
        example="kms guest fetch --server https://kms:8443 --ca ca.pem --identity @kms.id --key disk"
        " --app-document app.json | cryptsetup open /dev/vdb data --key-file -",
    )
    fetch.set_defaults(run=_fetch)
    add = fetch.add_argument
    add("--server", metavar="URL", required=True, help="https://HOST:PORT")
    add("--ca", metavar="FILE", type=Path, help="PEM of the only CA to trust (default: the system's)")
    pin = fetch.add_mutually_exclusive_group(required=True)
    pin.add_argument(
        "--identity",
        metavar="KEY",
        help="the KMS identity to take keys from: base64url of 32 bytes, or @FILE."
        " From the measured image or command line, never from what the host chooses",
    )
    pin.add_argument(
        "--trust-any-kms-identity",
        action="store_true",
        help="take keys from whoever the CA lets speak: an impostor's keys are not told from yours",
    )
    add(
        "--key",
        metavar="NAME[@SCOPE]",
        action="append",
        required=True,
        help="disk, env, signing, tls or custom:PATH; scope app (default), instance or chip; repeat for more",
    )
    add("--epoch", metavar="N", type=integer, help="of every key (default: the app's current one)")
    add("--suite", metavar="SUITE", help="how keys are sealed (default: the hybrid with ML-KEM-768)")
    add("--app-document", metavar="FILE", type=Path, help="the document that HOST_DATA commits to")
    add("--app-id", metavar="HEX", help="with --compose-hash: the app that the measured command line names")
    add("--compose-hash", metavar="HEX", help="with --app-id")
    add("--launch", metavar="FILE", type=Path, help="JSON hint: image, vcpus, vcpu_type, guest_features")
    add("--output", metavar="FILE", type=Path, help="new file, 0600: raw bytes of one key, JSON of several")
    add("--allow-disk", action="store_true", help="let --output be on a file system that is not in memory")
    add("--tsm", metavar="PATH", type=Path, default=Path(_DEFAULT_TSM), help=f"default {_DEFAULT_TSM}")
    add(
        "--deadline",
        metavar="SECONDS",
        type=seconds,
        default=60.0,
        help="for all tries together (default 60)",
    )
    return group.parser


def _fetch(arguments: argparse.Namespace) -> int:
    _check_output(arguments)
    from kms.cli.pins import app_claim, read_identity
    from kms.guest.client import KeyClient
    from kms.guest.errors import AnswerRejected, Refused, ServerUntrusted
    from kms.guest.secret_file import check_place, write_secret
    from kms.guest.tsm import TsmSource

    keys = _keys(arguments)
    source: EvidenceSource = TsmSource(arguments.tsm, launch=_launch(arguments.launch))
    if arguments.output is not None:
        check_place(arguments.output, allow_disk=arguments.allow_disk)
    client = KeyClient(
        arguments.server,
        ca_file=arguments.ca,
        identity=None if arguments.trust_any_kms_identity else read_identity(arguments.identity),
        source=source,
        deadline=arguments.deadline,
        **_suite(arguments.suite),
    )
    document = arguments.app_document
    try:
        payload = client.fetch(
            keys,
            app_document=None if document is None else read_file(document, at_most=_MAX_DOCUMENT),
            app=app_claim(arguments.app_id, arguments.compose_hash),
        )
    except Refused as error:
        _report(error, error.problem, as_json=arguments.json)
        return REFUSED if error.problem.status in _NO else WRONG_USE
    except (AnswerRejected, ServerUntrusted) as error:
        _report(error, None, as_json=arguments.json)
        return REFUSED
    raw = payload.keys[0].value if len(keys) == 1 else _document(payload, values=True)
    if arguments.output is not None:
        write_secret(arguments.output, raw, allow_disk=arguments.allow_disk)
    if arguments.json:
        sys.stdout.write(_document(payload, values=arguments.output is None).decode("ascii"))
    elif arguments.output is None:
        sys.stdout.buffer.write(raw)
        # Here, and not at the end: a key that nobody took was not delivered.
        sys.stdout.buffer.flush()
    return OK


def _check_output(arguments: argparse.Namespace) -> None:
    """Refuse, before anything is asked, what would end with keys where they must not be."""
    if arguments.output is not None:
        return
    if sys.stdout.isatty():
        raise WrongUse(
            "keys are not shown on a terminal: use a pipe (| cryptsetup open … --key-file -), or --output"
        )
    if len(arguments.key) > 1 and not arguments.json:
        raise WrongUse("several keys need --json or --output")


def _keys(arguments: argparse.Namespace) -> "list[KeyRequest]":
    from kms.keys.names import KeyRequest

    keys = []
    for text in arguments.key:
        name, at, scope = text.partition("@")
        try:
            keys.append(KeyRequest.parse(name, scope if at else "app", arguments.epoch))
        except ValueError as error:
            raise WrongUse(f"--key: {error}") from None
    return keys


def _suite(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    from kms.keys.sealing import Suite

    try:
        return {"suite": Suite(text)}
    except ValueError:
        raise WrongUse(f"--suite is one of {', '.join(Suite)}") from None


def _launch(path: Path | None) -> "dict[str, JsonValue] | None":
    if path is None:
        return None
    from kms.measurement.images import LaunchHint
    from kms.strict_json import JsonError, parse_object

    try:
        hint = parse_object(read_file(path, at_most=_MAX_LAUNCH))
        LaunchHint.parse({**hint})
    except JsonError as error:
        raise Unreadable(f"{path}: {error}") from None
    return hint


def _document(payload: "Payload", *, values: bool) -> bytes:
    """Give what was released as JSON; with `values` it holds the secrets."""
    import json

    from kms.encoding import b64url

    hidden = set() if values else {"value"}
    document = {
        "release_id": payload.release_id,
        "app_id": payload.app_id.hex(),
        "identity": b64url(payload.identity),
        "keys": [
            {name: value for name, value in key.to_json().items() if name not in hidden}
            for key in payload.keys
        ],
    }
    return (json.dumps(document, indent=2) + "\n").encode("ascii")


def _report(error: KmsError, problem: "Problem | None", *, as_json: bool) -> None:
    if not as_json:
        sys.stderr.write(f"kms guest: {error.detail}\n")
        return
    body: dict[str, Any] = {"code": error.code, "reason": error.reason, "detail": error.detail}
    if problem is not None:
        body |= {
            "status": problem.status,
            "code": problem.code,
            "reasons": list(problem.reasons),
            "request_id": problem.request_id,
        }
        body.pop("reason")
    print_json({"error": body})
