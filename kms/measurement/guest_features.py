"""SEV_FEATURES: what the hypervisor switched on in a guest's VMSA (offset 0x3B0), as measured."""

import re
from collections.abc import Iterator
from typing import Final

from kms.measurement.errors import MeasurementError

# AMD64 Architecture Programmer's Manual volume 2, table B-4 (SEV_FEATURES); bits 11, 13 and 16 up are
# reserved.
FEATURE_BITS: Final[dict[str, int]] = {
    "snp-active": 0,
    "vtom": 1,
    "reflect-vc": 2,
    "restricted-injection": 3,
    "alternate-injection": 4,
    "debug-swap": 5,
    "prevent-host-ibs": 6,
    "btb-isolation": 7,
    "vmpl-sss": 8,
    "secure-tsc": 9,
    "vmgexit-parameter": 10,
    "ibs-virtualization": 12,
    "vmsa-register-protection": 14,
    "smt-protection": 15,
}
SNP_ACTIVE: Final = 1 << FEATURE_BITS["snp-active"]
_KNOWN: Final = sum(1 << bit for bit in FEATURE_BITS.values())
_HEX: Final = re.compile(r"0x[0-9a-f]{1,16}")


def feature_names(features: int) -> tuple[str, ...]:
    """Name the bits that are set, lowest first; unknown bits as ``bit-16``."""
    return tuple(_names(features))


def _names(features: int) -> Iterator[str]:
    by_bit = {bit: name for name, bit in FEATURE_BITS.items()}
    for bit in range(features.bit_length()):
        if features >> bit & 1:
            yield by_bit.get(bit, f"bit-{bit}")


def parse_features(text: str) -> int:
    """Read ``0x`` text of at most 64 bits. Raises `MeasurementError` for anything else."""
    if not _HEX.fullmatch(text):
        raise MeasurementError("guest features must be written as 0x and 1 to 16 lowercase hex digits")
    return int(text, 16)


def acceptable_features(features: int) -> int:
    """Give back features that a policy may list.

    A guest without SNPActive is no SNP guest, and nobody can say what a reserved bit would mean; any other
    bit is the operator's choice, but only where it is written out (field lesson 18: "any features" let a
    DebugSwap guest pass).

    Raises:
        MeasurementError: SNPActive missing, or a reserved bit set.

    """
    if not features & SNP_ACTIVE:
        raise MeasurementError("guest features without SNPActive (bit 0) are no SNP guest's")
    if features & ~_KNOWN:
        raise MeasurementError("guest features with reserved bits")
    return features
