"""EPYC product lines, as AMD's certificates name them, and how a report says which one it is from."""

from dataclasses import dataclass
from enum import StrEnum


class Product(StrEnum):
    """A product line with an ARK of its own. Bergamo and Siena are Genoa's (same ARK, model 0xA0)."""

    MILAN = "milan"
    GENOA = "genoa"
    TURIN = "turin"

    @property
    def certificate_name(self) -> str:
        """Its name in certificates and KDS paths: `Milan` in `ARK-Milan`."""
        return self.value.capitalize()


@dataclass(frozen=True, slots=True)
class Cpuid:
    """CPUID family (base and extended added), model and stepping of the host, from a v3 report or later."""

    family: int
    model: int
    stepping: int


# Family 0x19: models 00-0F Milan, 10-1F and A0-AF Genoa (A0: Bergamo, Siena); family 0x1A: 00-11 Turin.
# AMD VCEK specification 57230; the same table in virtee/sev and go-sev-guest. Ends are included: an
# exclusive 0xAF or a list of single models refuses real chips (model 0xA0 is in public evidence).
_MODELS: tuple[tuple[int, range, Product], ...] = (
    (0x19, range(0x00, 0x10), Product.MILAN),
    (0x19, range(0x10, 0x20), Product.GENOA),
    (0x19, range(0xA0, 0xB0), Product.GENOA),
    (0x1A, range(0x00, 0x12), Product.TURIN),
)


def product_of(cpuid: Cpuid) -> Product | None:
    """Give the product line of a signed CPUID triple; None for a family or model that we do not know."""
    for family, models, product in _MODELS:
        if cpuid.family == family and cpuid.model in models:
            return product
    return None


def product_named(name: str) -> Product | None:
    """Give the product of a certificate's name for it: exactly `Milan`, `Genoa` or `Turin`."""
    for product in Product:
        if name == product.certificate_name:
            return product
    return None
