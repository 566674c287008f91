"""What-if: every recorded guest judged by another policy, before that policy is in force.

A guest is judged by what it proved then and by what is known now: the clock, AMD's bulletins, the images of
the candidate. What counts is the last that was recorded of it: a guest that runs something newer since, or
elsewhere, is not refused because the candidate refuses what it ran before.
"""

import json
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from hashlib import sha256
from typing import Final, NamedTuple, TypeAlias

from kms.administration.office import Json
from kms.boot_info import BootInfo
from kms.checks import failures
from kms.evidence.launch import LaunchFinder
from kms.identifiers import AppId, ChipId
from kms.judgement import Circumstances, bind_app, check_measurement, context_of, name_app
from kms.ledger.entries import RELEASED, timestamp
from kms.ledger.recorded import RecordDamaged, RecordedDecision
from kms.operator_ports import Records
from kms.policy.compiled import Policy
from kms.policy.decision import AppClaim, Denied, decide
from kms.release import MEASUREMENT_UNKNOWN, POLICY_DENIED
from kms.strict_json import JsonValue

MOST_RECORDS: Final = 200_000
MOST_GROUPS: Final = 1_000
_PAUSE_AFTER: Final = 10  # records: a millisecond
# What policies decide. Of any other refusal a candidate says nothing.
_BY_POLICY: Final = frozenset({MEASUREMENT_UNKNOWN, POLICY_DENIED})
# The members of an entry that decide what is judged, and whose it is.
_FACTS: Final = ("boot_info", "document", "claim", "keys", "outcome", "code")


class Verdict(NamedTuple):
    """What a policy says of a recorded guest: `reasons` are the codes of a refusal.

    `boot_info` is what a release would make of it now: with the launch and app that this policy finds.
    """

    allowed: bool
    reasons: tuple[str, ...]
    boot_info: BootInfo


def judge_again(
    policy: Policy, launches: LaunchFinder, recorded: RecordedDecision, circumstances: Circumstances
) -> Verdict | None:
    """Judge a recorded guest and what it asked for as a release would now, but for epochs.

    `launches` are those of the policy's images. None where the record does not hold what a policy judges:
    nothing was proven, or it was refused for something else.
    """
    proven = recorded.boot_info
    if proven is None or (recorded.outcome != RELEASED and recorded.code not in _BY_POLICY):
        return None
    document, advisories = recorded.document, circumstances.advisories
    launch = launches.find_again(proven.measurement, proven.launch, name_app(recorded.ask.app, document))
    known = check_measurement(proven.measurement, launch)
    if launch is None:
        return Verdict(False, failures((known,)), proven.as_launched(None, document, advisories))
    identity, bound = bind_app(policy, launch, document)
    boot_info = proven.as_launched(launch, identity, advisories)
    if identity is None:
        return Verdict(False, failures((bound,)), boot_info)
    decision = decide(policy, boot_info, recorded.ask, context_of(circumstances, launch, document))
    reasons = decision.reasons if isinstance(decision, Denied) else ()
    return Verdict(not reasons, reasons, boot_info)


async def what_if(
    candidate: Policy,
    launches: LaunchFinder,
    records: Records,
    *,
    since: datetime,
    circumstances: Circumstances,
    in_force: Policy | None,
    pause: Callable[[], Awaitable[None]],
) -> Json:
    """Judge what is recorded from `since` on by a candidate, and say whom it would newly refuse or allow.

    Every record is counted once: in `unjudged`, or under the guest that it is of, in a group or in
    `still_refused` or `still_allowed`. `complete` is false where there are more records or groups than are
    told at once: then it is the latest records, and the groups of most guests. `in_force` gives names of
    apps that the candidate has no more.

    `launches` are the candidate's, filled beside the event loop (`LaunchFinder.fill`). `pause` is awaited
    every few records, so that guests are served meanwhile.

    Raises:
        LedgerUnavailable: the database did not answer.

    """
    rehearsal = _Rehearsal(candidate, launches, circumstances)
    taken, complete = 0, True
    async for entry in records.scan(since):
        if taken == MOST_RECORDS:
            complete = False
            break
        rehearsal.take(entry)
        taken += 1
        if taken % _PAUSE_AFTER == 0:
            await pause()

    def name_of(app_id: AppId) -> str | None:
        app = candidate.app(app_id) or (None if in_force is None else in_force.app(app_id))
        return None if app is None else app.name

    groups = rehearsal.newly_refused, rehearsal.newly_allowed
    refused, allowed = (_largest(of, name_of) for of in groups)
    return {
        "revision": candidate.revision,
        "since": timestamp(since),
        "judged": taken - rehearsal.unjudged.records,
        "unjudged": rehearsal.unjudged.records,
        "newly_refused": refused,
        "newly_allowed": allowed,
        "still_refused": rehearsal.still_refused.records,
        "still_allowed": rehearsal.still_allowed.records,
        "complete": complete and all(len(of) <= MOST_GROUPS for of in groups),
    }


@dataclass(slots=True)
class _Tally:
    """Counts records, each where the last of its guest is counted."""

    records: int = 0


