"""QEMU's vCPU models and the CPUID signature that each puts into a guest's RDX at reset."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from kms.measurement.errors import MeasurementError


def cpuid_signature(family: int, model: int, stepping: int) -> int:
    """Give CPUID Fn0000_0001 EAX of a family (0 to 270), model (0 to 255) and stepping (0 to 15).

    Source: AMD64 Architecture Programmer's Manual volume 3, appendix E.3.2; AMD publication 25481.

    Raises:
        MeasurementError: a part that does not fit. Masked, it would be another processor's signature.

    """
    if not (0 <= family <= 0xF + 0xFF and 0 <= model <= 0xFF and 0 <= stepping <= 0xF):
        raise MeasurementError("CPUID family must be 0 to 270, model 0 to 255 and stepping 0 to 15")
    base_family = min(family, 0xF)
    extended_family = family - base_family
    return extended_family << 20 | (model >> 4) << 16 | base_family << 8 | (model & 0xF) << 4 | stepping


def vcpu_type_name(signature: int) -> str:
    """Name a vCPU type of this signature, for several measure alike; the signature in hex without one."""
    return next((name for name, value in VCPU_TYPES.items() if value == signature), f"{signature:#010x}")


_NAPLES: Final = cpuid_signature(23, 1, 2)
_ROME: Final = cpuid_signature(23, 49, 0)
_MILAN: Final = cpuid_signature(25, 1, 1)
_GENOA: Final = cpuid_signature(25, 17, 0)
_TURIN: Final = cpuid_signature(26, 0, 0)

# QEMU target/i386/cpu.c, builtin_x86_defs, with the aliases and order of sev-snp-measure 0.0.13. The
# signature is that of the virtual model, not of the host: EPYC-v4 on a Turin host is still 0x800f12.
VCPU_TYPES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "EPYC": _NAPLES,
        "EPYC-v1": _NAPLES,
        "EPYC-v2": _NAPLES,
        "EPYC-IBPB": _NAPLES,
        "EPYC-v3": _NAPLES,
        "EPYC-v4": _NAPLES,
        "EPYC-Rome": _ROME,
        "EPYC-Rome-v1": _ROME,
        "EPYC-Rome-v2": _ROME,
        "EPYC-Rome-v3": _ROME,
        "EPYC-Milan": _MILAN,
        "EPYC-Milan-v1": _MILAN,
        "EPYC-Milan-v2": _MILAN,
        "EPYC-Genoa": _GENOA,
        "EPYC-Genoa-v1": _GENOA,
        "EPYC-Turin": _TURIN,
    }
)
