"""``kms ledger prove``: that a release is in the ledger, as its receipt promised."""

import argparse
import json
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kms.cli.asking import report_refused
from kms.cli.ledger_asking import (
    COMMAND,
    add_deadline,
    add_key_options,
    asking,
    given_key,
    public_ledger,
    read_document,
    verifier_key,
)
from kms.cli.office import add_office_options, in_office
from kms.cli.output import OK, REFUSED, WRONG_USE, Unreadable, WrongUse, print_json
from kms.cli.parsers import Group
from kms.cli.saying import Line, fields, say
from kms.errors import NotFound
from kms.guest.errors import Refused
from kms.ledger_publishing import NOT_YET

if TYPE_CHECKING:
    from kms.administration.office import Office
    from kms.ledger.proofs import InclusionProof, Receipt
    from kms.operators import Actor

_ID: Final = re.compile(r"[0-9a-f]{32}")
_MAX_ENTRY: Final = 2 << 20  # bytes
_MODE: Final = 0o644  # a proof is public


def add_prove(group: Group) -> None:
    """Add ``kms ledger prove``."""
    command = group.add(
        "prove",
        summary="prove that a release is in the ledger, as its receipt promised",
        description="Fetch the proof that a release (or a refusal, by its request id) is in the ledger, and"
        " verify it: checkpoint by the ledger's key, path by the checkpoint, and with --receipt that it is"
        " the entry that the guest was promised. A server needs no token for this; with one, or on this"
        " machine, the entry itself is compared too. --save keeps the proof, and --proof verifies it later"
        " without a server. Exit status: 0 proven, 1 not proven (also: not in a checkpoint yet), 2 wrong use"
        " or no server.",
        example="kms ledger prove 019abfc2a1e77c3e8d5f00112233aabb --receipt receipt.json"
        " --server https://kms:8443 --ca ca.pem --key @ledger.key",
    )
    add = command.add_argument
    add("release_id", metavar="RELEASE_ID", help="32 hex digits")
    add("--receipt", metavar="FILE", type=Path, help="the guest's: what `kms guest fetch --receipt` kept")
    add("--save", metavar="FILE", type=Path, help="write the proof, or replace it")
    add("--proof", metavar="FILE", type=Path, help="verify this proof, and ask nobody; needs --key")
    add_office_options(command)
    add_deadline(command)
    add_key_options(command)
    command.set_defaults(run=asking(_prove))


def _prove(arguments: argparse.Namespace) -> int:
    from kms.ledger.proofs import InclusionProof, Receipt

    if not _ID.fullmatch(arguments.release_id):
        raise WrongUse("RELEASE_ID takes 32 hex digits")
    receipt = None
    if arguments.receipt is not None:
        receipt = Receipt.verify(read_document(arguments.receipt), pinned=_pinned(arguments))
    if arguments.proof is not None:
        key = given_key(arguments)
        if key is None or arguments.server is not None:
            raise WrongUse("--proof asks nobody: it needs --key, and no --server")
        proof = InclusionProof.read(read_document(arguments.proof))
    elif arguments.server is not None and arguments.token_file is None:
        try:
            with public_ledger(arguments) as ledger:
                key = verifier_key(arguments, ledger)
                proof = ledger.proof(arguments.release_id)
        except Refused as refusal:
            report_refused(COMMAND, refusal, refusal.problem, as_json=arguments.json)
            return _status_of_nothing(receipt, *refusal.problem.reasons)
    else:
        return in_office(arguments, lambda office, actor: _in_office(arguments, receipt, office, actor))
    return _judge(arguments, proof, key, receipt)


async def _in_office(
    arguments: argparse.Namespace, receipt: "Receipt | None", office: "Office", actor: "Actor"
) -> int:
    """Prove by an office, which has the entry too."""
    from kms.ledger.proofs import InclusionProof, ProofInvalid

    key = given_key(arguments)
    if key is None and arguments.server is not None:
        with public_ledger(arguments) as ledger:
            key = verifier_key(arguments, ledger)
    if key is None:
        key = fields(await office.ledger.statement(actor), "ledger").text("key")
    try:
        proof = InclusionProof.read(await office.ledger.proof(actor, arguments.release_id))
    except NotFound as refusal:
        report_refused(COMMAND, refusal, None, as_json=arguments.json)
        return _status_of_nothing(receipt, refusal.reason)
    item = fields(await office.ledger.entry(actor, arguments.release_id), "entry")
    salt = item.nullable("salt", lambda name: item.base64(name, at_most=_MAX_ENTRY))
    entry = item.nullable("entry", lambda name: item.base64(name, at_most=_MAX_ENTRY))
    if salt is None or entry is None:
        raise ProofInvalid(
            "the ledger has the entry, and the record has not any more", reason="entry-removed"
        )
    if sha256(salt + entry).digest() != proof.digest or (receipt is not None and receipt.salt != salt):
        raise ProofInvalid("the record shows another entry than the ledger has", reason="receipt-differs")
    return _judge(arguments, proof, key, receipt)


def _status_of_nothing(receipt: "Receipt | None", *reasons: str) -> int:
    """Give the exit status where there is no proof: what was promised, or waits, is not proven."""
    return REFUSED if receipt is not None or NOT_YET in reasons else WRONG_USE


def _judge(
    arguments: argparse.Namespace, proof: "InclusionProof", key: str, receipt: "Receipt | None"
) -> int:
    from kms.ledger.proofs import ProofInvalid

    if proof.release_id != arguments.release_id:
        raise ProofInvalid("the proof is for another release", reason="receipt-differs")
    checkpoint = proof.verify(key)
    if receipt is not None:
        receipt.require_kept_by(proof)
    if arguments.save is not None:
        _save(arguments.save, proof)
    if arguments.json:
        print_json(
            {
                "proven": True,
                "release_id": proof.release_id,
                "entry_sha256": proof.digest.hex(),
                "index": proof.index,
                "size": checkpoint.size,
                "root": checkpoint.root.hex(),
                "receipt": None if receipt is None else _receipt_json(receipt),
                "proof": proof.to_json(),
            }
        )
    else:
        say(_lines(proof, receipt))
    return OK


def _lines(proof: "InclusionProof", receipt: "Receipt | None") -> Iterator[Line]:
    yield Line(
        f"proven: release {proof.release_id} is entry {proof.index} of the {proof.size} of the checkpoint,"
        f" SHA-256 {proof.digest.hex()}",
        "green",
    )
    if receipt is not None:
        told = _receipt_json(receipt)
        yield Line(
            f"the receipt is kept: promised at {told['decided_at']} by identity {told['identity']}", "green"
        )


def _receipt_json(receipt: "Receipt") -> dict[str, str]:
    from kms.encoding import b64url

    return {"decided_at": receipt.decided_at, "identity": b64url(receipt.identity)}


def _pinned(arguments: argparse.Namespace) -> bytes | None:
    """Give whose promise the receipt must be, where `--identity` says so."""
    from kms.cli.pins import read_identity

    return None if arguments.identity is None else read_identity(arguments.identity)


def _save(path: Path, proof: "InclusionProof") -> None:
    from kms import private_files

    content = json.dumps(proof.to_json(), indent=2) + "\n"
    try:
        private_files.replace(path, content.encode("ascii"), mode=_MODE)
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error
