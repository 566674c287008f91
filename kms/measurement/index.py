"""Which of thousands of images show a measurement, and on which machine: one look-up for all of them.

Two thousand images on 640 machines each are more than a million measurements: 170 MiB as Python objects. So
eight bytes of each are kept, and what they point at is recomputed in full: a measurement that somebody made
to resemble another's first bytes finds nothing.
"""

from collections import OrderedDict
from collections.abc import Iterator
from struct import Struct
from threading import Lock
from typing import Final, TypeAlias

from kms.identifiers import AppId, ComposeHash, Measurement
from kms.measurement.images import Image, MeasurementTable, NamedMachine

_SHELVES: Final = 256  # by the first byte of a measurement; more of them took three times as long to fill
_KEPT: Final = slice(1, 9)  # the bytes of a measurement that its record keeps
_RECORD: Final = Struct("<8sII")  # those, the image's number, and the machine's place in its table

AppNames: TypeAlias = tuple[AppId, ComposeHash]  # what fills the placeholders of a command line


class MeasurementIndex:
    """Images by number, and their measurements as far as they were computed. Threads may share it.

    It only grows, so that the next policy revision can use it again for the images that it keeps.
    """

    __slots__ = ("_computed", "_images", "_lock", "_numbers", "_shelves")

    def __init__(self) -> None:
        self._numbers: dict[Image, int] = {}
        self._images: list[Image] = []
        self._computed: set[int] = set()
        self._shelves = [bytearray() for _ in range(_SHELVES)]
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._images)

    def number(self, image: Image) -> int:
        """Give the number of an image, a new one where no equal image has one; nothing is computed."""
        with self._lock:
            number = self._numbers.setdefault(image, len(self._images))
            if number == len(self._images):
                self._images.append(image)
        return number

    def compute(self, number: int) -> bool:
        """Compute an image's measurements, and say so, if that was not done: a millisecond for 640.

        Raises:
            MeasurementError: the image cannot be measured.

        """
        if number in self._computed:
            return False
        with self._lock:
            if number in self._computed:
                return False
            shelves, pack = self._shelves, _RECORD.pack
            for place, digest in MeasurementTable(self._images[number]).places():
                shelves[digest[0]] += pack(digest[_KEPT], number, place)
            self._computed.add(number)
        return True

    def find(self, measurement: Measurement) -> Iterator[tuple[int, NamedMachine]]:
        """Give the number of each computed image that shows a measurement, and the machine."""
        shelf, kept = self._shelves[measurement[0]], measurement[_KEPT]
        at = shelf.find(kept)
        while at >= 0:
            if at % _RECORD.size == 0:
                _, number, place = _RECORD.unpack_from(shelf, at)
                machine = MeasurementTable(self._images[number]).at(place, measurement)
                if machine is not None:
                    yield number, machine
            at = shelf.find(kept, at + 1)


class RecentTables:
    """The latest tables of command lines that were filled in, and of images that only a guest describes.

    Who asks chooses how many there could be, so only `most` are kept. Threads may share it.
    """

    __slots__ = ("_lock", "_most", "_tables")

    def __init__(self, most: int) -> None:
        self._most = most
        self._tables: OrderedDict[tuple[object, ...], MeasurementTable] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._tables)

    def table(self, image: Image, names: AppNames | None, *, remember: bool) -> MeasurementTable:
        """Give the table of an image, its command line filled with `names`; a new one is kept on demand.

        Raises:
            MeasurementError: names for a command line without placeholders.

        """
        key = (image.name, image.os_image_hash, names)
        with self._lock:
            table = self._tables.pop(key, None)
            known = table is not None
            if table is None:
                table = MeasurementTable(image, None if names is None else image.filled_cmdline(*names))
            if remember or known:
                # The latest stands last; the first to go is the one that nobody asked for longest.
                self._tables[key] = table
            if len(self._tables) > self._most:
                self._tables.popitem(last=False)
        return table
