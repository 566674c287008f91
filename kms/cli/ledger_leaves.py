"""Entries of an office's answers, back as leaves of the ledger's tree."""

from typing import TYPE_CHECKING, Final

from kms.cli.saying import fields, optional_text
from kms.ledger.export import MAX_ENTRY
from kms.ledger.sealed_entry import SealedEntry
from kms.ledger_ports import Leaf
from kms.strict_json import Fields

if TYPE_CHECKING:
    from kms.administration.office import Office
    from kms.operators import Actor

PAGE: Final = 200  # entries in one answer, some ten kilobytes each
_MAX_SALT: Final = 1024  # bytes; one of another length is the verification's business


async def read_leaves(office: "Office", actor: "Actor", start: int, *, limit: int) -> tuple[Leaf, ...]:
    """Ask for at most `PAGE` leaves from an index on; MACs stay where the root key is.

    Raises:
        AnswerUnreadable: the answer is not of its form.
        AnswerRejected: it has leaves that were not asked for, or has them in another order.

    """
    from kms.guest.errors import AnswerRejected

    limit = min(limit, PAGE)
    answer = await office.ledger.entries(actor, start=start, limit=limit, kind=None)
    items = fields(answer, "entries").array("entries", at_most=limit)
    leaves = tuple(_leaf(fields(each, "entry")) for each in items)
    expected = range(start, start + limit)
    for before, leaf in zip((None, *leaves), leaves, strict=False):
        if leaf.index not in expected or (before is not None and leaf.index <= before.index):
            raise AnswerRejected(
                f"asked for the entries from {start} on, the server gave {leaf.index} out of its turn",
                reason="answer-malformed",
            )
    return leaves


def _leaf(item: Fields) -> Leaf:
    index, place, entry_id = item.integer("index"), item.integer("place"), optional_text(item, "id")
    if entry_id is None:
        return Leaf(index=index, place=place, entry=None)
    entry = SealedEntry(
        kind=item.text("kind"),
        id=entry_id,
        server=item.text("server"),
        salt=item.base64("salt", at_most=_MAX_SALT),
        entry=item.base64("entry", at_most=MAX_ENTRY),
        mac=b"",
    )
    return Leaf(index=index, place=place, entry=entry)
