"""Reads `kind: tcb`: the products, firmware and platform configuration that are good enough."""

import re
from functools import partial
from typing import Final, TypeAlias

from kms.policy import values
from kms.policy.app_reader import HeaderSlots
from kms.policy.documents import Levels, TcbDocument, TcbKind
from kms.policy.nodes import Items, Members, Node
from kms.policy.parser import Parser, Schema, Wrong, closest, list_of
from kms.policy.reader import Reader, Slot, schema_of
from kms.snp.flags import PLATFORM_BITS
from kms.snp.product import Cpuid, Product, product_of
from kms.snp.tcb import component_names

_MODEL: Final = re.compile(r"0x[0-9a-f]{2}")
_FAMILIES: Final = (0x19, 0x1A)  # Zen 3 and 4, Zen 5: kms.snp.product
_LEVEL: Final = values.integer(0, 255, "a level")  # one byte of TCB_VERSION
_GENOAS: Final = frozenset({"bergamo", "siena"})  # the same ARK, model 0xa0
_YES_NO: Final = {"forbid": False, "allow": True}

_PlatformBits: TypeAlias = tuple[tuple[str, ...], tuple[str, ...]]
ProductEntry: TypeAlias = tuple[Product, int | None]


def read_tcb(reader: Reader) -> TcbDocument:
    """Read minimum firmware. Raises `Unread` after its findings were made."""
    header = HeaderSlots(reader)
    expires_at = reader.optional("expires_at", values.time, None)
    products = reader.required("products", Parser(lambda node: _products(node, reader), _PRODUCTS))
    check = reader.whole_list_or("check", _check, (TcbKind.REPORTED, TcbKind.COMMITTED))
    provisional = reader.optional("provisional_firmware", _provisional, False)
    no_bits: _PlatformBits = ((), ())
    platform = reader.mapping_or("platform", _platform, no_bits, example="{require: [alias-check-complete]}")
    mitigations = reader.mapping_or("mitigations", _mitigations, (0, 0), example='{current: "0x1"}')
    reader.end()
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


def _read_check(node: Node) -> tuple[TcbKind, ...]:
    kinds = _kinds.read(node)
    if TcbKind.REPORTED not in kinds:
        # Only the reported TCB is bound to the endorsement key: the others are the host's word.
        raise Wrong(node, "`check` must contain `reported`, which the endorsement key proves")
    return kinds


_kinds: Final = list_of(values.one_of(TcbKind, "a TCB version"), "check")
_check: Final = Parser(_read_check, {**_kinds.schema, "contains": {"const": TcbKind.REPORTED.value}})
_provisional: Final = values.choice(_YES_NO, "`provisional_firmware`")


def _products(node: Node, parent: Reader) -> dict[ProductEntry, Levels]:
    if not isinstance(node, Members):
        found = ", without `-`" if isinstance(node, Items) else ""
        raise Wrong(node, f"`products` is a mapping from product to levels{found}: {_EXAMPLE}")
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
        example = f"{{{', '.join(f'{each}: 0' for each in component_names(product))}}}"
        slots[product, model] = entries.mapping(name, partial(_levels, product), example=example)
    if wrong is not None:
        raise wrong
    return {entry: slot.value for entry, slot in slots.items()}


def _product_entry(key: Node) -> ProductEntry:
    """Read ``genoa`` or ``genoa/0xa0``: a product line, or one exact CPU model of it."""
    text = values.read_text(key)
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


def _levels(product: Product, reader: Reader) -> Levels:
    """Read every component: one left out would be one that any level satisfies."""
    slots = {
        name: reader.required(name, _LEVEL, why="write 0 where any level will do")
        for name in component_names(product)
    }
    reader.end()
    return {name: slot.value for name, slot in slots.items()}


_EXAMPLE: Final = "milan: {bootloader: 4, tee: 0, snp: 24, microcode: 219}"


def _products_schema() -> Schema:
    levels = {product: schema_of(partial(_levels, product)) for product in Product}
    models = {
        product: "|".join(
            f"{model:#04x}"
            for model in range(256)
            if any(product_of(Cpuid(family, model, 0)) is product for family in _FAMILIES)
        )
        for product in Product
    }
    return {
        "type": "object",
        "properties": {product.value: levels[product] for product in Product},
        "patternProperties": {f"^{product}/(?:{models[product]})$": levels[product] for product in Product},
        "additionalProperties": False,
    }


_PRODUCTS: Final = _products_schema()
_platform_bit: Final = values.word({name: name for name in PLATFORM_BITS}, "a bit of PLATFORM_INFO")


def _platform(reader: Reader) -> _PlatformBits:
    require = reader.listed_or("require", _platform_bit, ())
    forbid = reader.listed_or("forbid", _platform_bit, ())
    reader.end()
    both = sorted(set(require.value) & set(forbid.value))
    if both:
        raise Wrong(reader.node, f"{', '.join(both)} is both required and forbidden: no platform is")
    return require.value, forbid.value


def _mitigations(reader: Reader) -> tuple[int, int]:
    launch = reader.optional("launch", values.mask, 0)
    current = reader.optional("current", values.mask, 0)
    reader.end()
    return launch.value, current.value
