"""Which allowed image was launched, on what machine: found by recomputing what it would measure.

The guest's hint only orders the search. An expected measurement is never taken from a caller (field
lesson 19): every candidate's is computed here from the operator's own description, or from a description
whose hash the operator allowed.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import InitVar, dataclass, replace
from itertools import chain
from threading import Lock
from typing import Final, Protocol

from kms.evidence.app_document import AppIdentity
from kms.identifiers import AppId, ComposeHash, Measurement, OsImageHash
from kms.measurement.description import os_image_hash
from kms.measurement.errors import MeasurementError
from kms.measurement.images import Binding, Image, LaunchHint, MeasurementTable
from kms.snp.verify import VerifiedReport

# Tables of command lines filled with what a guest claims, and of images that only a guest describes: a
# stranger with one SNP machine chooses how many there are, so only the latest are kept.
_MAX_GUEST_CHOSEN_TABLES: Final = 64
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
class Launch(LaunchFacts):
    """The launch that a verified report shows. Made only by `LaunchFinder`, by recomputing.

    `enforces` is what every listed document of this image agrees that it enforces. `cmdline_app` is the app
    that the measured command line names, when it names one.
    """

    enforces: frozenset[Binding]
    cmdline_app: tuple[AppId, ComposeHash] | None
    made_by: InitVar[object]

    def __post_init__(self, made_by: object) -> None:
        if made_by is not _HERE:
            raise TypeError("only recomputing a measurement makes a Launch")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedApp:
    """The app that the request or a bound document names; enough of it to fill a command line."""

    app_id: AppId
    compose_hash: ComposeHash | None


class LaunchFinder:
    """Finds launches for one policy revision, and remembers what it computed.

    Tables are computed when first needed, or ahead by `fill`. Threads may share it.
    """

    def __init__(self, allowed: AllowedImages) -> None:
        self._allowed = allowed
        self._tables: dict[int, MeasurementTable] = {}
        self._guest_chosen: OrderedDict[tuple[object, ...], MeasurementTable] = OrderedDict()
        self._lock = Lock()
        self.filled = False

    def fill(self) -> None:
        """Compute every table that does not depend on what a guest says: about a millisecond an image."""
        for image in self._allowed.images:
            if not image.has_placeholders:
                self._table(image, None).compute()
        self.filled = True

    def find(self, verified: VerifiedReport, hint: LaunchHint, app: NamedApp | None) -> Launch | None:
        """Give the launch that the report's MEASUREMENT proves, or None if no allowed image shows it.

        The app's own images come first: if one of them matches, the others are not even computed.
        """
        return self._find(verified.report.measurement, hint, app, remember=True)

    def may_show(self, claimed: Measurement, hint: LaunchHint, app: NamedApp | None) -> bool:
        """Say whether an allowed image shows a measurement that nobody has proven yet.

        Tables that follow from what the guest says are computed for this question alone: a stranger without
        any chip must not fill memory with them.
        """
        return self._find(claimed, hint, app, remember=False) is not None

    def _find(
        self, measurement: Measurement, hint: LaunchHint, app: NamedApp | None, *, remember: bool
    ) -> Launch | None:
        own = self._allowed.images_of(app.app_id) if app else ()
        described = self._described(hint)
        known = {id(image) for image in own}
        others = [image for image in self._allowed.images if id(image) not in known]
        for group in (_hinted_first(own, hint), described, _hinted_first(others, hint)):
            launch = self._find_among(group, measurement, app, remember=remember)
            if launch is not None:
                return launch
        return None

    def _find_among(
        self, images: Iterable[Image], measurement: Measurement, app: NamedApp | None, *, remember: bool
    ) -> Launch | None:
        found: Launch | None = None
        for image in images:
            cmdline_app = _cmdline_app(image, app)
            if image.has_placeholders and cmdline_app is None:
                continue
            table = self._table(image, cmdline_app, remember=remember)
            for machine in table.find(measurement):
                if found is not None:
                    # Two documents may describe the same launch: what both say it enforces is what counts.
                    found = replace(found, enforces=found.enforces & image.enforces, made_by=_HERE)
                    continue
                found = Launch(
                    measurement=measurement,
                    image=image.name,
                    os_image_hash=image.os_image_hash,
                    vcpus=machine.machine.vcpus,
                    vcpu_type=machine.vcpu_type,
                    guest_features=machine.machine.guest_features,
                    enforces=image.enforces,
                    cmdline_app=cmdline_app,
                    made_by=_HERE,
                )
        return found

    def _described(self, hint: LaunchHint) -> tuple[Image, ...]:
        """Give the image that the guest describes, if its hash is allowed; else the hint is ignored."""
        if hint.description is None:
            return ()
        try:
            # The hash comes first: nothing is computed from a description that nobody allowed.
            if not self._allowed.lists_image_hash(os_image_hash(hint.description)):
                return ()
            return (Image.described_by_guest(hint.description),)
        except MeasurementError:
            return ()

    def _table(
        self, image: Image, cmdline_app: tuple[AppId, ComposeHash] | None, *, remember: bool = True
    ) -> MeasurementTable:
        if image.name is not None and cmdline_app is None:
            table = self._tables.get(id(image))
            if table is None:
                table = self._tables[id(image)] = MeasurementTable(image)
            return table
        key = (image.name, image.os_image_hash, cmdline_app)
        with self._lock:
            table = self._guest_chosen.pop(key, None)
            known = table is not None
            if table is None:
                cmdline = None if cmdline_app is None else image.filled_cmdline(*cmdline_app)
                table = MeasurementTable(image, cmdline)
            if remember or known:
                # The latest stands last; the first to go is the one that nobody asked for longest.
                self._guest_chosen[key] = table
            if len(self._guest_chosen) > _MAX_GUEST_CHOSEN_TABLES:
                self._guest_chosen.popitem(last=False)
        return table


def choose_identity(
    launch: Launch, document: AppIdentity | None, accepted: frozenset[Binding]
) -> AppIdentity | None:
    """Give the app identity that counts for this launch; None if nothing binds one.

    `accepted` are the bindings that the app's policy takes. Where both a document and the command line name
    the app, the one that the image enforces and the app accepts is used; policy checks that they agree.
    """
    by_cmdline = None
    if launch.cmdline_app is not None:
        app_id, compose_hash = launch.cmdline_app
        by_cmdline = AppIdentity(
            app_id=app_id, compose_hash=compose_hash, instance_id=None, binding=Binding.CMDLINE
        )
    offered = [identity for identity in (document, by_cmdline) if identity is not None]
    counting = [
        identity
        for identity in offered
        if identity.binding in launch.enforces and identity.binding in accepted
    ]
    return next(chain(counting, offered), None)


def _cmdline_app(image: Image, app: NamedApp | None) -> tuple[AppId, ComposeHash] | None:
    if not image.has_placeholders or app is None or app.compose_hash is None:
        return None
    return app.app_id, app.compose_hash


def _hinted_first(images: Iterable[Image], hint: LaunchHint) -> Iterator[Image]:
    listed = list(images)
    if hint.image is not None:
        listed.sort(key=lambda image: hint.image not in {image.name, image.os_image_hash.hex()})
    return iter(listed)
