"""`forbid_advisories`: AMD bulletins that an app does not accept to be open, and what lint says of them.

Whoever forbids a bulletin asks for proof of its fix. Where no report can give that proof, because no public
figure exists or because nobody knows the bulletin, the answer is no, under a reason of its own.
"""

from collections.abc import Iterable, Iterator, Mapping

from kms.boot_info import BootInfo
from kms.checks import Check
from kms.policy.documents import AppDocument, TcbDocument
from kms.policy.findings import Finding, Notes
from kms.policy.parser import closest
from kms.policy.references import Read
from kms.snp.advisories import Advisories, Advisory, Standing
from kms.snp.product import Product


def advisory_checks(
    forbidden: frozenset[str], boot_info: BootInfo, advisories: Advisories
) -> Iterator[Check]:
    """Check that no forbidden bulletin is open, and that the report shows it of each."""
    if not forbidden:
        yield Check("advisories", True, "the app forbids none", "advisory-forbidden")
        return
    if boot_info.advisories is None:
        yield Check("advisories", False, "not assessed for this report", "advisories-not-assessed")
        return
    standing = {name: advisories.standing(name, boot_info) for name in sorted(forbidden)}
    # By what was recorded and by what is known now: newer data must not make an old refusal an allowance.
    recorded = set(boot_info.advisories)
    found = [name for name in standing if standing[name] is Standing.OPEN or name in recorded]
    yield Check("advisories", not found, f"open: {', '.join(found) or 'none'}", "advisory-forbidden")
    untold = [
        f"{name}: {_why(advisories.get(name), boot_info.product)}"
        for name in standing
        if name not in found and standing[name] in {Standing.NOT_ATTESTABLE, Standing.UNKNOWN}
    ]
    yield Check(
        "advisories-attestable",
        not untold,
        "; ".join(untold) or "this report tells of each that is forbidden",
        "advisory-not-attestable",
    )


def _why(advisory: Advisory | None, product: Product) -> str:
    if advisory is None:
        return "no such bulletin is known here"
    return advisory.concerns[product].not_attestable or "no figure is known for this CPU"


def warn_of_advisories(read: Iterable[Read], advisories: Advisories) -> Iterator[Finding]:
    """Warn of forbidden bulletins that nobody knows, or that no report of an allowed product can show."""
    documents = list(read)
    tcbs = {each.document.name: each.document for each in documents if isinstance(each.document, TcbDocument)}
    for each in documents:
        if not isinstance(each.document, AppDocument):
            continue
        notes = Notes(each.file)
        products = _products(each.document, tcbs)
        for name in sorted(each.document.forbid_advisories):
            place = each.item("forbid_advisories", name)
            advisory = advisories.get(name)
            if advisory is None:
                notes.warning(
                    place,
                    f"`{name}` is not among the bulletins that this version knows, so it denies every guest:"
                    f" {closest(name, advisories.ids)}",
                )
                continue
            for product, concern in advisory.concerns.items():
                if product in products and concern.not_attestable is not None:
                    notes.warning(
                        place,
                        f"no report of {product} can show that `{name}` is fixed, so every such guest is"
                        f" denied: {concern.not_attestable}. Ask for what reports do show, in documents of"
                        " kind `tcb`, `guest` and `chips`",
                    )
        yield from notes.findings


def _products(app: AppDocument, tcbs: Mapping[str, TcbDocument]) -> frozenset[Product]:
    """Give the products that the app's `tcb` document lists; all of them where it cannot be read."""
    document = tcbs.get(app.tcb)
    if document is None:
        return frozenset(Product)
    return frozenset({*document.products, *(product for product, _ in document.models)})
