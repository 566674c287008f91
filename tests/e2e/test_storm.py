"""Field lessons 35 and 36, and "nothing lost": many servers, one database, and no mercy.

Guests ask for keys of three servers, a challenge of one and the release of another, while servers are killed,
PostgreSQL is restarted, and a server stands still. Then the ledger is verified from the first entry to the
last by somebody who knows only the public formats.
"""

import asyncio
import json
import ssl
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import text

from kms.database.engine import open_engine, reading
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.e2e.lean_guest import Held, LeanGuest, Lost
from tests.e2e.rack import Rack
from tests.e2e.storm import Cluster, Weather, rage
from tests.ledger_verifier import verify_ledger
from tests.servers.postgresql import PostgresServer

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]

CHIPS = 12


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@dataclass(frozen=True, slots=True)
class Storm:
    """So many guests ask until so many keys are held, in this weather."""

    releases: int
    guests: int
    weather: Weather


SHORT = Storm(400, 24, Weather(kill_every=6, restart_at=3, pause_at=8, pause_for=3))
LONG = Storm(30_000, 48, Weather(kill_every=5, restart_at=60, pause_at=90, pause_for=4))


@pytest.mark.parametrize(
    "storm",
    [pytest.param(SHORT, id="short"), pytest.param(LONG, id="long", marks=pytest.mark.nightly)],
)
async def test_every_key_has_one_entry_whatever_is_killed(
    tmp_path: Path,
    simulated_hierarchies: Mapping[Product, AmdHierarchy],
    database: PostgresServer,
    storm: Storm,
) -> None:
    rack = Rack(tmp_path, simulated_hierarchies[Product.MILAN], CHIPS)
    with database.fresh_database() as url:
        cluster = Cluster(tmp_path, {**rack.settings, "KMS_DATABASE_URL": url}, 3)
        try:
            await asyncio.to_thread(cluster.start)
            held = Held()
            guests = [
                LeanGuest(rack.guest(number), cluster.ports, cluster.ca, held)
                for number in range(storm.guests)
            ]
            told = await _storm(guests, held, storm, cluster, database)
            await asyncio.to_thread(lambda: [each.wait_until_ready() for each in cluster.servers])
            leaves = await _verify(cluster, url, held)
        finally:
            await asyncio.to_thread(cluster.stop)
    assert "Traceback" not in cluster.log_text()
    print(f"\n{len(held.keys)} keys held, {leaves} entries verified; {told}; {held.lost} connections lost")
    print(dict(held.statuses), dict(held.codes))


async def _storm(
    guests: list[LeanGuest], held: Held, storm: Storm, cluster: Cluster, database: PostgresServer
) -> str:
    *fleet, replayer = guests
    over = asyncio.Event()
    began = time.monotonic()
    raging = asyncio.create_task(rage(cluster, database, storm.weather, over))
    replays = asyncio.create_task(_replay(replayer, over))
    try:
        await asyncio.gather(*(each.run(lambda: len(held.keys) < storm.releases) for each in fleet))
    finally:
        seconds = time.monotonic() - began
        over.set()
        refused, done = await replays, await raging
        for each in guests:
            await each.close()
    assert set(held.statuses) <= {200, 201, 429, 503}, (held.statuses, held.codes)
    assert len(set(held.keys.values())) == 1, "the disk key of one app is one key"
    return f"{seconds:.0f} s ({len(held.keys) / seconds:.0f}/s), {done}, {refused} replays refused"


async def _replay(guest: LeanGuest, over: asyncio.Event) -> int:
    """Send one request to every server at once, again and again: at most one of them may give a key."""
    refused = 0
    while not over.is_set():
        try:
            statuses = await guest.ask_everywhere()
        except (Lost, KeyError):  # no server, or no challenge
            continue
        finally:
            await asyncio.sleep(0.3)
        assert statuses.count(200) <= 1, statuses
        assert set(statuses) <= {200, 409, 429, 503}, statuses
        refused += 409 in statuses
    return refused


async def _verify(cluster: Cluster, url: str, held: Held) -> int:
    """Verify the ledger from outside, and that each key that is held is in it exactly once; give its size."""
    leaves = "SELECT entry, salt FROM ledger_leaves JOIN entries USING (place) ORDER BY number"
    engine = open_engine(url)
    try:
        async with reading(engine) as connection:
            total = (await connection.execute(text("SELECT count(*) FROM entries"))).scalar_one()
            rows = (await connection.execute(text(leaves))).all()
            for _ in range(100):
                if len(rows) == total:
                    break
                await asyncio.sleep(0.1)
                rows = (await connection.execute(text(leaves))).all()
            spent = (await connection.execute(text("SELECT count(*) FROM spent_challenges"))).scalar_one()
    finally:
        await engine.dispose()
    assert len(rows) == total, "what was recorded has a leaf within ten seconds"

    def verify() -> int:
        trust = ssl.create_default_context(cafile=str(cluster.ca))
        with httpx2.Client(base_url=cluster.servers[1].url, verify=trust, trust_env=False) as client:

            def fetched(path: str) -> bytes:
                answer = client.get(f"/ledger/{path}")
                assert answer.status_code == 200, (path, answer.text)
                return answer.content

            key = client.get("/v1/ledger").json()["key"]
            entries = [(row.salt, row.entry) for row in rows]
            return verify_ledger(fetched("checkpoint").decode(), key, entries, fetched)

    assert await asyncio.to_thread(verify) == total
    recorded = [json.loads(row.entry) for row in rows]
    released = Counter(each["release_id"] for each in recorded if each.get("outcome") == "released")
    assert all(released[each] == 1 for each in held.keys), "a key is held that has no entry, or several"
    assert set(released.values()) == {1}
    challenges = [each["challenge"] for each in recorded if each.get("challenge")]
    assert len(set(challenges)) == len(challenges) == spent, "a challenge was won twice"
    return int(total)
