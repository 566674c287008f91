"""A change that is called narrowing never lets in a guest that was not let in before.

Fewer operators sign such a change, so this is what an attacker who is one of them would look for.
"""

from collections.abc import Iterable
from dataclasses import fields, replace
from datetime import datetime
from functools import cache
from itertools import product
from random import Random
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from kms.evidence.app_document import AppIdentity
from kms.evidence.launch import Launch, LaunchFacts, LaunchFinder
from kms.identifiers import Measurement
from kms.judgement import Circumstances, bind_app, context_of, name_app
from kms.measurement.images import Binding, LaunchHint
from kms.policy.compiled import Policy
from kms.policy.decision import Allowed, AppClaim, Ask, decide
from kms.policy.diff import Effect, differences, intent_of
from kms.policy.history import Intent
from kms.snp.advisories import NO_ADVISORIES
from kms.snp.verify import VerifiedReport
from tests.unit.policy.samples import APP_ID, BOOT_INFO, COMPOSE, key
from tests.unit.policy.variants import (
    ATTRIBUTES,
    CONCERNED,
    EARLY,
    HASHES,
    LAUNCHES,
    MEMBERS,
    Edit,
    Shown,
    Variant,
    absent,
    allows,
    every_edit,
    guests_about,
    kind_of,
    may_be_shown,
    measurement_of,
    present,
    says,
    variant,
)

EVERY_EDIT = list(every_edit())
GUESTS = {kind: list(guests_about(kind)) for kind in CONCERNED}


def narrows(old: Variant, new: Variant) -> bool:
    return intent_of(differences(old.revision, new.revision)) is Intent.NARROW


@cache
def allowed_by(edit: Edit, kind: str) -> frozenset[int]:
    policy = variant(frozenset({edit})).policy
    return frozenset(number for number, shown in enumerate(GUESTS[kind]) if allows(policy, shown))


@pytest.mark.parametrize("document", MEMBERS)
def test_no_narrowing_edit_allows_anybody(document: str) -> None:
    """Every member of every document, from each value to each other, and guests that tell values apart."""
    edits = [each for each in EVERY_EDIT if each.document == document]
    kind, narrowing, still_allowed = kind_of(document), 0, 0
    for before in edits:
        for after in edits:
            if before.member != after.member or before == after:
                continue
            old, new = variant(frozenset({before})), variant(frozenset({after}))
            if narrows(old, new):
                newly = allowed_by(after, kind) - allowed_by(before, kind)
                wrong = [GUESTS[kind][each] for each in newly]
                wrong = [shown for shown in wrong if may_be_shown(shown, old.side, new.side)]
                assert not wrong, (before, after, wrong)
                narrowing += 1
                still_allowed += len(allowed_by(after, kind))
    # Half of all edits narrow, but for those that are entangled with others.
    assert narrowing >= len(edits) / 4
    assert still_allowed


# Several edits at once, over policies that already differ from the first: most traps are about two documents.
_SINGLE = st.sampled_from(EVERY_EDIT)
_SHOWN = st.dictionaries(st.sampled_from(sorted(ATTRIBUTES)), st.integers(0, 6), max_size=3)


def changed(edits: Iterable[Edit], by: Iterable[Edit] = ()) -> Variant:
    """Give the policy of these edits, with others in the place of those of the same members."""
    chosen = {(each.document, each.member): each for each in (*edits, *by)}
    return variant(frozenset(chosen.values()))


def shown_by(choices: dict[str, int]) -> Shown:
    return {name: ATTRIBUTES[name][index % len(ATTRIBUTES[name])] for name, index in choices.items()}


