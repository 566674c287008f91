"""``kms policy sign``, ``approve``, ``statement``, ``proposals``: policies signed by a quorum."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kms.cli.office import add_office_options, in_office
from kms.cli.output import OK, WrongUse, print_json, read_file
from kms.cli.parsers import Group
from kms.cli.policy_fetching import fetch_revision
from kms.cli.policy_keys import KEY_HELP, add_identity_option, load_key, wanted_identity
from kms.cli.policy_statements import (
    Checked,
    check_proposal,
    exactly,
    proposal_lines,
    send_signature,
)
from kms.cli.policy_words import diff_lines
from kms.cli.reading import read_revision, revision
from kms.cli.saying import MOST, Line, fields, say, when
from kms.strict_json import JsonValue

if TYPE_CHECKING:
    from kms.administration.office import Json, Office
    from kms.operators import Actor

_MAX_SIGNATURE: Final = 64 << 10  # bytes


def add_sign(group: Group) -> None:
    """Add ``kms policy sign``."""
    sign = group.add(
        "sign",
        summary="propose a policy folder, signed",
        description="Propose a policy folder and sign it with an operator's key. What is signed was computed"
        " on this machine: the digest of the folder, what it changes, and whether that widens what guests may"
        " have. It comes into force by `kms policy apply`, when enough operators have signed.",
        example="kms policy sign policies/ --key alice.pem --message 'chip 38d1… for payments'",
    )
    sign.add_argument("folder", metavar="DIR", type=Path, help="the policy folder")
    sign.add_argument("--key", metavar="FILE", type=Path, required=True, help=KEY_HELP)
    sign.add_argument("--message", metavar="TEXT", default="", help="why; kept with the change")
    add_lift_option(sign)
    add_identity_option(sign)
    add_office_options(sign)
    sign.set_defaults(run=_sign)


def add_approve(group: Group) -> None:
    """Add ``kms policy approve``."""
    approve = group.add(
        "approve",
        summary="add a signature to a proposal",
        description="Show what a proposed revision changes, computed from its documents on this machine, and"
        " sign it; or send a signature that `ssh-keygen -Y sign -n attested-kms/v1/policy` made over what"
        " `kms policy statement` prints. Exit status: 0 signed, 1 not what the server says it is.",
        example="kms policy approve sha256:38d1… --key bob.pem",
    )
    approve.add_argument("revision", metavar="REV", type=revision, help="the proposed revision")
    how = approve.add_mutually_exclusive_group(required=True)
    how.add_argument("--key", metavar="FILE", type=Path, help=KEY_HELP)
    how.add_argument(
        "--ssh-signature", metavar="FILE", type=Path, help="an armored SSH signature over the statement"
    )
    add_identity_option(approve)
    add_office_options(approve)
    approve.set_defaults(run=_approve)


def add_statement(group: Group) -> None:
    """Add ``kms policy statement``."""
    statement = group.add(
        "statement",
        summary="print the exact bytes of a proposal that operators sign",
        description="Print the exact bytes that operators sign, and nothing else, for `ssh-keygen -Y sign -n"
        " attested-kms/v1/policy`; on standard error what they change, computed on this machine.",
        example="kms policy statement sha256:38d1… > statement",
    )
    statement.add_argument("revision", metavar="REV", type=revision, help="the proposed revision")
    add_identity_option(statement)
    add_office_options(statement)
    statement.set_defaults(run=_statement)


def add_proposals(group: Group) -> None:
    """Add ``kms policy proposals``."""
    proposals = group.add(
        "proposals",
        summary="list what waits for signatures",
        example="kms policy proposals",
    )
    add_office_options(proposals)
    proposals.set_defaults(run=_proposals)


def add_lift_option(command: argparse.ArgumentParser) -> None:
    """Let a command put a policy in force that takes revocations back."""
    command.add_argument(
        "--lift-revocations",
        action="store_true",
        help="also where the policy lacks a revocation that stands now; refused otherwise",
    )


def _sign(arguments: argparse.Namespace) -> int:
    from kms.policy_folder.reading import read_folder

    files = read_folder(arguments.folder)
    policy = read_revision(files)
    key, identity = load_key(arguments.key), wanted_identity(arguments)

    async def work(office: "Office", actor: "Actor") -> int:
        proposal = await office.policies.propose(
            actor, files, message=arguments.message, lift_revocations=arguments.lift_revocations
        )
        checked = await check_proposal(office, actor, proposal, exactly(policy), identity=identity)
        return _signed(await send_signature(office, actor, checked, key), checked, arguments)

    return in_office(arguments, work)


def _approve(arguments: argparse.Namespace) -> int:
    if arguments.ssh_signature is not None:
        return _approve_by_ssh(arguments)
    key, identity = load_key(arguments.key), wanted_identity(arguments)

    async def work(office: "Office", actor: "Actor") -> int:
        checked = await _checked(office, actor, arguments.revision, identity)
        return _signed(await send_signature(office, actor, checked, key), checked, arguments)

    return in_office(arguments, work)


def _approve_by_ssh(arguments: argparse.Namespace) -> int:
    from kms.policy.sshsig import parse_armored

    if arguments.identity is not None:
        raise WrongUse("--identity goes with `kms policy statement`: what is signed is checked before")
    text = read_file(arguments.ssh_signature, at_most=_MAX_SIGNATURE)
    signature = parse_armored(text.decode("ascii", "replace"))

    async def work(office: "Office", actor: "Actor") -> int:
        # What it was made over was shown by `kms policy statement`; over anything else it counts for nothing.
        return _signed(await office.policies.sign(actor, arguments.revision, signature), None, arguments)

    return in_office(arguments, work)


def _statement(arguments: argparse.Namespace) -> int:
    identity = wanted_identity(arguments)

    async def work(office: "Office", actor: "Actor") -> int:
        checked = await _checked(office, actor, arguments.revision, identity)
        if arguments.json:
            print_json({"statement": checked.statement.to_json()})
            return OK
        say(checked.lines(), error=True)
        sys.stdout.buffer.write(checked.statement.canonical)
        return OK

    return in_office(arguments, work)


def _proposals(arguments: argparse.Namespace) -> int:
    async def work(office: "Office", actor: "Actor") -> int:
        answer = await office.policies.proposals(actor)
        if arguments.json:
            print_json(answer)
            return OK
        say(_listed(fields(answer, "proposals").array("proposals", at_most=MOST)))
        return OK

    return in_office(arguments, work)


async def _checked(office: "Office", actor: "Actor", digest: str, identity: bytes | None) -> Checked:
    """Check the current proposal of a revision against the revision's own documents."""
    policy = (await fetch_revision(office, actor, digest)).revision
    proposal = await office.policies.proposal(actor, digest)
    return await check_proposal(office, actor, proposal, exactly(policy), identity=identity)


def _signed(proposal: "Json", checked: Checked | None, arguments: argparse.Namespace) -> int:
    if arguments.json:
        print_json(proposal)
        return OK
    if checked is not None:
        say(checked.lines())
    say(proposal_lines(proposal))
    return OK


def _listed(proposals: list[JsonValue]) -> Iterator[Line]:
    waiting, overtaken = list[JsonValue](), list[JsonValue]()
    for each in proposals:
        stale = fields(each, "proposal").take("stale") is True
        (overtaken if stale else waiting).append(each)
    yield Line(f"waiting: {len(waiting) or 'nothing'}", "bold")
    for each in waiting:
        yield from _waiting(each)
    for each in overtaken:
        yield from proposal_lines(each)


def _waiting(proposal: JsonValue) -> Iterator[Line]:
    yield from proposal_lines(proposal)
    read = fields(proposal, "proposal")
    yield Line(f"  proposed {when(read.text('made_at'))} by {read.text('author')}", "dim")
    if message := read.text("message"):
        yield Line(f"  {message}")
    diff = read.take("diff")
    if diff is None:
        yield Line("  its documents are not stored any more: propose it again", "red")
        return
    for line in diff_lines(fields(diff, "diff")):
        yield Line(f"  {line.text}", line.style)
