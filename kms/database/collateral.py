"""AMD's certificates and revocation lists in the database, and who is fetching what.

What is kept verified before it came, and is verified again by whoever reads it: the database only saves
asking AMD's service. So a row that somebody edited, or a disk spoilt, is left out with a warning, and keeping
its certificate again mends it.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
from sqlalchemy import Row, delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kms.database.dialect import insert_or
from kms.database.engine import reading, writing
from kms.database.schema import certificates, collateral_claims, revocation_lists
from kms.errors import MalformedEvidence
from kms.identifiers import ChipId
from kms.ledger.entries import timestamp
from kms.ports import Clock, Role, StoredCertificate, StoredRevocationList
from kms.snp.certificate import Certificate
from kms.snp.endorsement import load_der
from kms.snp.flags import Signer
from kms.snp.kds_paths import Line
from kms.snp.product import Product
from kms.snp.revocation_list import load_revocation_list
from kms.snp.tcb import TcbVersion

_log = structlog.get_logger("kms.collateral")

# No claim is good for longer than its seconds: one that ends later than this was made by a clock that leapt.
_LEAP: Final = timedelta(hours=1)
_IN_ONE_STATEMENT: Final = 500  # databases limit the parameters of one
_NOT_OF_THE_DER: Final = frozenset({"fingerprint", "source", "kept_at"})
_DAMAGED: Final = (MalformedEvidence, ValueError, TypeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateCount:
    """How many certificates of a line and role are kept, and since when.

    `next_expiry` is the first end of validity that is still to come; None when all have ended.
    """

    line: Line
    role: Role
    count: int
    first_kept: datetime
    last_kept: datetime
    next_expiry: datetime | None


class CollateralDatabase:
    """Implements `kms.ports.CollateralStore`.

    Every method raises `LedgerUnavailable` when the database does not answer. That says nothing about a
    certificate: who can have it elsewhere goes on without the store.
    """

    def __init__(self, engine: AsyncEngine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    async def authorities(self) -> tuple[StoredCertificate, ...]:
        """Give every ASK, ASVK and ARK."""
        wanted = certificates.c.role.in_([Role.ARK.value, Role.AUTHORITY.value])
        return _certificates(await self._rows(wanted))

    async def revocation_lists(self) -> tuple[StoredRevocationList, ...]:
        """Give the newest list of each ARK and line."""
        query = select(revocation_lists).order_by(*revocation_lists.primary_key.columns)
        async with reading(self._engine) as connection:
            rows = (await connection.execute(query)).all()
        return tuple(found for row in rows if (found := _revocation_list(row)) is not None)

    async def vceks(self, product: Product | None, chip_id: ChipId) -> tuple[StoredCertificate, ...]:
        """Give a chip's VCEKs, the one kept last first; of any product when that is None."""
        # By the chip alone: with more conditions SQLite may prefer the other index, through all VCEKs.
        found = _certificates(await self._rows(certificates.c.chip_id == chip_id.hex()))
        return tuple(each for each in found if product is None or each.line.product is product)

    async def vleks(self, product: Product | None, tcb: TcbVersion | None) -> tuple[StoredCertificate, ...]:
        """Give the VLEKs of a product at a TCB, the one kept last first; None stands for all."""
        wanted = [certificates.c.role == Role.LEAF.value, certificates.c.signer == Signer.VLEK.value]
        if product is not None:
            wanted.append(certificates.c.product == product.value)
        if tcb is not None:
            wanted.append(certificates.c.tcb == tcb_text(tcb))
        return _certificates(await self._rows(*wanted))

    async def all_certificates(self) -> tuple[StoredCertificate, ...]:
        """Give every stored certificate, ordered by line, role, chip and TCB: for listing and export."""
        rows = await self._rows()
        # 100,000 take half a minute to parse.
        found = await asyncio.to_thread(_certificates, rows)
        return tuple(sorted(found, key=_place))

    async def counts(self) -> tuple[CertificateCount, ...]:
        """Count the certificates of each line and role; rows that name none are not counted."""
        kind = (certificates.c.signer, certificates.c.product, certificates.c.role)
        not_after = certificates.c.not_after
        query = (
            select(
                *kind,
                func.count().label("number"),
                func.min(certificates.c.kept_at).label("first"),
                func.max(certificates.c.kept_at).label("last"),
                func.min(not_after).filter(not_after >= timestamp(self._clock())).label("expiry"),
            )
            .group_by(*kind)
            .order_by(*kind)
        )
        async with reading(self._engine) as connection:
            rows = (await connection.execute(query)).all()
        return tuple(found for row in rows if (found := _count(row)) is not None)

    async def keep(self, *items: StoredCertificate | StoredRevocationList) -> int:
        """Store what is not there yet, in one transaction, and say how many that were.

        Of the certificates of one chip, TCB and key only the one that lives longest stays: there may be any
        number of genuine ones, and whoever runs a guest could fill its chip's look-up with them. A damaged
        row counts as not there. Others wait meanwhile to write: give a large import in portions of at most
        a thousand.
        """
        now = self._clock()
        found: dict[tuple[object, ...], StoredCertificate] = {}
        for each in items:
            if isinstance(each, StoredCertificate):
                old = found.setdefault(_identity(each), each)
                if each.certificate.not_after > old.certificate.not_after:
                    found[_identity(each)] = each
        # One order for all, so that where rows are locked singly two transactions cannot wait for each other.
        ordered = sorted(found.values(), key=lambda each: each.certificate.fingerprint)
        lists = sorted((each for each in items if isinstance(each, StoredRevocationList)), key=_list_key)
        kept = 0
        async with writing(self._engine) as connection:
            for start in range(0, len(ordered), _IN_ONE_STATEMENT):
                part = ordered[start : start + _IN_ONE_STATEMENT]
                kept += await _keep_certificates(connection, part, now)
            for each in lists:
                kept += await _keep_list(connection, each, now)
        return kept

    async def claim(self, what: str, owner: str, seconds: float) -> bool:
        """Take the right to fetch `what` (a KDS path) for some seconds, unless somebody else has it.

        Its owner may renew it. One statement decides (field lesson 36), by this server's clock.
        """
        now = self._clock()
        end = now + timedelta(seconds=seconds)
        free = or_(
            collateral_claims.c.owner == owner,
            collateral_claims.c.expires_at <= timestamp(now),
            collateral_claims.c.expires_at > timestamp(end + _LEAP),
        )
        values = {"owner": owner, "expires_at": timestamp(end)}
        async with writing(self._engine) as connection:
            mine = insert_or(connection, collateral_claims).values(what=what, **values)
            taken = mine.on_conflict_do_update(
                index_elements=[collateral_claims.c.what], set_=values, where=free
            )
            return (await connection.execute(taken)).rowcount == 1

    async def release(self, what: str, owner: str) -> None:
        """Give the right back, if this owner has it."""
        claim = collateral_claims.c
        async with writing(self._engine) as connection:
            await connection.execute(
                delete(collateral_claims).where(claim.what == what, claim.owner == owner)
            )

    async def _rows(self, *wanted: Any) -> list[Row[Any]]:
        query = select(certificates).where(*wanted)
        query = query.order_by(certificates.c.kept_at.desc(), certificates.c.fingerprint)
        async with reading(self._engine) as connection:
            return list((await connection.execute(query)).all())


