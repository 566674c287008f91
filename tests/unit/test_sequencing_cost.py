"""What a round costs grows with what it takes, and hardly with the ledger: counted, not timed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from kms.anchor import FileAnchor
from kms.keys.root_messages import ledger_message, root_prf
from kms.ledger.checkpoint import Checkpoint
from kms.ledger.findings import Finding
from kms.ledger.ledger_key import derive_checkpoint_key
from kms.ledger.merkle import HASH_LENGTH, leaf_hash, root_of
from kms.ledger.tiles import DATA_LEVEL, TILE_WIDTH, Edge, edge_names, split_tile
from kms.ledger_ports import Growth, Leaf, LedgerHead, LedgerState, Recorded
from kms.sequencing import Sequencer
from tests.recording import entry_seal
from tests.roots import ROOT_SECRET
from tests.world import NOW

KEY: Final = derive_checkpoint_key(root_prf(ROOT_SECRET, ledger_message()), bytes(32))
DIGEST: Final = bytes(range(32))


class UniformLedger:
    """A ledger of `size` equal entries: each tile of a level is the same, so that none need be stored."""

    def __init__(self, size: int) -> None:
        self._rows = [DIGEST, leaf_hash(DIGEST)]  # what the tiles of level -1, 0, … repeat
        while TILE_WIDTH ** (len(self._rows) - 1) <= size:
            self._rows.append(root_of([self._rows[-1]] * TILE_WIDTH))
        self.size = size
        tiles = {name.level: self._rows[name.level + 1] * name.width for name in edge_names(size)}
        root = Edge.from_tiles(size, tiles).root()
        note = KEY.sign(Checkpoint(origin=KEY.origin, size=size, root=root))
        self.state_now = LedgerState(head=LedgerHead(size=size, place=size, note=note, made_at=NOW), end=size)
        self.waiting: list[Recorded] = []
        self.grown: dict[tuple[int, int], bytes] = {}
        self.asked = 0
        self.read = 0
        self.written = 0

    def record(self, count: int) -> None:
        first = self.state_now.end + 1
        for place in range(first, first + count):
            sealed = entry_seal().seal(kind="action", id=f"{place}", server="s", salt=bytes(16), entry=b"{}")
            self.waiting.append(Recorded(place=place, sealed=sealed))
        self.state_now = LedgerState(head=self.state_now.head, end=self.state_now.end + count)

    async def state(self) -> LedgerState:
        self.asked += 1
        return self.state_now

    async def tile(self, level: int, number: int) -> bytes | None:
        self.asked += 1
        tile = self.grown.get((level, number))
        if tile is None:
            hashes = self.size >> 8 * max(level, 0)
            tile = self._rows[level + 1] * max(0, min(TILE_WIDTH, hashes - number * TILE_WIDTH))
        self.read += len(tile)
        return tile

    async def after(self, place: int, *, limit: int) -> tuple[Recorded, ...]:
        self.asked += 1
        return tuple(each for each in self.waiting if each.place > place)[:limit]

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[bool]:
        self.asked += 1
        yield True

    async def append(self, growth: Growth) -> bool:
        self.asked += 1
        self.written += sum(map(len, growth.tiles.values())) + len(growth.head.note)
        self.grown.update(growth.tiles)
        self.state_now = LedgerState(head=growth.head, end=self.state_now.end)
        return True

    async def head(self) -> LedgerHead | None:
        raise NotImplementedError

    async def checkpoints(self, *, before: int | None, limit: int) -> tuple[LedgerHead, ...]:
        raise NotImplementedError

    async def leaves(self, start: int, *, limit: int) -> tuple[Leaf, ...]:
        raise NotImplementedError

    async def leaf_of(self, entry_id: str) -> Leaf | None:
        raise NotImplementedError

    async def recorded(self, entry_id: str) -> Recorded | None:
        raise NotImplementedError

    def unsequenced(self) -> AsyncIterator[Recorded]:
        raise NotImplementedError

    def strays(self) -> AsyncIterator[Finding]:
        raise NotImplementedError


async def costs(size: int, folder: Path) -> tuple[UniformLedger, Sequencer]:
    """Give a ledger with one entry that waits, and a sequencer that starts now."""
    ledger = UniformLedger(size)
    ledger.record(1)
    anchor = FileAnchor(folder / f"{size}.json")
    pause = partial(asyncio.sleep, 0)
    return ledger, Sequencer(ledger, entry_seal(), KEY, anchor, lambda: NOW, pause=pause)


@pytest.mark.parametrize("size", [10_000, 1_000_000])
async def test_a_round_reads_and_writes_one_tile_of_each_level(size: int, tmp_path: Path) -> None:
    ledger, sequencer = await costs(size, tmp_path)
    assert (await sequencer.round()).taken == 1
    levels = 2 if size == 10_000 else 3
    tile = TILE_WIDTH * HASH_LENGTH
    # State twice at the start and once in its turn, the turn, the edge, a page, the transaction.
    assert ledger.asked <= 6 + levels + 1
    assert ledger.read <= (levels + 1) * tile
    assert ledger.written <= (levels + 1) * tile + 512


@pytest.mark.parametrize("size", [10_000, 1_000_000])
async def test_the_next_one_reads_no_tile_at_all(size: int, tmp_path: Path) -> None:
    ledger, sequencer = await costs(size, tmp_path)
    await sequencer.round()
    ledger.asked = ledger.read = ledger.written = 0
    ledger.record(1)
    assert (await sequencer.round()).taken == 1
    assert (ledger.asked, ledger.read) == (5, 0)
    assert ledger.written <= 2 * TILE_WIDTH * HASH_LENGTH + 512
    ledger.asked = 0
    await sequencer.round()
    assert ledger.asked == 1


async def test_following_another_servers_checkpoint_reads_some_tiles(tmp_path: Path) -> None:
    ledger, sequencer = await costs(1_000_000, tmp_path)
    other = Sequencer(
        ledger,
        entry_seal(),
        KEY,
        FileAnchor(tmp_path / "other.json"),
        lambda: NOW,
        pause=partial(asyncio.sleep, 0),
    )
    await sequencer.round()
    ledger.waiting.clear()
    for _ in range(3):
        ledger.record(100)
        await other.round()
    ledger.asked = ledger.read = 0
    assert (await sequencer.round()).state == ledger.state_now
    assert ledger.asked <= 2 + 8
    assert ledger.read <= 8 * TILE_WIDTH * HASH_LENGTH


async def test_the_root_of_a_million_goes_on_to_be_right(tmp_path: Path) -> None:
    ledger, sequencer = await costs(1_000_000, tmp_path)
    ledger.record(700)
    done = await sequencer.round()
    assert done.state.head is not None
    assert done.state.head.size == 1_000_701
    first, number = 1_000_000, 1_000_000 // TILE_WIDTH
    digests = split_tile(ledger.grown[DATA_LEVEL, number])[first % TILE_WIDTH :]
    assert digests == [each.sealed.digest for each in ledger.waiting[: len(digests)] if each.sealed]
