"""Length-checked byte types for what the KMS compares, allows and derives from.

Each is `bytes` of a fixed set of lengths, so a chip id of 32 bytes (field lesson 23) or an app id that
slides into its neighbour (lesson 27) cannot be built at all. Where the protocol refuses all-zero values,
so does the type. Hex is lowercase without `0x`.
"""

from typing import ClassVar, Self

from kms.encoding import from_hex


class FixedBytes(bytes):
    """Bytes of one of `lengths`; all-zero is refused unless `may_be_zero`."""

    lengths: ClassVar[frozenset[int]] = frozenset()
    may_be_zero: ClassVar[bool] = True

    def __new__(cls, value: bytes) -> Self:
        """Check the length. Raises `ValueError`, which does not repeat the value."""
        if len(value) not in cls.lengths:
            wanted = " or ".join(str(length) for length in sorted(cls.lengths))
            raise ValueError(f"{cls.__name__} takes {wanted} bytes, not {len(value)}")
        if not cls.may_be_zero and not any(value):
            raise ValueError(f"{cls.__name__} must not be all zero")
        return super().__new__(cls, value)

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """Read lowercase hex. Raises `ValueError` for anything else, wrong lengths included."""
        return cls(from_hex(text))


class AppId(FixedBytes):
    """An application: 20 bytes (dstack's) or 32 bytes."""

    lengths = frozenset({20, 32})
    may_be_zero = False


class InstanceId(FixedBytes):
    """One instance of an application: 16 to 32 bytes."""

    lengths = frozenset(range(16, 33))
    may_be_zero = False


class ComposeHash(FixedBytes):
    """SHA-256 of what an application runs: 32 bytes."""

    lengths = frozenset({32})
    may_be_zero = False


class OsImageHash(FixedBytes):
    """SHA-256 of the RFC 8785 form of a launch description: 32 bytes."""

    lengths = frozenset({32})
    may_be_zero = False


class ChipId(FixedBytes):
    """CHIP_ID of a report: 64 bytes (Turin: 8 bytes, then 56 zeros). Zero means "not told", never a chip."""

    lengths = frozenset({64})
    may_be_zero = False


class Measurement(FixedBytes):
    """A launch measurement: 48 bytes, SHA-384."""

    lengths = frozenset({48})


class KeyDigest(FixedBytes):
    """SHA-384 of an ID or author key: 48 bytes; all zero when the guest was launched without one."""

    lengths = frozenset({48})
