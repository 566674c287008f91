"""What AMD's key distribution service (KDS) is asked for, and under which paths.

Source: VCEK specification 57230, "KDS interface": VCEKs by hwID and TCB, and one certificate chain and one
revocation list for each line of endorsement keys. The same paths are what our mirror and the simulator serve.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from kms.identifiers import ChipId
from kms.snp.flags import Signer
from kms.snp.product import Product, product_named
from kms.snp.tcb import TcbVersion, component_names

HWID_LENGTH_ON_TURIN: Final = 8  # bytes; elsewhere all 64 of CHIP_ID
_CHIP_ID_LENGTH: Final = 64

# TCB component → query parameter ("security patch level").
PARAMETERS: Final[Mapping[str, str]] = {
    "fmc": "fmcSPL",
    "bootloader": "blSPL",
    "tee": "teeSPL",
    "snp": "snpSPL",
    "microcode": "ucodeSPL",
}
_LEVEL: Final = re.compile(r"[0-9]{1,3}")
_HWID: Final = re.compile(r"(?:[0-9a-fA-F]{2})+")


@dataclass(frozen=True, slots=True)
class Line:
    """The endorsement keys of one kind and product: they share an ASK or ASVK and a revocation list."""

    signer: Signer
    product: Product

    @property
    def folder(self) -> str:
        """The line's place at the KDS: `/vcek/v1/Milan`."""
        return f"/{self.signer.value}/v1/{self.product.certificate_name}"

    @property
    def authority_name(self) -> str:
        """The common name of the line's ASK or ASVK: `SEV-Milan`, `SEV-VLEK-Milan`."""
        prefix = "SEV-VLEK-" if self.signer is Signer.VLEK else "SEV-"
        return prefix + self.product.certificate_name


_LINES: Final[Mapping[str, Line]] = {
    line.authority_name: line for line in (Line(signer, product) for signer in Signer for product in Product)
}


def line_named(authority_name: str) -> Line | None:
    """Give the line whose ASK or ASVK has this common name; None for any other name."""
    return _LINES.get(authority_name)


@dataclass(frozen=True, slots=True)
class VcekOf:
    """The VCEK certificate of one chip at one TCB."""

    product: Product
    chip_id: ChipId
    tcb: TcbVersion

    @property
    def path(self) -> str:
        """Path and query: `/vcek/v1/Milan/<hwID>?blSPL=04&teeSPL=00&snpSPL=24&ucodeSPL=219`."""
        levels = self.tcb.components()
        query = "&".join(f"{PARAMETERS[name]}={levels[name]:02}" for name in component_names(self.product))
        return f"{Line(Signer.VCEK, self.product).folder}/{hwid_of(self.product, self.chip_id).hex()}?{query}"


@dataclass(frozen=True, slots=True)
class ChainOf:
    """The ASK or ASVK of a line and its ARK, as PEM."""

    line: Line

    @property
    def path(self) -> str:
        """`/vcek/v1/Milan/cert_chain`."""
        return f"{self.line.folder}/cert_chain"


@dataclass(frozen=True, slots=True)
class RevocationListOf:
    """The revocation list of a line, as DER."""

    line: Line

    @property
    def path(self) -> str:
        """`/vcek/v1/Milan/crl`."""
        return f"{self.line.folder}/crl"


Wanted: TypeAlias = VcekOf | ChainOf | RevocationListOf


def hwid_of(product: Product, chip_id: ChipId) -> bytes:
    """Give the hwID of a chip: the whole CHIP_ID, on Turin its first 8 bytes."""
    return chip_id[:HWID_LENGTH_ON_TURIN] if product is Product.TURIN else bytes(chip_id)


def chip_id_of(hwid: bytes) -> ChipId:
    """Give the CHIP_ID (64 bytes, zero-padded) of a hwID. Raises `ValueError` for another length or zero."""
    if len(hwid) not in {HWID_LENGTH_ON_TURIN, _CHIP_ID_LENGTH}:
        raise ValueError(f"a hwID has {HWID_LENGTH_ON_TURIN} or {_CHIP_ID_LENGTH} bytes")
    return ChipId(hwid.ljust(_CHIP_ID_LENGTH, b"\0"))


def parse_path(path: str, query: Mapping[str, str]) -> Wanted | None:
    """Read a KDS path and its decoded query; None for what the KDS has not.

    Numbers are decimal with any zeros before them; every component of the product's TCB must be there, and
    nothing else.
    """
    match path.split("/"):
        case ["", kind, "v1", name, what] if kind in set(Signer):
            product = product_named(name)
            if product is None:
                return None
            line = Line(Signer(kind), product)
        case _:
            return None
    match what:
        case "cert_chain":
            return ChainOf(line) if not query else None
        case "crl":
            return RevocationListOf(line) if not query else None
    return _vcek(line, what, query)


def _vcek(line: Line, hwid: str, query: Mapping[str, str]) -> VcekOf | None:
    names = {PARAMETERS[name]: name for name in component_names(line.product)}
    if line.signer is not Signer.VCEK or not _HWID.fullmatch(hwid) or set(query) != set(names):
        return None
    levels = {names[key]: int(text) for key, text in query.items() if _LEVEL.fullmatch(text)}
    try:
        chip_id = chip_id_of(bytes.fromhex(hwid))
    except ValueError:
        return None
    on_turin = line.product is Product.TURIN
    right_length = len(hwid) == 2 * (HWID_LENGTH_ON_TURIN if on_turin else _CHIP_ID_LENGTH)
    if len(levels) != len(names) or max(levels.values()) > 0xFF or not right_length:
        return None
    return VcekOf(line.product, chip_id, TcbVersion(**levels))
