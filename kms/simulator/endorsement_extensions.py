"""The extensions of SIMULATED endorsement certificates, in AMD's encodings and AMD's order.

Each function gives a list that the caller may edit before it is signed: remove, double, misencode.
Sources: VCEK specification 57230; order and encodings as in genuine Milan, Genoa and Turin certificates
(for a Turin VLEK, of which none is public, the TCB part of a Turin VCEK).
"""

from kms.identifiers import ChipId
from kms.simulator import der
from kms.simulator.certificates import Extension
from kms.snp.product import Product
from kms.snp.tcb import TcbVersion

_AMD = "1.3.6.1.4.1.3704.1"
STRUCT_VERSION = f"{_AMD}.1"
PRODUCT_NAME = f"{_AMD}.2"
BOOTLOADER_SPL = f"{_AMD}.3.1"
TEE_SPL = f"{_AMD}.3.2"
SNP_SPL = f"{_AMD}.3.3"
SPL_4 = f"{_AMD}.3.4"
SPL_5 = f"{_AMD}.3.5"
SPL_6 = f"{_AMD}.3.6"
SPL_7 = f"{_AMD}.3.7"
MICROCODE_SPL = f"{_AMD}.3.8"
FMC_SPL = f"{_AMD}.3.9"
HARDWARE_ID = f"{_AMD}.4"
CSP_ID = f"{_AMD}.5"

TURIN_HARDWARE_ID_LENGTH = 8
# What genuine VCEKs say; genuine VLEKs give the product without a stepping.
_VCEK_PRODUCT_NAMES = {Product.MILAN: "Milan-B0", Product.GENOA: "Genoa", Product.TURIN: "Turin"}


def hardware_id(product: Product, chip_id: ChipId) -> bytes:
    """Give hwID of a chip: CHIP_ID, of which Turin fills only the first 8 bytes."""
    return chip_id[:TURIN_HARDWARE_ID_LENGTH] if product is Product.TURIN else bytes(chip_id)


def vcek_extensions(product: Product, tcb: TcbVersion, chip_id: ChipId) -> list[Extension]:
    """Give the extensions of a genuine VCEK certificate."""
    return [
        *_platform(product, tcb, _VCEK_PRODUCT_NAMES[product]),
        # Raw bytes: genuine certificates have no OCTET STRING tag inside extnValue.
        Extension(HARDWARE_ID, hardware_id(product, chip_id)),
    ]


def vlek_extensions(product: Product, tcb: TcbVersion, csp_id: str) -> list[Extension]:
    """Give the extensions of a genuine VLEK certificate; `csp_id` is ASCII."""
    return [
        *_platform(product, tcb, product.certificate_name),
        Extension(CSP_ID, der.ia5_string(csp_id)),
    ]


def _platform(product: Product, tcb: TcbVersion, name: str) -> list[Extension]:
    bootloader = _level(BOOTLOADER_SPL, tcb.bootloader)
    tee = _level(TEE_SPL, tcb.tee)
    snp = _level(SNP_SPL, tcb.snp)
    reserved = [_level(SPL_5, 0), _level(SPL_6, 0), _level(SPL_7, 0)]
    microcode = _level(MICROCODE_SPL, tcb.microcode)
    if product is Product.TURIN:
        levels = [_level(FMC_SPL, tcb.fmc or 0), bootloader, tee, snp, *reserved, microcode]
    else:
        levels = [bootloader, tee, _level(SPL_4, 0), *reserved, snp, microcode]
    struct_version = 1 if product is Product.TURIN else 0
    return [
        Extension(STRUCT_VERSION, der.integer(struct_version)),
        Extension(PRODUCT_NAME, der.ia5_string(name)),
        *levels,
    ]


def _level(oid: str, value: int) -> Extension:
    return Extension(oid, der.integer(value))
