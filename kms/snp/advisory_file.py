"""Reads the data file of advisories. Strict: what is misspelt would be a rule that says nothing.

::

    [[advisory]]
    id = "AMD-SB-3015"
    title = "…"
    cves = ["CVE-2024-21944"]
    published = 2024-12-10                    # optional; only with a source for the date
    url = "https://…"

    [advisory.milan]                          # a product that the bulletin concerns
    not_attestable = "why no report shows it" # optional beside figures, which are then necessary only

    [[advisory.milan.figure]]                 # all figures together are what a report must show
    firmware = "1.55.22"                      # exactly one of: firmware, tcb, platform, mitigation_bits
    cpus = ["0x19/0x01/1"]                    # optional: CPUID family/model/stepping that it is for
    source = "https://…"                      # or secondary_source: somebody who reads AMD's bulletin
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Final, TypeAlias

from kms.snp.advisories import Advisories, Advisory, Concern, Figure
from kms.snp.flags import PLATFORM_BITS
from kms.snp.product import Cpuid, Product, product_of
from kms.snp.report import FirmwareVersion
from kms.snp.tcb import component_names

_Table: TypeAlias = Mapping[str, object]

_ID: Final = re.compile(r"AMD-SB-[0-9]{4,5}")
_CVE: Final = re.compile(r"CVE-[0-9]{4}-[0-9]{4,}")
_FIRMWARE: Final = re.compile(r"([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})")
_CPU: Final = re.compile(r"0x([0-9a-f]{2})/0x([0-9a-f]{2})/([0-9]{1,2})")
_BYTE: Final = 255
_MITIGATION_BITS: Final = 64
_PRODUCTS: Final = {product.value: product for product in Product}
_KINDS: Final = ("firmware", "tcb", "platform", "mitigation_bits")


class AdvisoriesInvalid(ValueError):
    """The data file is not as its format says. The message names the advisory and the member."""


def parse_advisories(text: str) -> Advisories:
    """Read the data file.

    Raises:
        AdvisoriesInvalid: not TOML, no advisory, an unknown member, product, component, bit or CPU, a
            figure without a source, or an id twice.

    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise AdvisoriesInvalid(f"not TOML: {error}") from error
    _only(document, {"advisory"}, "the file")
    advisories = [_advisory(each) for each in _tables(document, "advisory", "the file")]
    if not advisories:
        raise AdvisoriesInvalid("no advisory at all: what is left of a file that was cut off")
    ids = [each.id for each in advisories]
    for name in ids:
        if ids.count(name) > 1:
            raise AdvisoriesInvalid(f"{name} is there twice")
    return Advisories(advisories)


def _advisory(table: _Table) -> Advisory:
    name = _text(table, "id", "an advisory")
    if not _ID.fullmatch(name):
        raise AdvisoriesInvalid(f"`{name}` is not the id of a bulletin, as in AMD-SB-3015")
    _only(table, {"id", "title", "cves", "published", "url", *_PRODUCTS}, name)
    cves = _texts(table, "cves", name)
    for cve in cves:
        if not _CVE.fullmatch(cve):
            raise AdvisoriesInvalid(f"{name}: `{cve}` is not a CVE id")
    published = table.get("published")
    # A TOML date-time is a `date` too, and would print another form.
    if published is not None and type(published) is not date:
        raise AdvisoriesInvalid(f"{name}: `published` is a date")
    concerns = {
        product: _concern(_table(table, value, name), product, f"{name}, {value}")
        for value, product in _PRODUCTS.items()
        if value in table
    }
    if not concerns:
        raise AdvisoriesInvalid(f"{name} concerns no product: one of {', '.join(_PRODUCTS)}")
    return Advisory(
        id=name,
        title=_text(table, "title", name),
        cves=cves,
        published=None if published is None else published.isoformat(),
        url=_text(table, "url", name),
        concerns=concerns,
    )


def _concern(table: _Table, product: Product, where: str) -> Concern:
    _only(table, {"not_attestable", "figure"}, where)
    figures = tuple(_figure(each, product, where) for each in _tables(table, "figure", where))
    reason = _text(table, "not_attestable", where) if "not_attestable" in table else None
    if not figures and reason is None:
        raise AdvisoriesInvalid(f"{where}: neither a figure nor the reason why there is none")
    return Concern(figures=figures, not_attestable=reason)


