"""Taking what was recorded before there was a ledger into it: its entries have no MAC, and get one.

That is done once, where neither the database nor the anchor knows of any ledger. Later, an entry without a
MAC is one that somebody wrote by hand. And what got its MAC here is only ever the beginning of a tree
(`kms.sequencing`): else whoever can show a new server an emptied database had entries of his own sealed.
"""

from collections.abc import Callable
from typing import Final

from sqlalchemy import LargeBinary, bindparam, func, literal, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.database.engine import reading, writing
from kms.database.recording import Recorder, sealed_entry
from kms.database.schema import entries, operator_actions
from kms.ledger.actions import OperatorAction
from kms.ledger.entries import SALT_LENGTH
from kms.ledger.sealed_entry import NO_SERVER, EntrySeal

FOUNDED: Final = "ledger-founded"
_PAGE: Final = 256  # entries of up to ten kilobytes each

_UNSEALED: Final = (
    select(
        *(column for column in entries.c if column.name != "mac"),
        literal(b"", LargeBinary).label("mac"),
    )
    .where(entries.c.mac.is_(None), entries.c.server == NO_SERVER)
    .order_by(entries.c.place)
)
_SEAL: Final = (
    update(entries)
    .where(entries.c.place == bindparam("at"), entries.c.mac.is_(None))
    .values(mac=bindparam("with_mac"))
)
_TAKEN_OVER: Final = select(func.count()).select_from(entries).where(entries.c.server == NO_SERVER)
_RECORDED: Final = select(operator_actions.c.id).where(operator_actions.c.action == FOUNDED).limit(1)


async def found_ledger(
    engine: AsyncEngine, seal: EntrySeal, recorder: Recorder, action: Callable[[int], OperatorAction]
) -> int:
    """Seal the entries of before, page by page, and record how many they are; give that number.

    `action` makes the record of a number. Where there are none, nothing is recorded. It may be interrupted,
    and done by several servers at once: a seal is the same whoever makes it.

    Raises:
        LedgerUnavailable: the database did not do what it was asked; the next call goes on from there.

    """
    place = -1
    while True:
        async with reading(engine) as connection:
            page = (await connection.execute(_UNSEALED.where(entries.c.place > place).limit(_PAGE))).all()
        if not page:
            break
        place = page[-1].place
        sealed = []
        for row in page:
            found = sealed_entry(row)
            if found is not None and len(found.salt) == SALT_LENGTH:
                made = seal.seal(
                    kind=found.kind, id=found.id, server=found.server, salt=found.salt, entry=found.entry
                )
                sealed.append({"at": row.place, "with_mac": made.mac})
        if sealed:
            async with writing(engine) as connection:
                await connection.execute(_SEAL, sealed)
    async with writing(engine) as connection:
        count = int((await connection.execute(_TAKEN_OVER)).scalar() or 0)
        if count and (await connection.execute(_RECORDED)).first() is None:
            await recorder.record_action(connection, action(count))
    return count
