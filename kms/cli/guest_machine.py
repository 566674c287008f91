"""What `kms guest` commands have in common: the machine's evidence, its app, and fetching keys with them."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kms.cli.asking import add_server_options, pinned_identity, say_followed
from kms.cli.output import Unreadable, WrongUse, read_file

if TYPE_CHECKING:
    from kms.keys.envelope import Payload
    from kms.keys.names import KeyRequest
    from kms.keys.released import ReleasedKey
    from kms.strict_json import JsonValue

_DEFAULT_TSM: Final = "/sys/kernel/config/tsm/report"
_MAX_DOCUMENT: Final = 64 << 10  # protocol, section 1
_MAX_LAUNCH: Final = 64 << 10
_RECEIPT_MODE: Final = 0o644


def add_machine_options(command: argparse.ArgumentParser) -> None:
    """Add which server to ask, and what it is told of this machine."""
    add_server_options(
        command, pin_from="From the measured image or command line, never from what the host chooses"
    )
    add = command.add_argument
    add("--suite", metavar="SUITE", help="how keys are sealed (default: the hybrid with ML-KEM-768)")
    add("--app-document", metavar="FILE", type=Path, help="the document that HOST_DATA commits to")
    add("--app-id", metavar="HEX", help="with --compose-hash: the app that the measured command line names")
    add("--compose-hash", metavar="HEX", help="with --app-id")
    add("--launch", metavar="FILE", type=Path, help="JSON hint: image, vcpus, vcpu_type, guest_features")
    add("--allow-disk", action="store_true", help="let secrets be on a file system that is not in memory")
    add("--tsm", metavar="PATH", type=Path, default=Path(_DEFAULT_TSM), help=f"default {_DEFAULT_TSM}")


def add_receipt_option(command: argparse.ArgumentParser) -> None:
    """Add where the receipt is kept."""
    command.add_argument(
        "--receipt",
        metavar="FILE",
        type=Path,
        help="write the KMS's signed promise that the release is in its ledger, or replace it; it is no"
        " secret, and `kms ledger prove` holds the KMS to it",
    )


def check_secret_place(path: Path | None, option: str, *, allow_disk: bool) -> None:
    """Refuse, before anything is asked, what would end with secrets where they must not be."""
    from kms.guest.secret_file import check_place

    if path is not None:
        check_place(path, allow_disk=allow_disk)
    elif sys.stdout.isatty():
        raise WrongUse(f"secrets are not shown on a terminal: use a pipe, or {option}")


def write_to_pipe(secret: bytes) -> None:
    """Write a secret to standard output, whole, or fail: what nobody took was not delivered."""
    sys.stdout.buffer.write(secret)
    sys.stdout.buffer.flush()


def fetch(arguments: argparse.Namespace, keys: "list[KeyRequest]", *, csr: bytes | None = None) -> "Payload":
    """Prove what this machine is and fetch keys. Raises what `kms.guest.KeyClient.fetch` raises."""
    from kms.cli.pins import app_claim
    from kms.guest.client import KeyClient
    from kms.guest.tsm import TsmSource

    pinned = pinned_identity(arguments)
    client = KeyClient(
        arguments.server,
        ca_file=arguments.ca,
        identity=pinned,
        source=TsmSource(arguments.tsm, launch=_launch(arguments.launch)),
        deadline=arguments.deadline,
        **_suite(arguments.suite),
    )
    document = arguments.app_document
    payload = client.fetch(
        keys,
        app_document=None if document is None else read_file(document, at_most=_MAX_DOCUMENT),
        app=app_claim(arguments.app_id, arguments.compose_hash),
        csr=csr,
    )
    say_followed("kms guest", pinned, payload.identity)
    return payload


def keep_receipt(path: Path, payload: "Payload") -> None:
    """Write the receipt, if it is one for what was released.

    Raises:
        AnswerRejected: it is none.
        Unreadable: it cannot be written.

    """
    import json

    from kms import private_files
    from kms.guest.errors import AnswerRejected
    from kms.ledger.proofs import ProofInvalid, Receipt

    try:
        receipt = Receipt.verify(payload.receipt, pinned=payload.identity)
    except ProofInvalid as error:
        raise AnswerRejected(f"the receipt is none: {error.detail}", reason=error.reason) from None
    if receipt.release_id != payload.release_id:
        raise AnswerRejected("the receipt is for another release", reason="receipt-differs")
    content = json.dumps(payload.receipt, indent=2) + "\n"
    try:
        private_files.replace(path, content.encode("ascii"), mode=_RECEIPT_MODE)
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error


def value_of(key: "ReleasedKey") -> bytes:
    """Give what a program uses of a key: its bytes; for TLS the PEM of key, if it came, and certificates."""
    if key.certificate_chain is None:
        return key.secret
    from cryptography.hazmat.primitives import serialization as forms

    text = b"".join(each.encode("ascii") for each in key.certificate_chain)
    if key.value is None:
        return text
    private = forms.load_der_private_key(key.value, None)
    pem = private.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    return pem + text


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
