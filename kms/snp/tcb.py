"""TCB versions: security patch levels of a chip's firmware, one component at a time.

A TCB version is not a number: comparing it as one integer, or as an ordered tuple, lets a high microcode
level hide an old bootloader (field lesson 7). The type has no `<`; the only question is `covers`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from kms.snp.product import Product

LENGTH = 8

# Byte of each component in the 8-byte TCB_VERSION (SNP ABI 56860, TCB_VERSION; Turin: VCEK spec 57230).
# Bytes that are not named are reserved and zero.
_LAYOUTS: Mapping[Product, Mapping[str, int]] = {
    Product.MILAN: {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7},
    Product.GENOA: {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7},
    Product.TURIN: {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7},
}
_RESERVED_MASKS: Mapping[Product, int] = {
    product: sum(0xFF << 8 * index for index in range(LENGTH) if index not in layout.values())
    for product, layout in _LAYOUTS.items()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbVersion:
    """Security patch levels, each 0 to 255; `fmc` only on Turin."""

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None

    def components(self) -> dict[str, int]:
        """Give the levels by component name, the FMC first where there is one."""
        levels = {
            "bootloader": self.bootloader,
            "tee": self.tee,
            "snp": self.snp,
            "microcode": self.microcode,
        }
        return levels if self.fmc is None else {"fmc": self.fmc, **levels}

    def below(self, minimum: Mapping[str, int]) -> dict[str, tuple[int | None, int]]:
        """Give the components that do not reach `minimum`, as (seen, wanted).

        A component that `minimum` names and this product does not have is below (seen None).
        """
        levels = self.components()
        return {
            name: (levels.get(name), wanted)
            for name, wanted in minimum.items()
            if (seen := levels.get(name)) is None or seen < wanted
        }

    def covers(self, other: "TcbVersion") -> bool:
        """Say whether every component is at least the other's (both of one layout)."""
        return not self.below(other.components())


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbVersions:
    """The four TCB versions of a report. Only `reported` is bound to the endorsement key."""

    current: TcbVersion
    reported: TcbVersion
    committed: TcbVersion
    launch: TcbVersion


def component_names(product: Product) -> tuple[str, ...]:
    """Give the names of the components that TCB versions of this product have."""
    return tuple(_LAYOUTS[product])


def reserved_bytes_are_zero(raw: bytes, product: Product) -> bool:
    """Say whether the bytes of an 8-byte TCB_VERSION that this product reserves are zero."""
    return not int.from_bytes(raw, "little") & _RESERVED_MASKS[product]


@lru_cache(maxsize=256)  # a fleet shows few of them, each again and again
def decode(raw: bytes, product: Product) -> TcbVersion:
    """Decode an 8-byte TCB_VERSION in the product's layout."""
    return TcbVersion(**{name: raw[offset] for name, offset in _LAYOUTS[product].items()})


def encode(version: TcbVersion, product: Product) -> bytes:
    """Encode as the 8-byte TCB_VERSION of the product's layout."""
    raw = bytearray(LENGTH)
    levels = version.components()
    for name, offset in _LAYOUTS[product].items():
        raw[offset] = levels[name]
    return bytes(raw)
