"""The whole server: releases of real processes over kept-alive TLS, beside the floor made of their own parts.

A release is a request for a challenge and a release request. Slices of the floor, of P-384 verification alone
and of servers with one and with two workers take turns, and each ratio is the median over the turns: what
else the machine does meets all of them. Where the load shares the processors with the servers, the processor
time that a release costs says more than the throughput; both are given.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from time import perf_counter, process_time
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384

from bench.pairs import Case, Work
from bench.server_guests import Guests, http_post
from bench.server_ledger import grow
from bench.server_processes import Kms, Measured, floor_running
from bench.server_world import World
from tests.servers.postgresql import PostgresServer, find_postgresql

GUESTS: Final = (1, 16, 128)
_RELEASES: Final[Mapping[int, int]] = {1: 100, 16: 400, 128: 640}  # in a slice
_JUDGED_AT: Final = 16  # guests: where the aims are for
_OF_FLOOR: Final = 1 / 0.65
_OF_P384: Final = 1 / 0.3
_TWO_OF_ONE: Final = 1 / 1.7
_P99_OF_P50: Final = 10.0
_MEMORY: Final = 150.0  # MB, a worker
_READY: Final = 2.0  # seconds
_GROWN: Final = 1.1
_ENTRIES: Final = (10_000, 1_000_000)
_VERIFICATIONS: Final = 300  # in a slice
_BODY: Final = 8500  # bytes of a release request with a certificate table
FLOOR, ALONE, ONE, TWO = "floor", "P-384", "ours", "2 workers"


@dataclass(slots=True)
class _Turns:
    """What was seen of each contestant, turn by turn: seconds a release."""

    wall: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)
    middle: list[float] = field(default_factory=list)
    slowest: list[float] = field(default_factory=list)

    def add(self, who: str, wall: float, cpu: float) -> None:
        self.wall.setdefault(who, []).append(wall)
        self.cpu.setdefault(who, []).append(cpu)


def cases(folder: Path, rounds: int, *, growth: bool = True) -> Iterator[Case]:
    """Measure with SQLite, with PostgreSQL where it is installed, and how SQLite grows."""
    world = World(folder)
    yield from _started(folder / "started", world, rounds)
    yield from _database("SQLite", folder / "sqlite", world, rounds, None)
    if find_postgresql() is None:
        print("there is no PostgreSQL here: not measured")
    else:
        with PostgresServer() as server:
            yield from _database("PostgreSQL", folder / "postgresql", world, rounds, server)
    if growth:
        yield _growth(folder / "growth", world, rounds)


def _started(folder: Path, world: World, rounds: int) -> Iterator[Case]:
    """Time from the start of the process until it says that it is ready, over a database that is there."""
    seconds, memory = [], []
    for _ in range(max(3, rounds // 3) + 1):
        before = perf_counter()
        with Kms.running(folder / "data", world.settings) as kms:
            seconds.append(perf_counter() - before)
            memory.append(kms.memory())
    yield Case("from the start of the process until it is ready", {ONE: tuple(seconds[1:])}, limit=_READY)
    yield Case("memory of a worker that is ready", {ONE: tuple(memory)}, limit=_MEMORY, unit="MB")


def _database(
    name: str, folder: Path, world: World, rounds: int, postgres: PostgresServer | None
) -> Iterator[Case]:
    """Let servers of one and two workers on one kind of database, and the floor, take turns."""
    folder.mkdir()
    with ExitStack() as stack:

        def url() -> str | None:
            return None if postgres is None else stack.enter_context(postgres.fresh_database())

        floor = stack.enter_context(floor_running(folder / "floor", url()))
        servers = {
            who: stack.enter_context(_kms(folder / who.replace(" ", "-"), world, workers, url()))
            for who, workers in ((ONE, 1), (TWO, 2))
        }
        for number in GUESTS:
            of_all = f"{name}, {number} guests" if number > 1 else f"{name}, 1 guest"
            turns = _take_turns(number, world, rounds, floor, servers)
            yield from _compared(of_all, turns, judged=number == _JUDGED_AT)
        yield Case(
            f"{name}: memory of a worker after this",
            {ONE: (servers[ONE].memory(),), TWO: (servers[TWO].memory(),)},
            limit=_MEMORY,
            unit="MB",
        )


@contextmanager
def _kms(folder: Path, world: World, workers: int, url: str | None) -> Iterator[Kms]:
    settings = {**world.settings, "KMS_WORKERS": str(workers)}
    if url is not None:
        settings["KMS_DATABASE_URL"] = url
    with Kms.running(folder, settings) as kms:
        yield kms


def _take_turns(
    guests: int, world: World, rounds: int, floor: Measured, servers: Mapping[str, Kms]
) -> _Turns:
    turns, alone = _Turns(), _verification()
    empty = [http_post("/v1/releases", b"e" * _BODY)] * _RELEASES[guests]
    with ExitStack() as stack:
        opened = {who: stack.enter_context(closing(each.guests(guests))) for who, each in servers.items()}
        at_floor = stack.enter_context(closing(floor.guests(guests)))
        for turn in range(rounds + 1):
            seen = _Turns() if turn == 0 else turns  # the first is for warmth
            _verify(alone, seen)
            _release(FLOOR, floor, at_floor, empty, seen)
            for who, kms in servers.items():
                requests = world.requests(opened[who], _RELEASES[guests])
                _release(who, kms, opened[who], requests, seen)
    return turns


def _compared(name: str, turns: _Turns, *, judged: bool) -> Iterator[Case]:
    aims = {FLOOR: _OF_FLOOR, ALONE: _OF_P384} if judged else {}
    two = {ONE: _TWO_OF_ONE} if judged else {}
    yield _case(f"{name}: a release, one worker", turns.wall, (ONE, FLOOR, ALONE), aims)
    yield _case(f"{name}: its processor time, one worker", turns.cpu, (ONE, FLOOR, ALONE), {})
    yield _case(f"{name}: a release, two workers", turns.wall, (TWO, ONE, FLOOR), two)
    yield _case(f"{name}: its processor time, two workers", turns.cpu, (TWO, ONE), {})
    yield Case(
        f"{name}: how long a guest waits, one worker",
        {"p99": tuple(turns.slowest), "p50": tuple(turns.middle)},
        {"p50": _P99_OF_P50} if judged else {},
    )


def _case(
    name: str, seconds: Mapping[str, Sequence[float]], who: Sequence[str], aims: Mapping[str, float]
) -> Case:
    return Case(name, {each: tuple(seconds[each]) for each in who}, aims)


def _release(who: str, server: Measured, guests: Guests, requests: Sequence[bytes], turns: _Turns) -> None:
    before = server.cpu()
    done = guests.release(requests)
    turns.add(who, 1 / done.rate, (server.cpu() - before) / len(requests))
    if who == ONE:
        cuts = quantiles(done.latencies, n=100)
        turns.middle.append(cuts[49])
        turns.slowest.append(cuts[98])


def _verify(verification: Work, turns: _Turns) -> None:
    wall, cpu = perf_counter(), process_time()
    for _ in range(_VERIFICATIONS):
        verification()
    turns.add(ALONE, (perf_counter() - wall) / _VERIFICATIONS, (process_time() - cpu) / _VERIFICATIONS)


def _verification() -> Work:
    private = ec.generate_private_key(ec.SECP384R1())
    signed, scheme, public = os.urandom(672), ec.ECDSA(SHA384()), private.public_key()
    signature = private.sign(signed, scheme)
    return lambda: public.verify(signature, signed, scheme)


def _growth(folder: Path, world: World, rounds: int) -> Case:
    """Compare servers whose ledgers have few and many entries, taking turns."""
    folder.mkdir()
    turns, number = _Turns(), _JUDGED_AT
    with ExitStack() as stack:
        servers: dict[str, Kms] = {}
        for entries in _ENTRIES:
            data = folder / str(entries)
            grow(data, world, entries)
            servers[f"{entries:,}"] = stack.enter_context(Kms.running(data, world.settings))
        opened = {who: stack.enter_context(closing(each.guests(number))) for who, each in servers.items()}
        for turn in range(rounds + 1):
            for who, kms in servers.items():
                requests = world.requests(opened[who], _RELEASES[number])
                _release(who, kms, opened[who], requests, _Turns() if turn == 0 else turns)
    few, many = servers
    return _case(
        f"SQLite, {number} guests: a release by the number of entries", turns.wall, (many, few), {few: _GROWN}
    )