def newly_allowed(old: Variant, new: Variant, guests: Iterable[Shown]) -> tuple[list[Shown], int]:
    """Give the guests that only `new` allows, and how many it allows."""
    allowed = [shown for shown in guests if allows(new.policy, shown)]
    newly = [shown for shown in allowed if not allows(old.policy, shown)]
    return [shown for shown in newly if may_be_shown(shown, old.side, new.side)], len(allowed)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(_SINGLE, max_size=4),
    st.lists(_SINGLE, min_size=1, max_size=3),
    st.lists(_SHOWN.map(shown_by), min_size=30, max_size=30),
)
def test_no_narrowing_change_allows_anybody(
    background: list[Edit], edits: list[Edit], guests: list[Shown]
) -> None:
    one, other = changed(background), changed(background, edits)
    for old, new in ((one, other), (other, one)):
        if narrows(old, new):
            newly, allowed = newly_allowed(old, new, guests)
            event(f"narrows, and {'allows some' if allowed else 'allows none'} of the guests")
            assert not newly


def test_changes_that_narrow_and_still_allow_are_met() -> None:
    """The property above is about something: of such pairs, many narrow, and many guests are allowed."""
    random, narrowing, still_allowed = Random(5), 0, 0
    attributes = sorted(ATTRIBUTES)
    for _ in range(60):
        background = random.sample(EVERY_EDIT, random.randint(0, 4))
        edits = random.sample(EVERY_EDIT, random.randint(1, 3))
        guests = [
            shown_by({name: random.randint(0, 6) for name in random.sample(attributes, random.randint(0, 3))})
            for _ in range(30)
        ]
        one, other = changed(background), changed(background, edits)
        for old, new in ((one, other), (other, one)):
            if narrows(old, new):
                newly, allowed = newly_allowed(old, new, guests)
                assert not newly
                narrowing += 1
                still_allowed += allowed
    assert narrowing > 30
    assert still_allowed > 200


# Which launch a measurement shows is found by the policy too, and so is what the launch is held to. So which
# guests are let in is also asked of the whole path from the measurement on, with whatever hint they like.
_IMAGE_EDITS = [
    each
    for each in EVERY_EDIT
    if kind_of(each.document) == "image"
    or (each.document, each.member) in {("app", "images"), ("app", "binding"), ("revoked", "images")}
]
_HINTS = [
    *(LaunchHint(image=name) for name in ATTRIBUTES["image"]),
    *(LaunchHint(description=launch) for launch in LAUNCHES.values()),
]
_CLAIM = AppClaim(app_id=APP_ID, compose_hash=COMPOSE)
_MACHINES = [(1, "EPYC-v4"), (3, "EPYC-v4"), (6, "EPYC-v4"), (3, "EPYC-Milan")]


@cache
def let_in(policy: Policy) -> frozenset[tuple[str, int, str, Binding, str]]:
    """Give the guests that get a key: by launch, vCPUs, their type, what binds the app, and the time."""
    finder = LaunchFinder(policy)
    guests = product(LAUNCHES, _MACHINES, Binding)
    return frozenset(
        (launch, vcpus, vcpu_type, binding, now)
        for launch, (vcpus, vcpu_type), binding in guests
        for now in _times(policy, finder, measurement_of(launch, vcpus, vcpu_type, 1), binding)
    )


def _times(policy: Policy, finder: LaunchFinder, measurement: Measurement, binding: Binding) -> set[str]:
    """Give the times at which a guest that shows this measurement gets a key, by one hint or another."""
    verified = cast("VerifiedReport", SimpleNamespace(report=SimpleNamespace(measurement=measurement)))
    document = None
    if binding is not Binding.CMDLINE:
        document = AppIdentity(app_id=APP_ID, compose_hash=COMPOSE, instance_id=None, binding=binding)
    app = name_app(_CLAIM, document)
    return {
        now
        for launch in {finder.find(verified, hint, app) for hint in _HINTS}
        for now in ATTRIBUTES["now"]
        if launch is not None and _gets_a_key(policy, launch, document, datetime.fromisoformat(now))
    }


def _gets_a_key(policy: Policy, launch: Launch, document: AppIdentity | None, now: datetime) -> bool:
    identity, _ = bind_app(policy, launch, document)
    if identity is None:
        return False
    boot_info = replace(
        BOOT_INFO,
        **{each.name: getattr(launch, each.name) for each in fields(LaunchFacts)},
        app_id=identity.app_id,
        compose_hash=identity.compose_hash,
        instance_id=None,
        binding=identity.binding,
    )
    circumstances = Circumstances(
        now=now, development=False, kms_identities=frozenset(), advisories=NO_ADVISORIES
    )
    context = context_of(circumstances, launch, document)
    return isinstance(decide(policy, boot_info, Ask((key("disk"),), _CLAIM), context), Allowed)