def tcb_text(tcb: TcbVersion) -> str:
    """Give a TCB as text, in one form: `bootloader=4 tee=0 snp=24 microcode=219`, on Turin `fmc=1` first."""
    return " ".join(f"{name}={level}" for name, level in tcb.components().items())


async def _keep_certificates(
    connection: AsyncConnection, items: Sequence[StoredCertificate], now: datetime
) -> int:
    """Write certificates of different fingerprints; say how many were not there, or damaged."""
    chips = {each.chip_id.hex() for each in items if each.chip_id is not None}
    mine = {each.certificate.fingerprint.hex() for each in items}
    query = select(certificates).where(certificates.c.chip_id.in_(chips))
    found = (await connection.execute(query)).all() if chips else []
    kept: dict[tuple[object, ...], list[Certificate]] = defaultdict(list)
    for old in _certificates(row for row in found if row.fingerprint not in mine):
        kept[_identity(old)].append(old.certificate)
    rows: list[dict[str, object]] = []
    outlived: list[str] = []
    for item in items:
        # The later one stays, not the earlier: an authority that was replaced may have signed the other.
        others = kept[_identity(item)]
        if all(other.not_after < item.certificate.not_after for other in others):
            rows.append(_values(item, now))
            outlived += [other.fingerprint.hex() for other in others]
    if outlived:
        await connection.execute(delete(certificates).where(certificates.c.fingerprint.in_(outlived)))
    if not rows:
        return 0
    new = insert_or(connection, certificates)
    told = [each for each in certificates.c if each.name not in _NOT_OF_THE_DER]
    mending = new.on_conflict_do_update(
        index_elements=[certificates.c.fingerprint],
        set_={each.name: new.excluded[each.name] for each in told},
        where=or_(*(each.is_distinct_from(new.excluded[each.name]) for each in told)),
    )
    return len((await connection.execute(mending.returning(certificates.c.fingerprint), rows)).all())


