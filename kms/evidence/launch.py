"""Which allowed image was launched, on what machine: found by recomputing what it would measure.

The guest's hint only orders the search. An expected measurement is never taken from a caller (field
lesson 19): every candidate's is computed here from the operator's own description, or from a description
whose hash the operator allowed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import InitVar, dataclass, fields
from itertools import chain
from typing import Final, NamedTuple, Protocol

from kms.identifiers import AppId, ComposeHash, Measurement, OsImageHash
from kms.measurement.description import os_image_hash
from kms.measurement.errors import MeasurementError
from kms.measurement.images import UNDOCUMENTED_ENFORCES, Binding, Image, LaunchHint, NamedMachine
from kms.measurement.index import AppNames, MeasurementIndex, RecentTables
from kms.snp.verify import VerifiedReport

# Tables of command lines filled with what a guest claims, and of images that only a guest describes: a
# stranger with one SNP machine chooses how many there are, so only the latest are kept.
_MAX_GUEST_CHOSEN_TABLES: Final = 64
_MAX_REMEMBERED_LAUNCHES: Final = 4096  # some 500 bytes each
_HERE: Final = object()  # whoever has it is this module


class AllowedImages(Protocol):
    """What a policy says about images."""

    @property
    def images(self) -> Iterable[Image]:
        """Every image document."""
        ...

    def images_of(self, app_id: AppId) -> tuple[Image, ...]:
        """Give the image documents that an app lists."""
        ...

    def lists_image_hash(self, image_hash: OsImageHash) -> bool:
        """Say whether some app lists this hash."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchFacts:
    """An image on a machine: what BootInfo says of a launch. By itself it proves nothing."""

    measurement: Measurement
    image: str | None
    os_image_hash: OsImageHash
    vcpus: int
    vcpu_type: str
    guest_features: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedLaunch(LaunchFacts):
    """A launch of an allowed image that would show a measurement. By itself it proves nothing either.

    `enforces` is what every listed document of this image agrees that it enforces. `cmdline_app` is the app
    that the measured command line names, when it names one.
    """

    enforces: frozenset[Binding]
    cmdline_app: tuple[AppId, ComposeHash] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch(MatchedLaunch):
    """The launch that a verified report shows. Made only by `LaunchFinder.find`, by recomputing."""

    made_by: InitVar[object]

    def __post_init__(self, made_by: object) -> None:
        if made_by is not _HERE:
            raise TypeError("only recomputing a measurement makes a Launch")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedApp:
    """The app that the request or a bound document names; enough of it to fill a command line."""

    app_id: AppId
    compose_hash: ComposeHash | None


class _Match(NamedTuple):
    """An image that shows the measurement, on this machine; with the app that fills its command line."""

    image: Image
    machine: NamedMachine
    cmdline_app: AppNames | None = None


