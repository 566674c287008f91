"""The bit fields of a report: guest POLICY, PLATFORM_INFO, and the flags that say who signed.

Sources: SNP ABI 56860 (guest policy, PLATFORM_INFO, attestation report at 0x048).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

POLICY_RESERVED_ONE = 1 << 17  # "Reserved. Must be 1."
POLICY_HIGHEST_BIT = 25  # PAGE_SWAP_DISABLE, ABI 1.58; everything above is reserved and zero

_POLICY_BITS: Mapping[str, int] = {
    "smt": 16,
    "migration_agent": 18,
    "debug": 19,
    "single_socket": 20,
    "cxl": 21,
    "aes_256_xts": 22,
    "rapl_disabled": 23,
    "ciphertext_hiding": 24,
    "page_swap_disabled": 25,
}

# Bit 6: named so by several verifiers and set by real Turin hosts; the ABI revision at hand reserves it.
PLATFORM_BITS: Mapping[str, int] = {
    "smt": 0,
    "tsme": 1,
    "ecc": 2,
    "rapl-disabled": 3,
    "ciphertext-hiding": 4,
    "alias-check-complete": 5,
    "iommu-write-safe": 6,
    "tio": 7,
}


class Signer(StrEnum):
    """Which endorsement key signed the report."""

    VCEK = "vcek"
    VLEK = "vlek"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestPolicy:
    """POLICY: what the guest was launched under. `raw` is the 64-bit value."""

    raw: int
    abi_major: int
    abi_minor: int
    smt: bool
    migration_agent: bool
    debug: bool
    single_socket: bool
    cxl: bool
    aes_256_xts: bool
    rapl_disabled: bool
    ciphertext_hiding: bool
    page_swap_disabled: bool

    @classmethod
    @lru_cache(maxsize=256)  # guests are launched under a few policies, again and again
    def decode(cls, raw: int) -> "GuestPolicy":
        """Decode the 64-bit POLICY."""
        bits = {name: bool(raw >> bit & 1) for name, bit in _POLICY_BITS.items()}
        return cls(raw=raw, abi_major=raw >> 8 & 0xFF, abi_minor=raw & 0xFF, **bits)

    def bits(self) -> dict[str, bool]:
        """Give the named bits."""
        return {name: getattr(self, name) for name in _POLICY_BITS}


@dataclass(frozen=True, slots=True)
class PlatformInfo:
    """PLATFORM_INFO: how the host is configured. Bits that we have no name for are kept, not refused."""

    raw: int

    def bits(self) -> dict[str, bool]:
        """Give the named bits."""
        return {name: bool(self.raw >> bit & 1) for name, bit in PLATFORM_BITS.items()}


# Flags at 0x048: bit 0 AUTHOR_KEY_EN, bit 1 MASK_CHIP_KEY, bits 4:2 SIGNING_KEY, the rest reserved.
FLAGS_RESERVED_MASK = 0xFFFFFFE0
_SIGNING_KEYS: Mapping[int, Signer] = {0: Signer.VCEK, 1: Signer.VLEK}


@dataclass(frozen=True, slots=True)
class SignerFlags:
    """Who signed. `signer` is None for "none" (7) and for the values that the ABI reserves (2 to 6)."""

    author_key_enabled: bool
    chip_key_masked: bool
    signer: Signer | None

    @classmethod
    @lru_cache(maxsize=1 << 5)
    def decode(cls, raw: int) -> "SignerFlags":
        """Decode the 32-bit field at 0x048."""
        return cls(
            author_key_enabled=bool(raw & 1),
            chip_key_masked=bool(raw >> 1 & 1),
            signer=_SIGNING_KEYS.get(raw >> 2 & 7),
        )
