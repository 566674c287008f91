"""All recipes of the corpus, in order."""

from functools import cache

from tests.golden.forged.controls import controls
from tests.golden.forged.draft import Layout
from tests.golden.forged.forged_chains import forged_chains
from tests.golden.forged.forged_extensions import forged_extensions
from tests.golden.forged.forged_names import forged_names
from tests.golden.forged.forged_signatures import forged_signatures
from tests.golden.forged.genuine import GENOA, LAYOUTS
from tests.golden.forged.hostile_wire import hostile_wire
from tests.golden.forged.lying_reports import lying_reports
from tests.golden.forged.malformed_reports import malformed_reports
from tests.golden.forged.recipes import Book, Recipe
from tests.golden.forged.revoked import revoked, unreadable_lists

# Every forgery is on both TCB layouts and both signers; all of its variants are on two that differ in both.
THOROUGH = (LAYOUTS[0], LAYOUTS[-1])


@cache
def recipes(layout: Layout) -> tuple[Recipe, ...]:
    """Give the cases of a layout: every forgery on both TCB layouts and both signers, controls on all."""
    book = Book(layout, thorough=layout in THOROUGH)
    controls(book)
    if layout in LAYOUTS:
        malformed_reports(book)
        lying_reports(book)
        forged_extensions(book)
        # Chains are the same for every product, and how they are sent for everybody.
        book.thorough = layout == LAYOUTS[0]
        forged_chains(book)
        forged_names(book)
        forged_signatures(book)
        revoked(book)
    if layout == LAYOUTS[0]:
        hostile_wire(book)
        unreadable_lists(book)
    return tuple(book.recipes)


ALL_LAYOUTS = (*LAYOUTS, *GENOA)
