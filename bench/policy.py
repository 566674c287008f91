"""Policies at scale: a decision, and what a server does to take a revision over."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from bench.large_policy import ASK, CONTEXT, Size, canonical, guest
from bench.pairs import Case, by_turns
from bench.policy_server import TakeOver, store
from kms.database.engine import open_engine, sqlite_url
from kms.database.migrate import migrate
from kms.packaged import packaged_folder
from kms.policy.compiled import Policy
from kms.policy.decision import Allowed, decide
from kms.policy.revision import Revision

SMALL: Final = Size(apps=10, chips=100, chip_sets=4, images=10)
LARGE: Final = Size(apps=10_000, chips=100_000, chip_sets=40, images=2_000)
_GUESTS: Final = 500  # whose apps lie all over the policy, so that they are not all in the processor's cache
_MEGABYTE: Final = 1_000_000


def cases(folder: Path, rounds: int) -> Iterator[Case]:
    """Measure everything, with databases in `folder`; each case when it is done."""
    large = canonical(LARGE)
    yield _decision(large, rounds)
    yield _load(large, max(3, rounds // 10))
    yield from _server(folder, large, max(2, rounds // 15))


def _decision(large: bytes, rounds: int) -> Case:
    """One decision that allows, of guests of different apps."""
    case = by_turns(
        "a decision: 10,000 apps, 100,000 chips and 2,000 images",
        {"ours": _decisions(LARGE, large), "10 apps": _decisions(SMALL, canonical(SMALL))},
        rounds=rounds,
        aims={"10 apps": 1.2},
        limit=50e-6,
    )
    seconds = {who: tuple(each / _GUESTS for each in times) for who, times in case.seconds.items()}
    return Case(case.name, seconds, case.aims, case.limit)


def _decisions(size: Size, policy_bytes: bytes) -> Callable[[], None]:
    policy = Policy(Revision.from_canonical(policy_bytes))
    step = max(1, size.apps // _GUESTS)
    guests = [guest(size, number * step % size.apps) for number in range(_GUESTS)]

    def decide_all() -> None:
        for each in guests:
            if not isinstance(decide(policy, each, ASK, CONTEXT), Allowed):
                raise TypeError("an allowed guest was denied")

    return decide_all


def _load(large: bytes, rounds: int) -> Case:
    """From the stored bytes to a policy that decides; every rule of lint is checked on the way."""
    return by_turns(
        "a revision of that size read and compiled",
        {
            "ours": lambda: Policy(Revision.from_canonical(large)),
            "json.loads": lambda: json.loads(large),
        },
        rounds=rounds,
        aims={"json.loads": 20},
        limit=3.0,
    )


def _server(folder: Path, large: bytes, rounds: int) -> Iterator[Case]:
    """Start a server's process on its first revision, and then give it one that differs in a word."""
    edited = large.replace(b"application number 7", b"application number seven")
    runs = [_in_a_server(folder / str(number), [large, edited]) for number in range(rounds)]
    for which, name in enumerate(("its first revision", "an edited revision")):
        taken = [run[which] for run in runs]
        yield _figure(f"a server takes over {name}", [each.in_force for each in taken], limit=3.0)
        yield _figure(f"{name}: and all its images are computed", [each.filled for each in taken])
        yield _figure(f"{name}: longest stall of the event loop", [each.stall for each in taken])
        memory = [each.memory / _MEGABYTE for each in taken]
        yield _figure(f"{name}: the process's peak memory", memory, limit=300.0, unit="MB")


def _figure(name: str, values: list[float], *, limit: float | None = None, unit: str = "s") -> Case:
    return Case(name, {"ours": tuple(values)}, limit=limit, unit=unit)


def _in_a_server(folder: Path, revisions: list[bytes]) -> list[TakeOver]:
    folder.mkdir()
    asyncio.run(_prepare(folder, revisions))
    command = [sys.executable, "-m", "bench.policy_server", str(folder)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE)  # noqa: S603  # our own
    return [TakeOver(**each) for each in json.loads(run.stdout)]


async def _prepare(folder: Path, revisions: list[bytes]) -> None:
    engine = open_engine(sqlite_url(folder))
    await migrate(engine, packaged_folder("migrations"))
    await engine.dispose()
    await store(folder, revisions)
