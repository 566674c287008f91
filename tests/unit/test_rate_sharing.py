"""Servers that share limits, on one table and with a clock that the test moves."""

from collections.abc import Mapping

import pytest

from kms.buckets import Buckets
from kms.errors import LedgerUnavailable
from kms.rate_sharing import SharedLimits

RATE, BURST = 200, 2000


class Seconds:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Table:
    """`kms.rate_sharing.Takings` in memory; it can be gone."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], dict[str, int]] = {}
        self.gone = False
        self.writes = 0
        self.read = 0

    def _reach(self) -> None:
        if self.gone:
            raise LedgerUnavailable("gone")

    async def tell(self, server: str, period: int, taken: Mapping[str, int]) -> None:
        self._reach()
        self.writes += 1
        self.rows[server, period] = dict(taken)

    async def forget(self, server: str, before: int, *, others_before: int) -> None:
        self._reach()
        self.rows = {
            (who, period): taken
            for (who, period), taken in self.rows.items()
            if period >= (before if who == server else others_before)
        }

    async def told(
        self, server: str, after: Mapping[str, int], *, since: int
    ) -> Mapping[tuple[str, int], Mapping[str, int]]:
        self._reach()
        found = {
            (who, period): taken
            for (who, period), taken in self.rows.items()
            if who != server and period >= since and period > after.get(who, 0)
        }
        self.read += len(found)
        return found


class Servers:
    """Some servers, each with its own bucket."""

    def __init__(self, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = Seconds()
        self.table = Table()
        monkeypatch.setattr("kms.rate_sharing.time.time", self.seconds)
        self.buckets = [Buckets(RATE, BURST, self.seconds) for _ in range(number)]
        self.shared = [
            SharedLimits(self.table, {"a": each}, server=f"server {place}")
            for place, each in enumerate(self.buckets)
        ]

    async def round(self) -> None:
        for each in self.shared:
            await each.share()

    def take(self, key: str, tries: int) -> int:
        """Ask every server so often; how many were served."""
        return sum(each.retry_after(key) is None for each in self.buckets for _ in range(tries))

    async def flood(self, key: str, rounds: int) -> int:
        """Ask every server much more often than it serves, for so many half seconds."""
        served = 0
        for _ in range(rounds):
            for _ in range(5):
                served += self.take(key, 50)
                self.seconds.now += 0.1
            await self.round()
        return served


async def test_who_spreads_over_servers_has_about_the_limit_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = Servers(3, monkeypatch)
    await servers.round()
    served = await servers.flood("192.0.2.1", 120)
    one_alone = BURST + 60 * RATE
    assert 0.8 * one_alone < served < one_alone + 3 * BURST
    # What they got ahead of time at first has been paid back; from here on it is the limit of one.
    served = await servers.flood("192.0.2.1", 120)
    assert 0.7 * 60 * RATE < served < 1.15 * 60 * RATE
    assert servers.take("192.0.2.2", 100) == 300


async def test_nothing_is_written_for_those_who_ask_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = Servers(2, monkeypatch)
    for _ in range(100):
        for guest in range(50):
            assert servers.take(f"192.0.2.{guest}", 1) == 2
        servers.seconds.now += 10
        await servers.round()
    assert servers.table.writes == 0


async def test_a_server_that_starts_charges_nothing_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = Servers(2, monkeypatch)
    await servers.shared[0].share()
    assert servers.buckets[0].retry_after("a") is None
    for _ in range(500):
        servers.buckets[0].retry_after("a")
    await servers.shared[0].share()
    await servers.shared[1].share()
    assert sum(servers.buckets[1].retry_after("a") is None for _ in range(BURST + 1)) == BURST


async def test_each_taking_is_charged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = Servers(2, monkeypatch)
    await servers.round()
    for _ in range(500):
        servers.buckets[0].retry_after("a")
    await servers.shared[0].share()
    for _ in range(10):
        await servers.round()
    assert sum(servers.buckets[1].retry_after("a") is None for _ in range(BURST)) == BURST - 500


async def test_each_row_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = Servers(2, monkeypatch)
    await servers.round()
    await servers.flood("192.0.2.1", 100)
    assert 0 < servers.table.read <= servers.table.writes
    # Also what a server left behind that is no more, when nobody removes it.
    del servers.shared[1]
    read = servers.table.read
    for hours in (0, 1, 2):
        servers.seconds.now += hours * 3600
        for _ in range(5):
            await servers.round()
    assert servers.table.read - read <= 1
    assert not servers.shared[0]._charged


async def test_a_database_that_is_gone_lets_each_limit_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = Servers(3, monkeypatch)
    await servers.round()
    servers.table.gone = True
    served = await servers.flood("192.0.2.1", 120)
    assert served == pytest.approx(3 * (BURST + 60 * RATE), rel=0.05)
    servers.table.gone = False
    await servers.flood("192.0.2.1", 60)
    assert await servers.flood("192.0.2.1", 120) < 1.15 * 60 * RATE


async def test_rows_do_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = Servers(2, monkeypatch)
    await servers.flood("192.0.2.1", 500)
    assert len(servers.table.rows) <= 2 * 45
    # Those of a server that is no more go too, in the end.
    del servers.shared[1]
    servers.seconds.now += 7200
    await servers.flood("192.0.2.1", 50)
    assert {who for who, _ in servers.table.rows} == {"server 0"}
