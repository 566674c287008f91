"""What a server process knows without its database: every authority and list, and leaves met lately."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias

from kms.identifiers import ChipId
from kms.kds.answers import chain_of, longest_valid_first
from kms.kds.stored import Item, KnownDigests
from kms.ports import Clock, CollateralStore, Role, StoredCertificate, StoredRevocationList
from kms.snp import tcb
from kms.snp.certificate import Certificate, ExtensionInvalid
from kms.snp.flags import Signer
from kms.snp.kds_paths import Line, VcekOf, chip_id_of
from kms.snp.product import Product
from kms.snp.report import Report
from kms.snp.revocation_list import RevocationList
from kms.snp.roots import TrustedRoots

_MOST_LEAVES: Final = 5_000  # places, of some 10 KB each
# Of one chip and TCB: AMD signs a certificate anew whenever it is asked, so there may be any number.
_MOST_ALIKE: Final = 4
_MOST_VLEKS: Final = 16

# The chip, and TCB_VERSION as reports write it (8 bytes).
_Key: TypeAlias = tuple[ChipId, bytes]


@dataclass(slots=True)
class LookUps:
    """How often a chip's certificates were looked up, by where they were found."""

    memory: int = 0
    store: int = 0
    nowhere: int = 0


class Memory:
    """Authorities and lists in full, which are few; VCEKs by chip and TCB, those used last.

    Only what is there is remembered, never that something is missing: another process, or an import, may
    bring it at any moment. `known` is told what came from the store. What has expired by `clock`, or is
    another chip's in truth, is as if it were not there: the services have a better one.
    """

    def __init__(
        self, store: CollateralStore, roots: TrustedRoots, known: KnownDigests, clock: Clock
    ) -> None:
        self._store = store
        self._clock = clock
        self._known = known
        self._authorities: dict[bytes, StoredCertificate] = {}
        self._lists: dict[tuple[bytes, Line], StoredRevocationList] = {}
        self._leaves: OrderedDict[_Key, tuple[StoredCertificate, ...]] = OrderedDict()
        self._development = tuple(
            StoredCertificate(
                certificate=ark, line=Line(Signer.VCEK, product), role=Role.ARK, source="settings"
            )
            for ark in roots.development
            if (product := roots.product_of(ark)) is not None
        )
        self.authorities: tuple[Certificate, ...] = ()
        self.lists: tuple[RevocationList, ...] = ()
        self.loaded = False
        self.look_ups = LookUps()

    async def refresh(self) -> None:
        """Read authorities and lists from the store: other processes and imports add to them.

        Raises:
            LedgerUnavailable: the database does not answer; what was known stays.

        """
        found: list[Item] = [*await self._store.authorities(), *await self._store.revocation_lists()]
        self._known.add(*found)
        self.add(*found)
        self.loaded = True

    def add(self, *items: Item) -> None:
        """Remember what verified. A list takes the place of an older one only if it `replaces` it."""
        for item in items:
            if isinstance(item, StoredRevocationList):
                older = self._lists.get((item.ark, item.line))
                if older is None or item.list.replaces(older.list):
                    self._lists[item.ark, item.line] = item
                    self.lists = tuple(each.list for each in self._lists.values())
            elif item.role is not Role.LEAF:
                fingerprint = item.certificate.fingerprint
                if fingerprint not in self._authorities:
                    self._authorities[fingerprint] = item
                    self.authorities = tuple(each.certificate for each in self._authorities.values())
            elif item.chip_id is not None and item.tcb is not None:
                self._remember((item.chip_id, tcb.encode(item.tcb, item.line.product)), (item,))

    def chain(self, line: Line) -> tuple[Certificate, Certificate] | None:
        """Give the ASK or ASVK of a line and its ARK, if they are known."""
        return chain_of(line, (*self._authorities.values(), *self._development))

    def lists_of(self, line: Line) -> tuple[StoredRevocationList, ...]:
        """Give the known lists of a line, one for each ARK."""
        return tuple(each for each in self._lists.values() if each.line == line)

    def has_current_list(self, line: Line, now: datetime) -> bool:
        """Say whether a list of the line is known whose next update is still to come."""
        ends = (each.list.next_update for each in self.lists_of(line))
        return any(end is not None and now < end for end in ends)

    def lines_with_lists(self) -> frozenset[Line]:
        """Give the lines of which lists are known."""
        return frozenset(line for _, line in self._lists)

    async def leaves(self, report: Report) -> tuple[Certificate, ...]:
        """Give the stored leaves for the report's chip and TCB; of a VLEK report, those of its TCB.

        Raises:
            LedgerUnavailable: the database does not answer.

        """
        if report.flags.signer is Signer.VLEK:
            # Version 2 does not say its product; one layout's TCB is nobody's in the other.
            products = tuple(Product) if report.product is None else (report.product,)
            asked = [(each, tcb.decode(report.tcbs.reported, each)) for each in products]
            found = [leaf.certificate for each in asked for leaf in await self._store.vleks(*each)]
            return tuple(each for each in found if self._is_valid(each))[:_MOST_VLEKS]
        if report.chip_id is None:
            return ()
        key = (report.chip_id, report.tcbs.reported)
        if remembered := self._recall(key):
            self.look_ups.memory += 1
            return tuple(each.certificate for each in remembered)
        if stored := await self._look_up(key):
            self.look_ups.store += 1
        else:
            self.look_ups.nowhere += 1
        return tuple(each.certificate for each in stored)

    async def has(self, wanted: VcekOf) -> bool:
        """Say whether a certificate is here or in the store.

        Raises:
            LedgerUnavailable: the database does not answer.

        """
        return self.remembers(wanted) or _any_is(wanted, await self._look_up(_key(wanted)))

    def remembers(self, wanted: VcekOf) -> bool:
        """Say whether a certificate is here."""
        return _any_is(wanted, self._recall(_key(wanted)))

    def _recall(self, key: _Key) -> tuple[StoredCertificate, ...]:
        found = self._leaves.get(key, ())
        if found:
            self._leaves.move_to_end(key)
        return self._usable(key, found)

    async def _look_up(self, key: _Key) -> tuple[StoredCertificate, ...]:
        chip_id, version = key
        stored = await self._store.vceks(None, chip_id)
        found = self._usable(
            key,
            (
                each
                for each in stored
                if each.tcb is not None and tcb.encode(each.tcb, each.line.product) == version
            ),
        )
        if found:
            self._known.add(*found)
            self._remember(key, found)
        return found

    def _usable(self, key: _Key, leaves: Iterable[StoredCertificate]) -> tuple[StoredCertificate, ...]:
        return tuple(
            each for each in leaves if self._is_valid(each.certificate) and _is_of(each.certificate, key[0])
        )

    def _is_valid(self, leaf: Certificate) -> bool:
        return leaf.not_before <= self._clock() <= leaf.not_after

    def _remember(self, key: _Key, found: Iterable[StoredCertificate]) -> None:
        known = {each.certificate.fingerprint: each for each in (*found, *self._leaves.get(key, ()))}
        self._leaves[key] = tuple(longest_valid_first(known.values())[:_MOST_ALIKE])
        self._leaves.move_to_end(key)
        if len(self._leaves) > _MOST_LEAVES:
            self._leaves.popitem(last=False)


def _key(wanted: VcekOf) -> _Key:
    return wanted.chip_id, tcb.encode(wanted.tcb, wanted.product)


def _is_of(leaf: Certificate, chip_id: ChipId) -> bool:
    try:
        return chip_id_of(leaf.hwid()) == chip_id
    except (ExtensionInvalid, ValueError):
        return False


def _any_is(wanted: VcekOf, leaves: Iterable[StoredCertificate]) -> bool:
    return any(each.line.product is wanted.product for each in leaves)