def _figure(table: _Table, product: Product, where: str) -> Figure:
    _only(table, {*_KINDS, "cpus", "source", "secondary_source"}, where)
    kinds = [kind for kind in _KINDS if kind in table]
    if len(kinds) != 1:
        raise AdvisoriesInvalid(f"{where}: a figure is exactly one of {', '.join(_KINDS)}")
    secondary = "secondary_source" in table
    if secondary == ("source" in table):
        raise AdvisoriesInvalid(f"{where}: a figure has either `source` or `secondary_source`")
    return Figure(
        tcb=_levels(_table(table, "tcb", where), product, where) if "tcb" in table else {},
        firmware=_firmware(_text(table, "firmware", where), where) if "firmware" in table else None,
        platform=tuple(_bits(table, where)),
        mitigations=_mitigations(table, where),
        cpus=tuple(_cpu(text, product, where) for text in _texts(table, "cpus", where)),
        source=_text(table, "secondary_source" if secondary else "source", where),
        secondary=secondary,
    )


def _levels(table: _Table, product: Product, where: str) -> dict[str, int]:
    known = component_names(product)
    levels: dict[str, int] = {}
    for name, level in table.items():
        if name not in known:
            raise AdvisoriesInvalid(f"{where}: the TCB has no `{name}`, only {', '.join(known)}")
        levels[name] = _integer(level, _BYTE, f"{where}: {name}")
    if not levels:
        raise AdvisoriesInvalid(f"{where}: `tcb` names no component")
    return levels


def _firmware(text: str, where: str) -> FirmwareVersion:
    match = _FIRMWARE.fullmatch(text)
    if match is None or any(int(part) > _BYTE for part in match.groups()):
        raise AdvisoriesInvalid(f"{where}: `{text}` is not a firmware version, decimal, as in 1.55.22")
    major, minor, build = (int(part) for part in match.groups())
    return FirmwareVersion(major=major, minor=minor, build=build)


def _bits(table: _Table, where: str) -> Iterator[str]:
    names = _texts(table, "platform", where)
    if "platform" in table and not names:
        raise AdvisoriesInvalid(f"{where}: `platform` names no bit")
    for name in names:
        if name not in PLATFORM_BITS:
            raise AdvisoriesInvalid(
                f"{where}: no PLATFORM_INFO bit `{name}`, only {', '.join(PLATFORM_BITS)}"
            )
        yield name


def _mitigations(table: _Table, where: str) -> int:
    if "mitigation_bits" not in table:
        return 0
    bits = table["mitigation_bits"]
    if not isinstance(bits, list) or not bits:
        raise AdvisoriesInvalid(f"{where}: `mitigation_bits` is a list of bit numbers")
    mask = 0
    for bit in bits:
        mask |= 1 << _integer(bit, _MITIGATION_BITS - 1, f"{where}: mitigation bit")
    return mask


def _cpu(text: str, product: Product, where: str) -> Cpuid:
    match = _CPU.fullmatch(text)
    if match is None:
        raise AdvisoriesInvalid(f"{where}: `{text}` is not family/model/stepping, as in 0x19/0x01/1")
    cpuid = Cpuid(int(match[1], 16), int(match[2], 16), int(match[3]))
    if product_of(cpuid) is not product:
        raise AdvisoriesInvalid(f"{where}: `{text}` is not a CPU of this product")
    return cpuid


def _integer(value: object, largest: int, where: str) -> int:
    # `True` is an int in Python, and no level.
    if type(value) is not int or not 0 <= value <= largest:
        raise AdvisoriesInvalid(f"{where}: `{value}` is not 0 to {largest}")
    return value


def _only(table: _Table, known: set[str], where: str) -> None:
    unknown = sorted(table.keys() - known)
    if unknown:
        raise AdvisoriesInvalid(f"{where} has no `{unknown[0]}`: known: {', '.join(sorted(known))}")


def _text(table: _Table, name: str, where: str) -> str:
    value = table.get(name)
    if not isinstance(value, str) or not value.strip():
        raise AdvisoriesInvalid(f"{where}: `{name}` is a text, and not empty")
    return value


def _texts(table: _Table, name: str, where: str) -> tuple[str, ...]:
    values = table.get(name, [])
    if not isinstance(values, list) or not all(isinstance(each, str) and each for each in values):
        raise AdvisoriesInvalid(f"{where}: `{name}` is a list of texts")
    return tuple(values)


def _table(table: _Table, name: str, where: str) -> _Table:
    value = table[name]
    if not isinstance(value, dict):
        raise AdvisoriesInvalid(f"{where}: `{name}` is a table")
    return value


def _tables(table: _Table, name: str, where: str) -> Sequence[_Table]:
    values = table.get(name, [])
    if not isinstance(values, list) or not all(isinstance(each, dict) for each in values):
        raise AdvisoriesInvalid(f"{where}: `{name}` is a list of tables")
    return values