class LaunchFinder:
    """Finds launches for one policy revision, and remembers what it computed.

    Measurements are computed when first needed, or ahead by `fill`. `before` is the finder of the revision
    before: what it computed of images that are still the same is used again. `after_each` is called after an
    image was computed, so that the caller's other threads get their turn. Threads may share a finder.
    """

    def __init__(
        self,
        allowed: AllowedImages,
        before: "LaunchFinder | None" = None,
        *,
        after_each: Callable[[], None] | None = None,
    ) -> None:
        self._allowed = allowed
        self._after_each = after_each
        images = tuple(allowed.images)
        self._templates = tuple(image for image in images if image.has_placeholders)
        self._index = MeasurementIndex() if before is None else before.index_for(len(images))
        self._indexed = {self._index.number(image): image for image in images if not image.has_placeholders}
        self._numbers = {id(image): number for number, image in self._indexed.items()}
        self._guest_chosen = RecentTables(_MAX_GUEST_CHOSEN_TABLES)
        self._launches: dict[tuple[Measurement, str | None, NamedApp | None], Launch] = {}
        self._filled = False

    def index_for(self, images: int) -> MeasurementIndex:
        """Give the index to the finder of a later revision; a new one when most would be of images gone."""
        return self._index if len(self._index) <= 2 * images else MeasurementIndex()

    def fill(self) -> None:
        """Compute all that does not depend on what a guest says: about a millisecond an image."""
        if not self._filled:
            self._compute(self._indexed)
            self._filled = True

    def _compute(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if self._index.compute(number) and self._after_each is not None:
                self._after_each()

    def only_looks_up(self, hint: LaunchHint, app: NamedApp | None) -> bool:
        """Say whether nothing is left to compute, nor follows from what the guest itself says."""
        names_app = app is not None and app.compose_hash is not None
        return self._filled and hint.description is None and not (names_app and self._templates)

    def find(self, verified: VerifiedReport, hint: LaunchHint, app: NamedApp | None) -> Launch | None:
        """Give the launch that the report's MEASUREMENT proves, or None if no allowed image shows it.

        The app's own images come first: if one of them matches, the others are not even computed.
        """
        measurement = verified.report.measurement
        key = (measurement, hint.image, app)
        launch = self._launches.get(key)
        if launch is not None and hint.description is None:
            return launch
        found = self._find(measurement, hint, app, proven=True)
        if found is None:
            return None
        launch = Launch(**{each.name: getattr(found, each.name) for each in fields(found)}, made_by=_HERE)
        if hint.description is None:
            # It follows from the revision and from nothing else: guests of one image are found at once.
            if len(self._launches) >= _MAX_REMEMBERED_LAUNCHES:
                self._launches.clear()
            self._launches[key] = launch
        return launch

    def may_show(self, claimed: Measurement, hint: LaunchHint, app: NamedApp | None) -> bool:
        """Say whether an allowed image shows a measurement that nobody has proven yet.

        A stranger without any chip must neither fill memory nor keep the processor busy: tables that follow
        from what the guest says are computed for this question alone, and only for the app's own images.
        """
        return self._find(claimed, hint, app, proven=False) is not None

    def find_again(
        self, measurement: Measurement, before: LaunchFacts | None, app: NamedApp | None
    ) -> MatchedLaunch | None:
        """Give the launch that `find` would now give for a measurement that some guest proved earlier.

        `before` is what it was then found to be; None if no allowed image showed it.
        """
        hint = LaunchHint(image=None if before is None else before.image)
        own, every = self._documented(measurement, app, proven=True)
        return (
            _best(measurement, own, hint) or self._described_before(before) or _best(measurement, every, hint)
        )

    def _find(
        self, measurement: Measurement, hint: LaunchHint, app: NamedApp | None, *, proven: bool
    ) -> MatchedLaunch | None:
        own, every = self._documented(measurement, app, proven=proven)
        return (
            _best(measurement, own, hint)
            or _best(measurement, self._described(hint, measurement, app, proven), hint)
            or _best(measurement, every, hint)
        )

    def _documented(
        self, measurement: Measurement, app: NamedApp | None, *, proven: bool
    ) -> tuple[Iterator[_Match], Iterator[_Match]]:
        """Look among the app's own images, and among all: these are computed when they are read."""
        own = self._allowed.images_of(app.app_id) if app else ()
        among = {self._numbers[id(image)]: image for image in own if id(image) in self._numbers}
        self._compute(among)
        templates = tuple(image for image in own if image.has_placeholders)
        return (
            chain(self._look_up(measurement, among), self._filled_in(templates, measurement, app, proven)),
            chain(
                self._look_up(measurement, self._indexed, fill=True),
                self._filled_in(self._templates if proven else (), measurement, app, proven),
            ),
        )

    def _look_up(
        self, measurement: Measurement, among: Mapping[int, Image], *, fill: bool = False
    ) -> Iterator[_Match]:
        """Look among these images; with `fill`, when all are computed."""
        if fill:
            self.fill()
        for number, machine in self._index.find(measurement):
            if number in among:
                yield _Match(among[number], machine)

    def _filled_in(
        self, templates: Iterable[Image], measurement: Measurement, app: NamedApp | None, remember: bool
    ) -> Iterator[_Match]:
        """Look at command lines with placeholders, filled in for the app that is named."""
        if app is None or app.compose_hash is None:
            return
        names = app.app_id, app.compose_hash
        for image in templates:
            for machine in self._guest_chosen.table(image, names, remember=remember).find(measurement):
                yield _Match(image, machine, names)

    def _described(
        self, hint: LaunchHint, measurement: Measurement, app: NamedApp | None, remember: bool
    ) -> Iterator[_Match]:
        """Look at the image that the guest describes, if its hash is allowed; else the hint is ignored."""
        if hint.description is None:
            return
        try:
            # The hash comes first: nothing is computed from a description that nobody allowed.
            if not self._allowed.lists_image_hash(os_image_hash(hint.description)):
                return
            image = Image.described_by_guest(hint.description)
        except MeasurementError:
            return
        if image.has_placeholders:
            yield from self._filled_in((image,), measurement, app, remember)
            return
        for machine in self._guest_chosen.table(image, None, remember=remember).find(measurement):
            yield _Match(image, machine)

    def _described_before(self, before: LaunchFacts | None) -> MatchedLaunch | None:
        """Take an image that a guest described for the same again, if its hash is allowed.

        Nobody keeps what guests describe, so that it cannot be recomputed: it was, from that hash, when the
        guest was judged. An image that a document described then is no such image.
        """
        if before is None or before.image is not None:
            return None
        if not self._allowed.lists_image_hash(before.os_image_hash):
            return None
        members = {each.name: getattr(before, each.name) for each in fields(LaunchFacts)}
        return MatchedLaunch(**members, enforces=UNDOCUMENTED_ENFORCES, cmdline_app=None)


def _best(measurement: Measurement, matches: Iterable[_Match], hint: LaunchHint) -> MatchedLaunch | None:
    """Give the launch of the images that match, named as the hint names it where one is named so."""
    found = sorted(matches, key=lambda each: (not _hinted(each.image, hint), each.image.name or ""))
    if not found:
        return None
    image, machine, cmdline_app = found[0]
    return MatchedLaunch(
        measurement=measurement,
        image=image.name,
        os_image_hash=image.os_image_hash,
        vcpus=machine.machine.vcpus,
        vcpu_type=machine.vcpu_type,
        guest_features=machine.machine.guest_features,
        # Several documents may describe the same launch: what all say it enforces is what counts.
        enforces=frozenset.intersection(*(each.image.enforces for each in found)),
        cmdline_app=cmdline_app,
    )


def _hinted(image: Image, hint: LaunchHint) -> bool:
    return hint.image is not None and hint.image in {image.name, image.os_image_hash.hex()}
