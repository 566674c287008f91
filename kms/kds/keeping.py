"""Storing beside the requests: what guests bring is written soon, in batches, and never waited for."""

import asyncio
from typing import Final

import structlog

from kms.background import Background
from kms.errors import LedgerUnavailable
from kms.kds.stored import Item, KnownDigests, digest_of
from kms.ports import CollateralStore, Role, StoredCertificate
from kms.snp.certificate import ExtensionInvalid
from kms.snp.chain import Chain
from kms.snp.endorsed import certified_tcb, line_of
from kms.snp.flags import Signer
from kms.snp.kds_paths import Line, chip_id_of

_log = structlog.get_logger("kms.collateral")

_SOURCE: Final = "guest"
_MOST_WAITING: Final = 1_000
_MOST_AT_ONCE: Final = 100
_SAY_EVERY: Final = 1_000
_LAST_WRITE_WITHIN: Final = 5.0  # seconds, at the end


class Keeper:
    """Writes items to the store. What does not fit into its queue is dropped: another guest brings it again.

    `known` is what needs no writing; `dropped` counts.
    """

    def __init__(self, store: CollateralStore, known: KnownDigests) -> None:
        self._store = store
        self._known = known
        self._queue: asyncio.Queue[Item] = asyncio.Queue(_MOST_WAITING)
        self._batch: list[Item] = []
        self._writer = Background("collateral-writer", self._write_waiting)
        self.dropped = 0

    @property
    def alive(self) -> bool:
        """Whether items are being written."""
        return self._writer.alive

    def start(self) -> None:
        """Start writing, in the running event loop."""
        self._writer.start()

    async def stop(self) -> None:
        """Stop, and write what waits if that goes quickly."""
        await self._writer.stop()
        waiting = self._batch  # what it may have been writing; twice does no harm
        while not self._queue.empty():
            waiting.append(self._queue.get_nowait())
        try:
            async with asyncio.timeout(_LAST_WRITE_WITHIN):
                await self._write(waiting)
        except TimeoutError:
            _log.warning("collateral-not-stored", count=len(waiting), cause="timeout")

    def put(self, *items: Item) -> None:
        """Queue what is not known to be stored. It never waits and never raises."""
        for item in items:
            if digest_of(item) in self._known:
                continue
            try:
                self._queue.put_nowait(item)
            except asyncio.QueueFull:
                if self.dropped % _SAY_EVERY == 0:
                    _log.warning("collateral-dropped", before=self.dropped, waiting=self._queue.qsize())
                self.dropped += 1
            else:
                self._known.add(item)

    async def _write_waiting(self) -> None:
        self._batch = [await self._queue.get()]
        while len(self._batch) < _MOST_AT_ONCE and not self._queue.empty():
            self._batch.append(self._queue.get_nowait())
        await self._write(self._batch)
        self._batch = []

    async def _write(self, batch: list[Item]) -> None:
        if not batch:
            return
        try:
            await self._store.keep(*batch)
        except LedgerUnavailable as error:
            _log.warning("collateral-not-stored", count=len(batch), cause=error.detail)
            self._known.remove(*batch)  # the next guest that brings one has it stored then


def brought(chain: Chain) -> tuple[Item, ...]:
    """Give what of a verified chain is kept for the next guest.

    A VLEK is not: it is its provider's, and a guest that should bring its own must not come to depend on its
    neighbours. Nor are the revocation lists of hosts' tables: they name no line, there is one for VCEKs and
    one for VLEKs of the same ARK, and the newer of them in the other's place would hide what that revoked.
    """
    line = line_of(chain)
    authority, ark = chain.authority, chain.ark
    if line is None or authority is None or ark is None:
        return ()
    items: list[Item] = [
        StoredCertificate(certificate=authority, line=line, role=Role.AUTHORITY, source=_SOURCE),
        StoredCertificate(
            certificate=ark, line=Line(Signer.VCEK, line.product), role=Role.ARK, source=_SOURCE
        ),
    ]
    if line.signer is Signer.VCEK:
        try:
            _, tcb = certified_tcb(chain.leaf)
            chip_id = chip_id_of(chain.leaf.hwid())
        except (ExtensionInvalid, ValueError):
            return tuple(items)  # no chain that verified has such a leaf
        items.append(
            StoredCertificate(
                certificate=chain.leaf, line=line, role=Role.LEAF, source=_SOURCE, chip_id=chip_id, tcb=tcb
            )
        )
    return tuple(items)
