"""``kms guest``: the guest's side."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kms.cli.asking import telling_refusals
from kms.cli.guest_agent import add_agent
from kms.cli.guest_doctor import add_doctor
from kms.cli.guest_env import add_env
from kms.cli.guest_hooks import add_hooks
from kms.cli.guest_machine import add_machine_options, add_receipt_option, fetch, keep_receipt
from kms.cli.guest_outputs import add_destinations, check_pipe, destination, write_to_pipe
from kms.cli.guest_serve import add_serve
from kms.cli.guest_unlock import add_unlock
from kms.cli.output import OK, Unreadable, WrongUse, print_json, read_file
from kms.cli.parsers import Group, Parser, integer, run_group

if TYPE_CHECKING:
    from kms.keys.envelope import Payload
    from kms.keys.names import KeyRequest

_MAX_CSR: Final = 16 << 10  # bytes of PEM; the server takes 4096 of DER
_DER: Final = b"\x30"  # how a SEQUENCE begins; PEM may have text before it


def main(argv: list[str]) -> int:
    """Run ``kms guest`` and give the exit status."""
    return run_group(parser(), argv)


def parser() -> Parser:
    """Give the parser of this group of commands."""
    group = Group("kms guest", "The guest's side: prove what this machine is, get its keys.")
    _add_fetch(group)
    add_env(group)
    add_unlock(group)
    add_agent(group)
    add_serve(group)
    add_doctor(group)
    add_hooks(group)
    return group.parser


def _add_fetch(group: Group) -> None:
    command = group.add(
        "fetch",
        summary="fetch keys",
        description="Prove what this machine is and fetch its keys. One key goes to standard output as raw"
        " bytes, for a pipe (tls as PEM: key, certificate, the two authorities above it); several need"
        " --json or --output. --json prints the keys, unless another place holds them. Keys are never shown"
        " on a terminal. Around a rotation, ask for keys of both epochs: --key 'disk#1' --key 'disk#2'. Exit"
        " status: 0 keys, 1 refused by the server, or by this side: an answer that must not be used, another"
        " app document or workload; 2 wrong use, no evidence or no server.",
        example="kms guest fetch --server https://kms:8443 --ca ca.pem --identity @kms.id --key disk"
        " --app-document app.json | cryptsetup open /dev/vdb data --key-file -",
    )
    add = command.add_argument
    add(
        "--key",
        metavar="NAME[@SCOPE][#EPOCH]",
        action="append",
        required=True,
        help="disk, env, signing, tls, custom:PATH, or dstack:disk@instance, dstack:env, dstack:k256; scope"
        " app (default), instance or chip; epoch as with --epoch; repeat for more",
    )
    add(
        "--csr",
        metavar="FILE",
        type=Path,
        help="with --key tls: certificate request (PEM or DER) of this machine's own P-256 key; of it only"
        " the key is used, and what comes are certificates alone",
    )
    add(
        "--epoch",
        metavar="N",
        type=integer,
        help="of keys that name none themselves (default: the app's current one); dstack's have none",
    )
    add_destinations(command)
    add_receipt_option(command)
    add_machine_options(command)
    command.set_defaults(run=telling_refusals("kms guest", _fetch))


def _fetch(arguments: argparse.Namespace) -> int:
    place = destination(arguments)
    if place is None and len(arguments.key) > 1 and not arguments.json:
        raise WrongUse("several keys need --json or --output")
    keys = _keys(arguments)
    if place is None:
        check_pipe("--output", allow_disk=arguments.allow_disk)
    else:
        place.check()
    payload = fetch(arguments, keys, csr=_certificate_request(arguments.csr, keys))
    if arguments.receipt is not None:
        keep_receipt(arguments.receipt, payload)
    if place is not None:
        kept = place.keep(_raw(payload))
        if arguments.json:
            print_json(_document(payload, values=False) | kept)
    elif arguments.json:
        print_json(_document(payload, values=True))
    else:
        write_to_pipe(_raw(payload))
    return OK


def _raw(payload: "Payload") -> bytes:
    """Give one key as programs use it, several as JSON."""
    import json

    from kms.guest.key_values import value_of

    if len(payload.keys) == 1:
        return value_of(payload.keys[0])
    return (json.dumps(_document(payload, values=True), indent=2) + "\n").encode("ascii")


def _keys(arguments: argparse.Namespace) -> "list[KeyRequest]":
    from kms.guest.key_words import parse_key

    try:
        return [parse_key(text, arguments.epoch) for text in arguments.key]
    except ValueError as error:
        raise WrongUse(f"--key: {error}") from None


def _certificate_request(path: Path | None, keys: "list[KeyRequest]") -> bytes | None:
    """Give the DER of the file that `--csr` names, if the server would take it too."""
    if path is None:
        return None
    from kms.keys import certificate_request
    from kms.keys.names import KeyKind

    if not any(key.name.kind is KeyKind.TLS for key in keys):
        raise WrongUse("--csr goes with --key tls")
    data = read_file(path, at_most=_MAX_CSR)
    try:
        der = data if data.startswith(_DER) else _from_pem(data)
        certificate_request.read(der)
    except ValueError as error:
        raise Unreadable(f"{path}: {error}") from None
    return der


def _from_pem(data: bytes) -> bytes:
    """Give the DER of a certificate request in PEM. Raises `ValueError`."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        return x509.load_pem_x509_csr(data).public_bytes(Encoding.DER)
    except (ValueError, x509.InvalidVersion):  # the last is no ValueError
        raise ValueError("not a certificate request") from None


def _document(payload: "Payload", *, values: bool) -> dict[str, Any]:
    """Give what was released; with `values` it holds the secrets."""
    from kms.encoding import b64url

    hidden = set() if values else {"value"}
    return {
        "release_id": payload.release_id,
        "app_id": payload.app_id.hex(),
        "identity": b64url(payload.identity),
        "keys": [
            {name: value for name, value in key.to_json().items() if name not in hidden}
            for key in payload.keys
        ],
    }
