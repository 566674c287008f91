"""``kms policy apply``, ``rollback``, ``revoke``: changing what is in force, signed where that is needed."""

import argparse
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kms.cli.office import add_office_options, in_office
from kms.cli.output import OK, REFUSED, WrongUse, print_json
from kms.cli.parsers import Group, span
from kms.cli.policy_fetching import fetch_revision
from kms.cli.policy_history import whole_candidate, whole_name
from kms.cli.policy_keys import KEY_HELP, add_identity_option, load_key, wanted_identity
from kms.cli.policy_signing import add_lift_option
from kms.cli.policy_statements import NotSigned, check_proposal, proposal_lines, send_signature
from kms.cli.policy_words import diff_lines
from kms.cli.reading import is_revision, read_candidate, read_revision, revision, revision_name
from kms.cli.saying import Line, fields, say
from kms.policy.findings import PolicyInvalid
from kms.policy.revision import Revision
from kms.policy.standing import REVOCABLE, with_revocation, with_standing_revocations

if TYPE_CHECKING:
    from kms.administration.office import Json, Office
    from kms.operators import Actor

_NOTHING: Final = "none"  # what is expected where nothing is in force
_GATE: Final = timedelta(days=30)


@dataclass(slots=True)
class _Desk:
    """Where a change is made, and by whom."""

    office: "Office"
    actor: "Actor"
    expect: str | None

    async def expected(self) -> str | None:
        """Give what must be in force: what the operator said, else what was when this was first asked.

        None where what stands in the database may not be used: whatever that is, it is to be replaced.
        """
        if self.expect is None:
            status = fields(await self.office.policies.status(self.actor), "status")
            active = status.take("active")
            if active is not None:
                self.expect = fields(active, "active").text("revision")
            elif status.take("trusted") is True:
                self.expect = _NOTHING
        return self.expect


# Asks for a change, and gives OUTCOME. The same again, once it is signed, is the same change.
_Act = Callable[[_Desk], Awaitable["Json"]]
# Computes what must come into force after a revision. Only that is signed.
_Meant = Callable[[_Desk, Revision | None], Awaitable[Revision]]


def add_apply(group: Group) -> None:
    """Add ``kms policy apply``."""
    apply = group.add(
        "apply",
        summary="put a policy in force",
        description="Put a policy folder, or a revision that is known, in force: all of it or nothing. A"
        " running server follows within 2 s. Only what was in force when the command began, or what --expect"
        " names, is replaced: of two operators who apply at once, the second is told what changed. Exit"
        " status: 0 in force, 1 refused or waiting for signatures, 2 unreadable.",
        example="kms policy apply policies/ --message 'new kernel' --gate",
    )
    apply.add_argument("policy", metavar="DIR|REV", help="the policy")
    apply.add_argument("--message", metavar="TEXT", default="", help="why; kept with the change")
    apply.add_argument(
        "--gate",
        metavar="TIME",
        type=span,
        nargs="?",
        const=_GATE,
        help="refuse it if it would newly refuse guests seen that lately (default 30d)",
    )
    apply.add_argument("--allow-refusals", action="store_true", help="though --gate would refuse it")
    add_lift_option(apply)
    _add_change_options(apply)
    apply.set_defaults(run=_apply)


def add_rollback(group: Group) -> None:
    """Add ``kms policy rollback``."""
    rollback = group.add(
        "rollback",
        summary="put an earlier revision in force again",
        description="Put an earlier revision in force again, together with every revocation that stands now:"
        " a new change, and signed like any other. Exit status as of apply.",
        example="kms policy rollback sha256:38d1… --message 'the new kernel does not boot'",
    )
    rollback.add_argument("revision", metavar="REV", type=revision_name, help="the earlier revision")
    rollback.add_argument("--message", metavar="TEXT", default="", help="why; kept with the change")
    _add_change_options(rollback)
    rollback.set_defaults(run=_rollback)


def add_revoke(group: Group) -> None:
    """Add ``kms policy revoke``."""
    revoke = group.add(
        "revoke",
        summary="revoke a chip, measurement, image, app, compose or product",
        description="Revoke one thing on top of what is in force. A revocation wins over everything, outlives"
        " edits of the folder and rollbacks, and ends only with a policy that is applied with"
        " --lift-revocations. Exit status as of apply.",
        example="kms policy revoke chip 38d1… --reason 'stolen from rack 7' --key alice.pem",
    )
    revoke.add_argument("kind", metavar="KIND", choices=REVOCABLE, help=", ".join(REVOCABLE))
    revoke.add_argument("value", metavar="VALUE", help="its id, hash or name")
    revoke.add_argument("--reason", metavar="TEXT", required=True, help="why; kept with the revocation")
    _add_signing_options(revoke)
    add_office_options(revoke)
    revoke.set_defaults(run=_revoke, expect=None)


