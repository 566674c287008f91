"""Reads `kind: tcb`: the products, firmware and platform configuration that are good enough."""

import re
from collections.abc import Callable
from typing import Final, TypeAlias

from kms.policy import values
from kms.policy.app_reader import HeaderSlots
from kms.policy.documents import Levels, TcbDocument, TcbKind
from kms.policy.nodes import Members, Node
from kms.policy.reader import Reader, Slot, Wrong, closest
from kms.snp.flags import PLATFORM_BITS
from kms.snp.product import Cpuid, Product, product_of
from kms.snp.tcb import component_names

_MODEL: Final = re.compile(r"0x[0-9a-f]{2}")
_FAMILIES: Final = (0x19, 0x1A)  # Zen 3 and 4, Zen 5: kms.snp.product
_LEVEL: Final = values.integer(0, 255)  # one byte of TCB_VERSION
_GENOAS: Final = frozenset({"bergamo", "siena"})  # the same ARK, model 0xa0
_YES_NO: Final = {"forbid": False, "allow": True}

_PlatformBits: TypeAlias = tuple[tuple[str, ...], tuple[str, ...]]
ProductEntry: TypeAlias = tuple[Product, int | None]


def read_tcb(reader: Reader) -> TcbDocument:
    """Read minimum firmware. Raises `Unread` after its findings were made."""
    header = HeaderSlots(reader)
    expires_at = reader.optional("expires_at", values.time, None)
    products = reader.required("products", lambda node: _products(node, reader))
    check = reader.listed_or(
        "check", values.one_of(TcbKind, "a TCB version"), (TcbKind.REPORTED, TcbKind.COMMITTED)
    )
    provisional = reader.optional(
        "provisional_firmware", values.choice(_YES_NO, "`provisional_firmware`"), False
    )
    no_bits: _PlatformBits = ((), ())
    platform = reader.optional("platform", lambda node: _platform(node, reader), no_bits)
    mitigations = reader.optional("mitigations", lambda node: _mitigations(node, reader), (0, 0))
    reader.end()
    if TcbKind.REPORTED not in check.value:
        # Only the reported TCB is bound to the endorsement key: the others are the host's word.
        reader.notes.error(
            reader.place("check"), "`check` must contain `reported`, which the endorsement key proves"
        )
    entries = products.value
    return TcbDocument(
        **header.values,
        expires_at=expires_at.value,
        products={product: levels for (product, model), levels in entries.items() if model is None},
        models={
            (product, model): levels for (product, model), levels in entries.items() if model is not None
        },
        check=tuple(dict.fromkeys(check.value)),
        provisional_firmware=provisional.value,
        require=platform.value[0],
        forbid=platform.value[1],
        launch_mitigations=mitigations.value[0],
        current_mitigations=mitigations.value[1],
    )


def _products(node: Node, parent: Reader) -> dict[ProductEntry, Levels]:
    if not isinstance(node, Members):
        raise Wrong(node, "`products` is a mapping from product to levels")
    if not node.members:
        parent.notes.warning(node, "`products` is empty: it allows nobody")
    entries = Reader(node, parent.notes, "`products`")
    slots: dict[ProductEntry, Slot[Levels]] = {}
    wrong: Wrong | None = None
    for name, member in node.members.items():
        try:
            product, model = _product_entry(member.key)
        except Wrong as error:
            wrong = wrong or error
            if wrong is not error:
                wrong.complaints += error.complaints
            continue
        slots[product, model] = entries.required(name, _levels_of(product, entries))
    if wrong is not None:
        raise wrong
    return {entry: slot.value for entry, slot in slots.items()}


def _product_entry(key: Node) -> ProductEntry:
    """Read ``genoa`` or ``genoa/0xa0``: a product line, or one exact CPU model of it."""
    text = values.text(key)
    line, slash, model_text = text.partition("/")
    names = [product.value for product in Product]
    if line not in names:
        hint = "it is a genoa" if line in _GENOAS else closest(line, names)
        raise Wrong(key, f"`{line}` is not a product: {hint}")
    product = Product(line)
    if not slash:
        return product, None
    if not _MODEL.fullmatch(model_text):
        raise Wrong(key, f"a CPU model is 0x and 2 lowercase hex digits, as in {line}/0xa0")
    model = int(model_text, 16)
    if not any(product_of(Cpuid(family, model, 0)) is product for family in _FAMILIES):
        raise Wrong(key, f"no {line} has the CPU model {model_text}")
    return product, model


def _levels_of(product: Product, parent: Reader) -> Callable[[Node], Levels]:
    def parse(node: Node) -> Levels:
        """Read every component: one left out would be one that any level satisfies."""
        reader = parent.within(node, f"`{product}`")
        slots = {
            name: reader.required(name, _LEVEL, why="write 0 where any level will do")
            for name in component_names(product)
        }
        reader.end()
        return {name: slot.value for name, slot in slots.items()}

    return parse


def _platform_bit(node: Node) -> str:
    text = values.text(node)
    if text not in PLATFORM_BITS:
        raise Wrong(node, f"`{text}` is not a bit of PLATFORM_INFO: {closest(text, list(PLATFORM_BITS))}")
    return text


def _platform(node: Node, parent: Reader) -> _PlatformBits:
    reader = parent.within(node, "`platform`")
    require = reader.listed_or("require", _platform_bit, ())
    forbid = reader.listed_or("forbid", _platform_bit, ())
    reader.end()
    both = sorted(set(require.value) & set(forbid.value))
    if both:
        raise Wrong(node, f"{', '.join(both)} is both required and forbidden: no platform is")
    return require.value, forbid.value


def _mitigations(node: Node, parent: Reader) -> tuple[int, int]:
    reader = parent.within(node, "`mitigations`")
    launch = reader.optional("launch", values.mask, 0)
    current = reader.optional("current", values.mask, 0)
    reader.end()
    return launch.value, current.value
