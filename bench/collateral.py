"""What a server already has of AMD's certificates: from memory, and from its database."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bench.pairs import Case, Work, by_turns
from kms.database.collateral import CollateralDatabase
from kms.database.engine import open_engine, sqlite_url
from kms.database.migrate import migrate
from kms.kds.service import CollateralService
from kms.packaged import packaged_folder
from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.chain import build_chain
from kms.snp.endorsement import load_der
from kms.snp.kds_paths import VcekOf
from kms.snp.product import Product
from kms.snp.report import Report
from kms.snp.roots import TrustedRoots

_CHIPS: Final = 200
_NOW: Final = datetime(2026, 11, 21, 12, tzinfo=UTC)
_LIMIT: Final = 0.2e-3


def cases(folder: Path, rounds: int) -> Iterator[Case]:
    """Measure everything, with a database in `folder`; each case when it is done."""
    hierarchy = AmdHierarchy.generate(Product.MILAN, now=_NOW, rsa_bits=2048)
    chips = [_chip(hierarchy, number) for number in range(_CHIPS)]
    roots = TrustedRoots.with_development([load_der(hierarchy.ark.certificate)])
    engine = open_engine(sqlite_url(folder))
    store = CollateralDatabase(engine, lambda: _NOW)
    with asyncio.Runner() as runner:
        runner.run(migrate(engine, packaged_folder("migrations")))
        service = CollateralService(store=store, kds=None, roots=roots, clock=lambda: _NOW)
        for chip in chips:
            leaf, *authorities = map(load_der, chip.certificates())
            service.keep(build_chain(leaf, authorities, roots))
        runner.run(service.stop())  # which stores them
        yield from _cases(runner, service, store, chips, rounds)
        runner.run(engine.dispose())


def _cases(
    runner: asyncio.Runner,
    service: CollateralService,
    store: CollateralDatabase,
    chips: list[SimulatedChip],
    rounds: int,
) -> Iterator[Case]:
    reports = [Report.parse(chip.launch(bytes(48)).report(bytes(64))) for chip in chips]
    wanted = [VcekOf(chip.hierarchy.product, chip.chip_id, chip.reported_tcb) for chip in chips]

    def each(look_up: Callable[[int], Awaitable[object]]) -> Work:
        async def all_of_them() -> None:
            for number in range(_CHIPS):
                if await look_up(number) == ():
                    raise RuntimeError("what was kept is not there")

        return lambda: runner.run(all_of_them())

    hit = by_turns(
        f"certificate cache hit, {_CHIPS} chips",
        {
            "ours": each(lambda number: service.leaves(reports[number])),
            "SQLite": each(lambda number: store.vceks(Product.MILAN, chips[number].chip_id)),
        },
        rounds=rounds,
    )
    yield _for_one(hit)
    there = by_turns(
        "asking AMD for what is there",
        {"ours": each(lambda number: service.fetch(wanted[number], "192.0.2.1"))},
        rounds=rounds,
    )
    yield _for_one(there)


def _chip(hierarchy: AmdHierarchy, number: int) -> SimulatedChip:
    chip_id = simulated_chip_id(hierarchy.product, b"bench %d" % number)
    chip = SimulatedChip.typical(hierarchy, chip_id=chip_id, now=_NOW)
    return replace(chip, secret=bytes(chip_id[:32]))


def _for_one(case: Case) -> Case:
    seconds = {who: tuple(time / _CHIPS for time in times) for who, times in case.seconds.items()}
    return Case(case.name, seconds, limit=_LIMIT)