def _values(item: StoredCertificate, now: datetime) -> dict[str, object]:
    certificate = item.certificate
    return {
        "fingerprint": certificate.fingerprint.hex(),
        "signer": item.line.signer.value,
        "product": item.line.product.value,
        "role": item.role.value,
        "chip_id": None if item.chip_id is None else item.chip_id.hex(),
        "csp_id": item.csp_id,
        "tcb": None if item.tcb is None else tcb_text(item.tcb),
        "not_before": timestamp(certificate.not_before),
        "not_after": timestamp(certificate.not_after),
        "der": certificate.der,
        "source": item.source,
        "kept_at": timestamp(now),
    }


def _identity(item: StoredCertificate) -> tuple[object, ...]:
    """Give that of which one certificate is kept: a VCEK's key at a TCB; of others the certificate itself."""
    certificate = item.certificate
    if item.chip_id is None:
        return (certificate.fingerprint,)
    return item.line, item.chip_id, item.tcb, certificate.public_key_sha256


async def _keep_list(connection: AsyncConnection, item: StoredRevocationList, now: datetime) -> int:
    ark, signer, product = _list_key(item)
    values = {
        "number": None if item.list.number is None else str(item.list.number),
        "this_update": timestamp(item.list.this_update),
        "next_update": None if item.list.next_update is None else timestamp(item.list.next_update),
        "der": item.list.der,
        "source": item.source,
        "kept_at": timestamp(now),
    }
    new = insert_or(connection, revocation_lists).values(ark=ark, signer=signer, product=product, **values)
    if (await connection.execute(new.on_conflict_do_nothing())).rowcount == 1:
        return 1
    place = (
        revocation_lists.c.ark == ark,
        revocation_lists.c.signer == signer,
        revocation_lists.c.product == product,
    )
    # The row is there, and locked from here to the commit: whoever brings another list waits, then compares
    # with this one.
    row = (await connection.execute(select(revocation_lists).where(*place).with_for_update())).one()
    old = _revocation_list(row)
    if old is not None and not item.list.replaces(old.list):
        return 0
    return (await connection.execute(update(revocation_lists).where(*place).values(values))).rowcount


def _certificates(rows: Iterable[Row[Any]]) -> tuple[StoredCertificate, ...]:
    return tuple(found for row in rows if (found := _certificate(row)) is not None)


def _certificate(row: Row[Any]) -> StoredCertificate | None:
    try:
        certificate = load_der(row.der)
        if certificate.fingerprint.hex() != row.fingerprint:
            raise ValueError("the DER is not that of the fingerprint")
        return StoredCertificate(
            certificate=certificate,
            line=_line(row),
            role=Role(row.role),
            source=row.source,
            chip_id=None if row.chip_id is None else ChipId.from_hex(row.chip_id),
            csp_id=row.csp_id,
            tcb=None if row.tcb is None else _tcb(row.tcb),
        )
    except _DAMAGED as error:
        _log.warning("collateral-row-damaged", table="certificates", row=row.fingerprint, cause=str(error))
        return None


def _revocation_list(row: Row[Any]) -> StoredRevocationList | None:
    try:
        line = _line(row)
        found = load_revocation_list(row.der, line=line)
        return StoredRevocationList(list=found, line=line, ark=bytes.fromhex(row.ark), source=row.source)
    except _DAMAGED as error:
        _log.warning("collateral-row-damaged", table="revocation_lists", row=row.ark, cause=str(error))
        return None


def _count(row: Row[Any]) -> CertificateCount | None:
    try:
        return CertificateCount(
            line=_line(row),
            role=Role(row.role),
            count=row.number,
            first_kept=datetime.fromisoformat(row.first),
            last_kept=datetime.fromisoformat(row.last),
            next_expiry=None if row.expiry is None else datetime.fromisoformat(row.expiry),
        )
    except _DAMAGED:  # a row that `_certificate` tells of
        return None


def _line(row: Row[Any]) -> Line:
    return Line(Signer(row.signer), Product(row.product))


def _tcb(text: str) -> TcbVersion:
    levels = dict(part.split("=") for part in text.split(" "))
    return TcbVersion(**{name: int(level) for name, level in levels.items()})


def _list_key(item: StoredRevocationList) -> tuple[str, str, str]:
    return item.ark.hex(), item.line.signer.value, item.line.product.value


def _place(item: StoredCertificate) -> tuple[str, str, str, bytes, tuple[int, ...], bytes]:
    levels = () if item.tcb is None else tuple(item.tcb.components().values())
    chip_id = bytes(item.chip_id or b"")
    return (item.line.signer, item.line.product, item.role, chip_id, levels, item.certificate.fingerprint)
