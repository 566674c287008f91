"""``python -m bench.policy_server FOLDER``: what a change of policy costs the process of a server.

A process of its own, because what one once needed it keeps. It prints one line of JSON.
"""

import asyncio
import json
import logging
import resource
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

import structlog
from sqlalchemy import select

import kms.serving  # noqa: F401  # for its memory
from bench.large_policy import NOW
from kms.administration.changing import PolicyChanger
from kms.database.engine import open_engine, reading, sqlite_url
from kms.database.schema import policy_revisions
from kms.policy.history import ChangeKind, Intent, PolicyChange
from kms.policy.revision import Revision, digest_of
from kms.policy_following import FollowedPolicies
from tests.changer import follow, open_changer

_TICK: Final = 1e-3  # seconds


@dataclass(frozen=True, slots=True)
class TakeOver:
    """From the look at the pointer until the revision is in force, and until all its images are computed.

    `stall` is the longest that the event loop did not come round to a task that was due; all in seconds.
    `memory` is the most that the process has held since it began, in bytes.
    """

    in_force: float
    filled: float
    stall: float
    memory: int


async def store(folder: Path, revisions: list[bytes]) -> None:
    """Write revisions into the database in `folder`, as a server has them; the first is in force."""
    async with _changer(folder) as changer:
        for each in revisions:
            # Not read: the server is a child, and begins with the memory that this process held.
            stored = Revision(digest=digest_of(each), canonical=each, documents=())
            await changer.history.store(stored, None)
        await _move(changer, digest_of(revisions[0]))


async def take_over_each(folder: Path) -> list[TakeOver]:
    """Take over every revision in the database, one after the other."""
    async with _changer(folder) as changer:
        first = await changer.history.head()
        engine = open_engine(sqlite_url(folder))
        async with reading(engine) as connection:
            digests = [row.revision for row in await connection.execute(select(policy_revisions.c.revision))]
        await engine.dispose()
        policies = follow(changer)
        taken: list[TakeOver] = []
        for digest in [None, *(each for each in digests if first is None or each != first.revision)]:
            if digest is not None:
                await _move(changer, digest)
            taken.append(await _take_over(policies))
    return taken


@asynccontextmanager
async def _changer(folder: Path) -> AsyncIterator[PolicyChanger]:
    engine = open_engine(sqlite_url(folder))
    yield await open_changer(engine, folder, lambda: NOW)
    await engine.dispose()


async def _move(changer: PolicyChanger, digest: str) -> None:
    """Put a stored revision in force without reading it: what it costs the server is measured elsewhere."""
    head = await changer.history.head()
    change = PolicyChange(
        sequence=1 if head is None else head.sequence + 1,
        revision=digest,
        previous=None if head is None else head.revision,
        intent=Intent.WIDEN,
        kind=ChangeKind.APPLY,
        author="bench",
        message="",
        made_at=NOW,
    )
    await changer.history.append(change, expect=head, action=None)


async def _take_over(policies: FollowedPolicies) -> TakeOver:
    lags: list[float] = []
    watch = asyncio.create_task(_watch(lags))
    start = perf_counter()
    await policies.refresh()
    in_force = perf_counter() - start
    await policies.filled()
    filled = perf_counter() - start
    watch.cancel()
    with suppress(asyncio.CancelledError):
        await watch
    # Linux counts in KiB.
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return TakeOver(in_force=in_force, filled=filled, stall=max(lags), memory=memory)


async def _watch(lags: list[float]) -> None:
    while True:
        start = perf_counter()
        await asyncio.sleep(_TICK)
        lags.append(perf_counter() - start - _TICK)


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    print(json.dumps([asdict(each) for each in asyncio.run(take_over_each(Path(sys.argv[1])))]))
