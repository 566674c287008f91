"""What lint says of a `tcb` document that lets in machines which are open to known bulletins.

Only what is certain: a report that shows just what the document asks for is open to each bulletin that is
named. Nothing is said of figures that are firmware versions, which a `guest` document asks for, nor of
mitigation bits, which reports before version 5 do not have; `forbid_advisories` of an app judges all of them.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

from kms.policy.documents import Levels, TcbDocument
from kms.policy.findings import Finding, Notes
from kms.policy.nodes import Members, Node
from kms.policy.references import Read
from kms.snp.advisories import Advisories, Figure, cpu_text
from kms.snp.product import Cpuid, Product

_Entry: TypeAlias = tuple[Product, int | None]  # the model is None in the entry of a product line


class _Shortfall:
    """The bulletins that one level is too low for, and the level that does for all of them.

    By CPU, or under None where the figures are for every CPU of the product.
    """

    def __init__(self) -> None:
        self.bulletins: list[str] = []
        self._needed: dict[Cpuid | None, int] = {}

    def add(self, bulletin: str, level: int, cpus: Iterable[Cpuid | None]) -> None:
        """Add a figure for these CPUs."""
        if bulletin not in self.bulletins:
            self.bulletins.append(bulletin)
        for cpu in cpus:
            self._needed[cpu] = max(level, self._needed.get(cpu, 0))

    def needed(self) -> str:
        """Say the levels, as in ``86 on 0x19/0x11/1 and 81 on 0x19/0x11/2``."""
        return " and ".join(
            f"{level} on {cpu_text(cpu)}" if cpu else str(level) for cpu, level in self._needed.items()
        )


def warn_of_low_minimums(read: Iterable[Read], advisories: Advisories) -> Iterator[Finding]:
    """Warn of minimum levels and required platform bits: once for each component and bit."""
    for each in read:
        document = each.document
        if not isinstance(document, TcbDocument):
            continue
        notes = Notes(each.file)
        for entry, levels in _entries(document).items():
            for component, shortfall in _shortfalls(document, entry, levels, advisories).items():
                notes.warning(
                    _place(each, entry, component),
                    f"{component} {levels[component]} lets in {_text(entry)} machines that are open to"
                    f" {', '.join(shortfall.bulletins)}; needed: {shortfall.needed()}",
                )
        for bit, bulletins in _missing_bits(document, advisories).items():
            open_to = ", ".join(sorted(bulletins))
            notes.warning(
                each.place("platform"),
                f"without `platform: {{require: [{bit}]}}` machines are let in that are open to {open_to}",
            )
        yield from notes.findings


def _entries(document: TcbDocument) -> dict[_Entry, Levels]:
    lines: dict[_Entry, Levels] = {(product, None): levels for product, levels in document.products.items()}
    return lines | {**document.models}


def _shortfalls(
    document: TcbDocument, entry: _Entry, levels: Levels, advisories: Advisories
) -> Mapping[str, _Shortfall]:
    """Give the components of an entry that are below a figure for a CPU that it is for."""
    shortfalls: dict[str, _Shortfall] = {}
    for bulletin, figure in _figures(entry[0], advisories):
        cpus = [cpu for cpu in figure.cpus or (None,) if _is_for(document, entry, cpu)]
        for component, level in figure.tcb.items():
            if cpus and levels[component] < level:
                shortfalls.setdefault(component, _Shortfall()).add(bulletin, level, cpus)
    return shortfalls


def _is_for(document: TcbDocument, entry: _Entry, cpu: Cpuid | None) -> bool:
    """Say whether the entry judges this CPU (None: every one of the product).

    The entry of a product line judges those whose model has no entry of its own.
    """
    product, model = entry
    if cpu is None:
        return True
    return cpu.model == model if model is not None else (product, cpu.model) not in document.models


def _missing_bits(document: TcbDocument, advisories: Advisories) -> Mapping[str, set[str]]:
    missing: dict[str, set[str]] = {}
    for product in {entry[0]: None for entry in _entries(document)}:
        for bulletin, figure in _figures(product, advisories):
            for bit in figure.platform:
                if bit not in document.require:
                    missing.setdefault(bit, set()).add(bulletin)
    return missing


def _figures(product: Product, advisories: Advisories) -> Iterator[tuple[str, Figure]]:
    for bulletin, concern in advisories.concerning(product):
        for figure in concern.figures:
            yield bulletin, figure


def _text(entry: _Entry) -> str:
    product, model = entry
    return product.value if model is None else f"{product}/{model:#04x}"


def _place(each: Read, entry: _Entry, component: str) -> Node:
    """Give the level as it was written."""
    node: Node = each.root
    for name in ("products", _text(entry), component):
        node = (node.value(name) or node) if isinstance(node, Members) else node
    return node