def _add_change_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--expect",
        metavar="REV",
        type=_expectation,
        help="what must be in force, or `none` (default: what is when the command begins)",
    )
    _add_signing_options(command)
    add_office_options(command)


def _add_signing_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--key", metavar="FILE", type=Path, help=KEY_HELP)
    add_identity_option(command)


def _expectation(text: str) -> str:
    return text if text == _NOTHING else revision(text)


def _apply(arguments: argparse.Namespace) -> int:
    if arguments.allow_refusals and arguments.gate is None:
        raise WrongUse("--allow-refusals goes with --gate: without it nothing is refused for that")
    new = read_candidate(arguments.policy)
    if isinstance(new, str):
        _name_whole_to_sign(arguments, new)
    gate = None if arguments.allow_refusals else arguments.gate

    async def apply(desk: _Desk) -> "Json":
        return await desk.office.policies.apply(
            desk.actor,
            await whole_candidate(desk.office, desk.actor, new),
            message=arguments.message,
            expect=await desk.expected(),
            gate=gate,
            lift_revocations=arguments.lift_revocations,
        )

    async def meant(desk: _Desk, _: Revision | None) -> Revision:
        if isinstance(new, str):
            return (await fetch_revision(desk.office, desk.actor, new)).revision
        return read_revision(new)

    return _change(arguments, apply, meant)


def _rollback(arguments: argparse.Namespace) -> int:
    _name_whole_to_sign(arguments, arguments.revision)

    async def rollback(desk: _Desk) -> "Json":
        return await desk.office.policies.rollback(
            desk.actor,
            await whole_name(desk.office, desk.actor, arguments.revision),
            message=arguments.message,
            expect=await desk.expected(),
        )

    async def meant(desk: _Desk, previous: Revision | None) -> Revision:
        target = (await fetch_revision(desk.office, desk.actor, arguments.revision)).revision
        return target if previous is None else with_standing_revocations(target, previous, None)

    return _change(arguments, rollback, meant)


def _revoke(arguments: argparse.Namespace) -> int:
    async def revoke(desk: _Desk) -> "Json":
        return await desk.office.policies.revoke(
            desk.actor, arguments.kind, arguments.value, reason=arguments.reason
        )

    async def meant(_: _Desk, previous: Revision | None) -> Revision:
        if previous is None:
            raise NotSigned("there is no policy in force to revoke anything of")
        try:
            return with_revocation(previous, arguments.kind, arguments.value, reason=arguments.reason)[0]
        except PolicyInvalid as error:
            raise NotSigned(f"{arguments.value}: {error.findings[0].message}") from None

    return _change(arguments, revoke, meant)


def _name_whole_to_sign(arguments: argparse.Namespace, name: str) -> None:
    """Refuse to sign by the beginning of a name: the server would choose what is signed."""
    if arguments.key is not None and not is_revision(name):
        raise WrongUse("what is signed is named whole: sha256: and 64 hex digits")


def _change(arguments: argparse.Namespace, act: _Act, meant: _Meant) -> int:
    key = None if arguments.key is None else load_key(arguments.key)
    identity = wanted_identity(arguments)

    async def work(office: "Office", actor: "Actor") -> int:
        desk = _Desk(office, actor, arguments.expect)
        outcome = await act(desk)
        waiting = outcome.get("proposal")
        if key is not None and isinstance(waiting, dict):
            checked = await check_proposal(office, actor, waiting, partial(meant, desk), identity=identity)
            waiting = await send_signature(office, actor, checked, key)
            outcome = {**outcome, "proposal": waiting}
            if waiting.get("ready") is True:
                outcome = await act(desk)
        if arguments.json:
            print_json(outcome)
        else:
            say(_lines(outcome))
            if key is not None and waiting is None:
                say([Line("nothing waited for a signature, so the key was not used")])
        return OK if outcome.get("applied") is True else REFUSED

    return in_office(arguments, work)


def _lines(outcome: "Json") -> Iterator[Line]:
    read = fields(outcome, "outcome")
    proposal = read.take("proposal")
    yield from diff_lines(read.object("diff"))
    if read.take("applied") is not True:
        yield from proposal_lines(proposal)
    elif read.take("changed") is True:
        yield Line(f"in force: {read.text('revision')} (change {read.integer('sequence')})", "green")
    else:
        yield Line(f"already in force: {read.text('revision')}")
