"""The corpus of forged evidence, tried as a client: no case of it gets a key (field lesson 1).

A report is bound to its request, so the stored bytes of `tests/golden/forged/` would all be refused for that
alone. Each case is made again by its recipe, over the live request and for a guest that the policy allows.
"""

import asyncio
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from kms.desk import ReleaseDesk
from kms.encoding import b64url
from kms.errors import NobodyToAsk
from kms.http.problems import KINDS
from kms.ports import Collateral
from kms.request import report_data
from kms.simulator.authorities import Role
from kms.snp.certificate import Certificate
from kms.snp.chain import Chain
from kms.snp.endorsement import load_der
from kms.snp.kds_paths import Wanted
from kms.snp.product import Product
from kms.snp.report import Report
from kms.snp.revocation import Revocation, RevocationList, RevocationMode, load_revocation_list
from kms.snp.roots import TrustedRoots
from kms.snp.verify import VerifiedReport, verify
from kms.strict_json import JsonValue
from tests.golden.forged.corpus import ALL_LAYOUTS, recipes
from tests.golden.forged.draft import AT, Layout, Rules
from tests.golden.forged.genuine import (
    CSP_ID,
    OTHER_CSP_IDS,
    Guest,
    authority_key,
    genuine,
    hierarchy,
    spki_sha256,
)
from tests.golden.forged.recipes import Expect, Recipe
from tests.world import Answer, World, open_world

ROOTS = TrustedRoots(pins={spki_sha256(authority_key(product, Role.ARK)): product for product in Product})

NOBODY = Guest(measurement=bytes(48), host_data=bytes(32), report_data=bytes(64))


class OnlyLists:
    """Collateral of which only revocation lists are known, and that keeps nothing of one case for another."""

    def __init__(self) -> None:
        self.lists: tuple[RevocationList, ...] = ()

    async def authorities(self) -> tuple[Certificate, ...]:
        return ()

    async def revocation_lists(self) -> tuple[RevocationList, ...]:
        return self.lists

    async def leaves(self, report: Report) -> tuple[Certificate, ...]:
        return ()

    async def fetch(self, wanted: Wanted, client: str) -> None:
        raise NobodyToAsk("nobody is asked in these tests")

    def keep(self, chain: Chain, lists: tuple[RevocationList, ...] = ()) -> None:
        pass


def _with_corpus(desk: ReleaseDesk, mode: str, collateral: Collateral | None = None) -> ReleaseDesk:
    """Trust the roots of the corpus, and know nothing but what `collateral` gives."""
    authenticator = desk.authenticator
    rules = replace(authenticator.revocation, mode=RevocationMode(mode), max_age=Rules().max_age)
    trusting = replace(
        authenticator,
        roots=ROOTS,
        revocation=rules,
        collateral=collateral or authenticator.collateral,
    )
    return replace(desk, authenticator=trusting)


async def _allow(world: World, layout: Layout) -> None:
    """Allow the honest guest: nothing but the evidence is to be in the way of a forgery."""
    world.now[0] = AT
    nothing = dict.fromkeys(world.chip.reported_tcb.components(), 0)
    await world.apply_changed(
        app={"chips": "any", "guest": "g"},
        guest={"signers": ["vcek", "vlek"], "csp": [CSP_ID, *OTHER_CSP_IDS]},
        tcb={"products": {layout.product.value: nothing}, "provisional_firmware": "allow"},
    )


async def _post(world: World, recipe: Recipe, collateral: OnlyLists | None = None) -> Answer:
    """Make the case over a live request, and send it."""
    request = await world.request()
    guest = Guest(
        measurement=world.machine.guest.measurement,
        host_data=world.machine.guest.host_data,
        report_data=report_data(request),
    )
    evidence = recipe.draft(guest).evidence()
    if collateral is not None:
        collateral.lists = tuple(
            load_revocation_list(each.der, line=None if each.of is None else each.of.line)
            for each in evidence.rules.lists
        )
    document = b64url(world.machine.app_document or b"")
    launch: dict[str, JsonValue] = {"launch": world.machine.hint(), "app_document": document}
    return await world.post(request, {**evidence.to_json(), **launch})


def _check(answer: Answer, expect: Expect) -> None:
    if expect.code is None:
        assert (answer.status, "sealed" in answer.body) == (200, True), answer.body
    else:
        # A reason that only repeats the code is not told.
        told = (reason for reason in expect.reasons if reason != expect.code)
        answer.check_refused(KINDS[expect.code].status, expect.code, *told)


@pytest.mark.parametrize("layout", ALL_LAYOUTS, ids=lambda layout: layout.name)
async def test_lesson_01_only_genuine_evidence_gets_a_key(
    layout: Layout, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    """Also: what proves nothing spends nothing."""
    by_mode: dict[str, list[Recipe]] = defaultdict(list)
    for recipe in recipes(layout):
        by_mode[recipe.draft(NOBODY).rules.mode].append(recipe)
    for mode, some in by_mode.items():
        collateral = OnlyLists()
        change = partial(_with_corpus, mode=mode, collateral=collateral)
        folder = tmp_path / mode
        folder.mkdir()
        spent = 0
        async with open_world(folder, hierarchy(layout.product), change_desk=change) as world:
            await _allow(world, layout)
            for recipe in some:
                with subtests.test(recipe.name):
                    expect = recipe.expect.over_http or recipe.expect
                    answer = await _post(world, recipe, collateral)
                    spent += answer.status == 200
                    _check(answer, expect)
                    assert await world.spent() == spent


async def test_what_honest_guests_left_behind_helps_no_forger(tmp_path: Path) -> None:
    """The store has the genuine chain. Who gets a key now has a report that this chain proves."""
    layout = ALL_LAYOUTS[0]
    change = partial(_with_corpus, mode="when-available")
    released: set[str] = set()
    async with open_world(tmp_path, hierarchy(layout.product), change_desk=change) as world:
        await _allow(world, layout)
        honest, *others = recipes(layout)
        _check(await _post(world, honest), honest.expect)
        await _until_kept(world, next(each for each in others if each.title == "without-certificates"))
        for recipe in others:
            if recipe.expect.code is None or recipe.draft(NOBODY).rules != Rules():
                continue
            answer = await _post(world, recipe)
            if answer.status != 200:
                # Perhaps for another reason than without the store: another chain fits furthest.
                _check(answer, replace(recipe.expect, over_http=None, reasons=tuple(answer.reasons)))
                continue
            assert _is_proven(recipe), recipe.title
            released.add(recipe.title)
    # A host that sends no certificate, a stale one, or a broken root does the guest no harm then.
    assert released >= {"without-certificates", "leaf-alone", "root-expired", "snp-of-an-older-certificate"}
    assert not any("report" in title or "chain-of" in title for title in released)


async def _until_kept(world: World, bare: Recipe) -> None:
    """Wait until a guest that sends no certificates is served: what is kept is stored in the background."""
    for _ in range(200):
        if (await _post(world, bare)).status == 200:
            return
        await asyncio.sleep(0.05)
    pytest.fail("nothing was kept of an honest guest's certificates")


def _is_proven(recipe: Recipe) -> bool:
    """Say whether the genuine chain proves the report of a forgery."""
    forged, honest = recipe.draft(NOBODY), genuine(recipe.layout, NOBODY)
    chain = [load_der(part.der) for part in honest.parts.values()]
    rules = Revocation(mode=RevocationMode.OFF, max_age=Rules().max_age)
    return isinstance(verify(Report.parse(forged.report()), chain, ROOTS, AT, rules), VerifiedReport)