_EMPTY, _PLAIN, _BARE = (HASHES[each].hex() for each in ("empty", "plain", "bare"))
_DSTACK_TOO = says("app", "binding", ["host-data", "dstack-mr-config"])
_BY_HASH = says("app", "images", [_EMPTY])
_BARE_IS_REVOKED = says("revoked", "images", [_BARE])


@pytest.mark.parametrize(
    ("edits", "change", "by"),
    [
        pytest.param(
            [says("app", "images", ["os-2", "os-2-empty"]), _DSTACK_TOO],
            says("app", "images", ["os-2-empty"]),
            "image os-2",
            id="the app delists an image that held another to what it enforced",
        ),
        pytest.param(
            [says("app", "images", ["os-2", "os-2-empty"]), _DSTACK_TOO],
            says("os-2", "vcpus", {"min": 1, "max": 2}),
            "image os-2",
            id="that image is for fewer machines",
        ),
        pytest.param(
            [
                says("app", "images", ["os-template", "os-filled"]),
                says("app", "binding", ["host-data", "cmdline"]),
            ],
            says("app", "images", ["os-template"]),
            "image os-filled",
            id="a command line that was filled in held its template",
        ),
        pytest.param(
            [absent("os-2-empty"), says("app", "images", ["os-2", _EMPTY]), _DSTACK_TOO],
            _BY_HASH,
            "image os-2",
            id="an image held those that guests describe",
        ),
        pytest.param(
            [
                absent("os-2-empty"),
                says("app", "images", ["os-2", _EMPTY]),
                says("os-2", "expires_at", EARLY),
            ],
            _BY_HASH,
            "image os-2",
            id="an image past its date stood before what guests describe",
        ),
        pytest.param(
            [
                absent("os-2-empty"),
                says("app", "images", ["os-2", _EMPTY]),
                says("os-2", "expires_at", EARLY),
            ],
            present("os-2-empty"),
            "image os-2-empty",
            id="the same, and it is described by a document",
        ),
        pytest.param(
            [says("app", "images", [_PLAIN]), absent("os-1-large")],
            absent("image"),
            "image os-1",
            id="an image is listed by its hash, and its document goes",
        ),
        pytest.param(
            [_BARE_IS_REVOKED, says("app", "images", ["os-2-empty"])],
            absent("os-2"),
            "image os-2-empty",
            id="a revoked image goes, and what measures alike comes back",
        ),
        pytest.param(
            [_BARE_IS_REVOKED, absent("os-2-empty"), _BY_HASH],
            absent("os-2"),
            "image os-2",
            id="a revoked image goes, and a guest describes what measures alike",
        ),
        pytest.param(
            [says("revoked", "images", ["os-1"]), says("app", "images", [_PLAIN]), absent("os-1-large")],
            says("image", "launch", "bare"),
            "image os-1",
            id="the name of a revoked image is given to another launch",
        ),
    ],
)
def test_documents_together_let_in_what_none_shows_alone(edits: list[Edit], change: Edit, by: str) -> None:
    old, new = changed(edits), changed(edits, [change])
    assert let_in(new.policy) - let_in(old.policy)
    widening = {
        each.document for each in differences(old.revision, new.revision) if each.effect is Effect.WIDENS
    }
    assert widening == {by}


def test_no_narrowing_change_of_images_lets_anybody_in() -> None:
    random, narrowing, still_let_in = Random(1), 0, 0
    for _ in range(15):
        edits = random.sample(_IMAGE_EDITS, random.randint(0, 4))
        one = changed(edits)
        other = changed(edits, random.sample(_IMAGE_EDITS, random.randint(1, 3)))
        for old, new in ((one, other), (other, one)):
            if narrows(old, new):
                assert not let_in(new.policy) - let_in(old.policy)
                narrowing += 1
                still_let_in += len(let_in(new.policy))
    assert narrowing > 5
    assert still_let_in > 50
