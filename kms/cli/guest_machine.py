"""What `kms guest` commands have in common: the machine's evidence, its app, and fetching keys with them."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kms.cli.asking import add_server_options, pinned_identity, say_followed
from kms.cli.output import Unreadable, WrongUse, read_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kms.guest.config import GuestConfig
    from kms.guest.hardware import EvidenceOptions
    from kms.guest.machine import GuestMachine
    from kms.keys.envelope import Payload
    from kms.keys.names import KeyRequest
    from kms.keys.sealing import Suite
    from kms.strict_json import JsonValue

_MAX_LAUNCH: Final = 64 << 10  # bytes
_RECEIPT_MODE: Final = 0o644
_DEFAULT_CONFIG: Final = "/etc/attested-kms/guest.toml"  # `kms.guest.config.DEFAULT_CONFIG`


def add_machine_options(command: argparse.ArgumentParser) -> None:
    """Add which server to ask, and what it is told of this machine. What is given goes before the file's."""
    add = command.add_argument
    add(
        "--config",
        metavar="FILE",
        type=Path,
        help=f"what the measured image says of all this (default {_DEFAULT_CONFIG}, without --server)",
    )
    add_server_options(
        command,
        pin_from="From the measured image or command line, never from what the host chooses",
        configurable=True,
    )
    add("--suite", metavar="SUITE", help="how keys are sealed (default: the hybrid with ML-KEM-768)")
    add("--app-document", metavar="FILE", type=Path, help="the document that HOST_DATA commits to")
    add("--workload", metavar="FILE", type=Path, help="refuse unless its SHA-256 is the app's compose hash")
    add(
        "--workload-copy",
        metavar="FILE",
        type=Path,
        help="copy --workload into memory there, and check the copy: what runs must be what was checked",
    )
    add("--app-id", metavar="HEX", help="with --compose-hash: the app that the measured command line names")
    add("--compose-hash", metavar="HEX", help="with --app-id")
    add("--launch", metavar="FILE", type=Path, help="JSON hint: image, vcpus, vcpu_type, guest_features")
    add(
        "--evidence",
        metavar="INTERFACE",
        choices=("auto", "tsm", "device"),
        help="the kernel's interface: configfs-tsm, the older device, or auto, which takes the first of them",
    )
    add("--tsm", metavar="PATH", type=Path, help="default /sys/kernel/config/tsm/report")
    add("--device", metavar="PATH", type=Path, help="default /dev/sev-guest")
    add("--privlevel", metavar="N", type=int, choices=range(4), help="the VMPL to ask as, 0 to 3")


def add_receipt_option(command: argparse.ArgumentParser) -> None:
    """Add where the receipt is kept."""
    command.add_argument(
        "--receipt",
        metavar="FILE",
        type=Path,
        help="write the KMS's signed promise that the release is in its ledger, or replace it; it is no"
        " secret, and `kms ledger prove` holds the KMS to it",
    )


def guest_config(arguments: argparse.Namespace) -> "GuestConfig":
    """Give what the file and the options say; the options go first.

    Raises:
        WrongUse: no server is named, or nobody says which KMS it must be.
        ConfigurationError: what `kms.guest.config.read_config` refuses.
        Unreadable: a file that an option names.

    """
    from kms.cli.pins import app_claim

    config = _configured(arguments)
    given: dict[str, Any] = {
        "server": arguments.server,
        "ca": arguments.ca,
        "deadline": arguments.deadline,
        "app_document": arguments.app_document,
        "workload": arguments.workload,
        "workload_copy": arguments.workload_copy,
        "app": app_claim(arguments.app_id, arguments.compose_hash),
        "launch": _launch(arguments.launch),
        "suite": _suite(arguments.suite),
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if arguments.identity is not None or arguments.trust_any_kms_identity:
        changes["identity"] = pinned_identity(arguments)
    return replace(config, evidence=evidence_options(arguments, config.evidence), **changes)


def fetch(
    arguments: argparse.Namespace, keys: "Sequence[KeyRequest]", *, csr: bytes | None = None
) -> "Payload":
    """Prove what this machine is and fetch keys. Raises what `kms.guest.machine.GuestMachine` raises."""
    from kms.guest.machine import GuestMachine

    return fetch_with(GuestMachine(guest_config(arguments)), keys, csr=csr)


def fetch_with(
    machine: "GuestMachine", keys: "Sequence[KeyRequest]", *, csr: bytes | None = None
) -> "Payload":
    """Fetch keys, and say on standard error if the pinned identity handed over to another one."""
    payload = machine.fetch(keys, csr=csr)
    say_followed("kms guest", machine.config.identity, payload.identity)
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


def _configured(arguments: argparse.Namespace) -> "GuestConfig":
    """Give the file's configuration, or one that has nothing but the server that was named."""
    from kms.guest.config import GuestConfig, default_config, read_config

    if arguments.config is not None:
        return read_config(arguments.config)
    if arguments.server is None:
        path = default_config()
        if path is None:
            raise WrongUse(f"no server: say --server, or --config; there is no {_DEFAULT_CONFIG}")
        return read_config(path)
    if arguments.identity is None and not arguments.trust_any_kms_identity:
        raise WrongUse("one of the arguments --identity --trust-any-kms-identity is required")
    return GuestConfig(server=arguments.server)


def evidence_options(arguments: argparse.Namespace, options: "EvidenceOptions") -> "EvidenceOptions":
    """Give where evidence comes from: `options`, and what the command line says before them."""
    from kms.guest.hardware import Interface

    given: dict[str, Any] = {
        "interface": None if arguments.evidence is None else Interface(arguments.evidence),
        "tsm": arguments.tsm,
        "device": arguments.device,
        "privlevel": arguments.privlevel,
    }
    return replace(options, **{name: value for name, value in given.items() if value is not None})


def _suite(text: str | None) -> "Suite | None":
    if text is None:
        return None
    from kms.keys.sealing import Suite

    try:
        return Suite(text)
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
