"""``python -m bench.policy_server FOLDER``: what a change of policy costs the process of a server.

A process of its own, because what one once needed it keeps. It prints one line of JSON.
"""

import asyncio
import json
import logging
import resource
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

import structlog
from sqlalchemy import insert, select, update

import kms.serving  # noqa: F401  # for its memory
from bench.large_policy import NOW
from kms.database.engine import open_engine, sqlite_url, writing
from kms.database.policies import FollowedPolicies, PolicyStore
from kms.database.schema import active_policy, policy_revisions
from kms.policy.revision import digest_of

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
    engine = open_engine(sqlite_url(folder))
    async with writing(engine) as connection:
        for each in revisions:
            await connection.execute(
                insert(policy_revisions).values(
                    revision=digest_of(each), documents=each, author="", message="", created_at=""
                )
            )
        await connection.execute(
            insert(active_policy).values(id=1, revision=digest_of(revisions[0]), sequence=1, activated_at="")
        )
    await engine.dispose()


async def take_over_each(folder: Path) -> list[TakeOver]:
    """Take over every revision in the database, one after the other."""
    engine = open_engine(sqlite_url(folder))
    async with writing(engine) as connection:
        digests = [row.revision for row in await connection.execute(select(policy_revisions.c.revision))]
        first = (await connection.execute(select(active_policy.c.revision))).scalar_one()
    policies = FollowedPolicies(PolicyStore(engine, lambda: NOW))
    taken: list[TakeOver] = []
    for digest in [first, *(each for each in digests if each != first)]:
        async with writing(engine) as connection:
            await connection.execute(update(active_policy).values(revision=digest))
        taken.append(await _take_over(policies))
    await engine.dispose()
    return taken


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
