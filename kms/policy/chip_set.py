"""A set of chips in little memory: a fleet has a hundred thousand."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Final, Self

from typing_extensions import override

from kms.identifiers import ChipId

_LENGTH: Final = 64  # CHIP_ID
_ZERO: Final = bytes(_LENGTH)  # "not told", never a chip


class ChipSet(Set[ChipId]):
    """Chips at 64 bytes each: sorted and in one piece, found by bisection.

    As objects they would take three times as much, and Python's garbage collector would visit every one of
    them again and again, while all requests wait.
    """

    __slots__ = ("_packed",)

    def __init__(self, chips: Iterable[bytes]) -> None:
        """Take chip ids. Raises `ValueError` for bytes that are none."""
        ordered = sorted(set(chips))
        if any(len(chip) != _LENGTH or chip == _ZERO for chip in ordered):
            raise ValueError("a chip id is 64 bytes, and not all of them zero")
        self._packed = b"".join(ordered)

    @classmethod
    def from_hex(cls, texts: Sequence[str]) -> Self:
        """Read lowercase hex. Raises `ValueError` if any of the texts is not that of a chip id."""
        if any(len(text) != 2 * _LENGTH for text in texts):
            raise ValueError("a chip id is 128 hex digits")
        joined = "".join(texts)
        packed = bytes.fromhex(joined)
        if packed.hex() != joined:  # uppercase, or spaces between the digits
            raise ValueError("a chip id is lowercase hex")
        return cls(_slices(packed))

    @override
    def __len__(self) -> int:
        return len(self._packed) // _LENGTH

    @override
    def __iter__(self) -> Iterator[ChipId]:
        return map(ChipId, self.plain())

    @override
    def __contains__(self, chip: object) -> bool:
        if not isinstance(chip, bytes):
            return False
        place = bisect_left(range(len(self)), chip, key=self._at)
        return place < len(self) and self._at(place) == chip

    def plain(self) -> Iterator[bytes]:
        """Give the ids in order, as bytes of no type of their own."""
        return _slices(self._packed)

    def _at(self, place: int) -> bytes:
        return self._packed[place * _LENGTH : (place + 1) * _LENGTH]


def _slices(packed: bytes) -> Iterator[bytes]:
    return (packed[start : start + _LENGTH] for start in range(0, len(packed), _LENGTH))