class _Alike(NamedTuple):
    """What the guests of a group have in common."""

    app_id: AppId | None
    image: str | None
    chip_id: ChipId | None
    reasons: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class _Group(_Tally):
    """Guests whom the candidate treats otherwise. The first that is counted was the last to come."""

    alike: _Alike
    last_seen: datetime
    example: str
    guests: set[Hashable] = field(default_factory=set)

    def to_json(self, name_of: Callable[[AppId], str | None]) -> Json:
        """Give GROUP."""
        app_id, image, chip_id, reasons = self.alike
        return {
            "app_id": None if app_id is None else app_id.hex(),
            "app": None if app_id is None else name_of(app_id),
            "image": image,
            "chip_id": None if chip_id is None else chip_id.hex(),
            "reasons": list(reasons),
            "guests": len(self.guests),
            "records": self.records,
            "last_seen": timestamp(self.last_seen),
            "example": self.example,
        }


_Groups: TypeAlias = dict[_Alike, _Group]


def _largest(groups: _Groups, name_of: Callable[[AppId], str | None]) -> list[JsonValue]:
    found = sorted(
        groups.values(), key=lambda each: (len(each.guests), each.last_seen, each.example), reverse=True
    )
    return [each.to_json(name_of) for each in found[:MOST_GROUPS]]


class _Rehearsal:
    """Takes records, the newest first, and judges the last of each guest and of what it asked for."""

    def __init__(self, candidate: Policy, launches: LaunchFinder, circumstances: Circumstances) -> None:
        self.newly_refused: _Groups = {}
        self.newly_allowed: _Groups = {}
        self.still_refused, self.still_allowed, self.unjudged = _Tally(), _Tally(), _Tally()
        self._judge = partial(judge_again, candidate, launches, circumstances=circumstances)
        self._by_facts: dict[bytes, _Tally] = {}
        self._released: dict[Hashable, _Tally] = {}
        self._refused: dict[Hashable, _Tally] = {}

    def take(self, entry: JsonValue) -> None:
        """Count one record."""
        try:
            tally = self._tally(entry)
        except RecordDamaged:
            tally = self.unjudged
        tally.records += 1

    def _tally(self, entry: JsonValue) -> _Tally:
        members = entry if isinstance(entry, dict) else {}
        # A guest that comes every hour records the same facts each time: they are read and judged once.
        facts = sha256(json.dumps([members.get(name) for name in _FACTS]).encode()).digest()
        tally = self._by_facts.get(facts)
        if tally is None:
            tally = self._by_facts[facts] = self._first_of(RecordedDecision.from_json(entry))
        return tally

    def _first_of(self, recorded: RecordedDecision) -> _Tally:
        """Give where the first record of some facts is counted, and with it all that are like it."""
        if recorded.boot_info is None:
            return self.unjudged
        guest, runs = _guest(recorded, recorded.boot_info), _runs(recorded, recorded.boot_info)
        # Without an instance id, several guests of an app on one chip are told apart by what they run.
        subject = (guest, recorded.ask, None if recorded.boot_info.instance_id else runs)
        # A release is the last word on all that is older. A refusal is so only where it happened: whoever has
        # any SNP machine can be refused in the name of another's instance, and must not hide its releases.
        place = (subject, recorded.boot_info.chip_id, runs)
        last = self._released.get(subject) or self._refused.get(place)
        if last is not None:
            return last
        verdict = self._judge(recorded)
        if verdict is None:
            return self.unjudged
        tally = self._new_tally(recorded, recorded.boot_info, verdict, guest)
        if recorded.outcome == RELEASED:
            self._released[subject] = tally
        else:
            self._refused[place] = tally
        return tally

    def _new_tally(
        self, recorded: RecordedDecision, was: BootInfo, verdict: Verdict, guest: Hashable
    ) -> _Tally:
        was_released = recorded.outcome == RELEASED
        if verdict.allowed == was_released:
            return self.still_allowed if was_released else self.still_refused
        if was_released:
            groups, shown, reasons = self.newly_refused, was, verdict.reasons
        else:
            groups, shown, reasons = self.newly_allowed, verdict.boot_info, recorded.reasons
        alike = _Alike(shown.app_id, shown.image, shown.chip_id, reasons)
        first = _Group(alike=alike, last_seen=recorded.decided_at, example=recorded.release_id)
        group = groups.setdefault(alike, first)
        group.guests.add(guest)
        return group


def _guest(recorded: RecordedDecision, proven: BootInfo) -> Hashable:
    """Tell guests apart: by app and instance, else by chip, else by the launch that the firmware numbered."""
    claim = recorded.ask.app or AppClaim()
    return proven.app_id or claim.app_id, proven.instance_id or proven.chip_id or proven.report_id


def _runs(recorded: RecordedDecision, proven: BootInfo) -> Hashable:
    """Give what runs: the launch, and the compose where one is named."""
    claim = recorded.ask.app or AppClaim()
    return proven.measurement, proven.compose_hash or claim.compose_hash
