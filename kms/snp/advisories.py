"""AMD's security bulletins, and what a report can show of their fixes.

AMD publishes no machine-readable status of a TCB, and four equal TCB versions say only that four numbers are
equal (field lesson 7). So each bulletin is kept with the figures that a report must show, per product and
where they differ per CPU, each with its source (`kms/snp/advisories.toml`, read by `kms.snp.advisory_file`).
A bulletin without a public figure is kept too, with the reason, so that nobody takes its absence for a fix.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

from typing_extensions import override

from kms.snp.flags import PlatformInfo
from kms.snp.product import Cpuid, Product
from kms.snp.report import FirmwareVersion
from kms.snp.tcb import TcbVersions

_REMEMBERED: Final = 1024  # platforms that were assessed: a fleet has few kinds


class Standing(StrEnum):
    """What a report shows of one bulletin."""

    OPEN = "open"
    FIXED = "fixed"
    NOT_CONCERNED = "not-concerned"  # the bulletin does not name this product
    NOT_ATTESTABLE = "not-attestable"  # no figure is known that a report of this CPU could show
    UNKNOWN = "unknown"  # no such bulletin in the data


class TcbStatus(StrEnum):
    """The sum of it, for BootInfo. `UNKNOWN`: no bulletin has a figure for this CPU, so nothing is told."""

    UP_TO_DATE = "up-to-date"
    OUT_OF_DATE = "out-of-date"
    UNKNOWN = "unknown"


class Platform(Protocol):
    """What a report says of firmware and host; a `kms.boot_info.BootInfo` is one."""

    @property
    def product(self) -> Product:
        """The product line."""
        ...

    @property
    def cpuid(self) -> Cpuid | None:
        """CPUID; None in a version 2 report."""
        ...

    @property
    def tcb(self) -> TcbVersions:
        """The four TCB versions."""
        ...

    @property
    def current_firmware(self) -> FirmwareVersion:
        """The running firmware."""
        ...

    @property
    def committed_firmware(self) -> FirmwareVersion:
        """The firmware that the host cannot go back behind."""
        ...

    @property
    def platform_info(self) -> PlatformInfo:
        """PLATFORM_INFO."""
        ...

    @property
    def launch_mitigations(self) -> int | None:
        """LAUNCH_MIT_VECTOR; None before version 5."""
        ...

    @property
    def current_mitigations(self) -> int | None:
        """CURRENT_MIT_VECTOR; None before version 5."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What a report must show, all of what is given here. `str()` says it in words.

    `tcb` holds minimum levels by component, `platform` names of PLATFORM_INFO bits, `mitigations` a mask of
    bits of both mitigation vectors. `cpus` are those that the figure is for, empty for all of the product.
    `secondary` is True where `source` is not AMD but somebody who reads AMD's bulletin.
    """

    tcb: Mapping[str, int] = field(default_factory=dict)
    firmware: FirmwareVersion | None = None
    platform: tuple[str, ...] = ()
    mitigations: int = 0
    cpus: tuple[Cpuid, ...] = ()
    source: str
    secondary: bool

    def shown_by(self, platform: Platform) -> bool:
        """Say whether the report shows it; a field that the report does not have shows nothing."""
        # Reported, for only that is bound to the endorsement key; and committed, for a host may go back to
        # whatever is not committed as soon as the report is signed.
        versions = (platform.tcb.reported, platform.tcb.committed)
        if any(version.below(self.tcb) for version in versions):
            return False
        if self.firmware is not None:
            both = (platform.current_firmware, platform.committed_firmware)
            if any(_order(each) < _order(self.firmware) for each in both):
                return False
        if self.platform:
            bits = platform.platform_info.bits()
            if not all(bits[name] for name in self.platform):
                return False
        # At launch as well: what was open while the guest was loaded may have been used then.
        vectors = (platform.launch_mitigations, platform.current_mitigations)
        return not self.mitigations or all(
            seen is not None and seen & self.mitigations == self.mitigations for seen in vectors
        )

    @override
    def __str__(self) -> str:
        words = [f"{name} at least {level}" for name, level in self.tcb.items()]
        if self.firmware is not None:
            words.append(f"firmware at least {self.firmware}")
        words += [f"platform bit {name}" for name in self.platform]
        words += [f"mitigation bit {bit}" for bit in range(64) if self.mitigations >> bit & 1]
        cpus = ", ".join(cpu_text(each) for each in self.cpus)
        return " and ".join(words) + (f" on {cpus}" if cpus else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Concern:
    """What one bulletin means for one product.

    `figures` are necessary: without them the fix is not there. With `not_attestable`, the reason, they are
    not sufficient: a report that shows them all still does not prove the fix.
    """

    figures: tuple[Figure, ...]
    not_attestable: str | None

    def standing(self, platform: Platform) -> Standing:
        """Say what a report shows. Without CPUID (version 2) the figures of every CPU must be shown."""
        cpuid = platform.cpuid
        judged = [each for each in self.figures if cpuid is None or not each.cpus or cpuid in each.cpus]
        if not all(figure.shown_by(platform) for figure in judged):
            return Standing.OPEN
        return Standing.FIXED if self.is_complete(cpuid) else Standing.NOT_ATTESTABLE

    def is_complete(self, cpuid: Cpuid | None) -> bool:
        """Say whether the figures prove the fix on this CPU: those of other silicon say nothing."""
        own = [each for each in self.figures if each.cpus]
        known = cpuid is None or not own or any(cpuid in each.cpus for each in own)
        return self.not_attestable is None and known

    def has_figure(self, cpuid: Cpuid | None) -> bool:
        """Say whether any figure is for this CPU."""
        return any(cpuid is None or not each.cpus or cpuid in each.cpus for each in self.figures)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advisory:
    """One bulletin: its id (``AMD-SB-3015``), what it is about, and the products that it concerns."""

    id: str
    title: str
    cves: tuple[str, ...]
    published: str | None
    url: str
    concerns: Mapping[Product, Concern]


class Advisories:
    """Every bulletin of the data, in the order of their ids."""

    def __init__(self, advisories: Iterable[Advisory]) -> None:
        self._by_id: Final = {each.id: each for each in sorted(advisories, key=lambda each: each.id)}
        self._by_product: Final[Mapping[Product, tuple[tuple[str, Concern], ...]]] = {
            product: tuple(
                (each.id, each.concerns[product]) for each in self._by_id.values() if product in each.concerns
            )
            for product in Product
        }

    def __iter__(self) -> Iterator[Advisory]:
        return iter(self._by_id.values())

    @property
    def ids(self) -> tuple[str, ...]:
        """Every id."""
        return tuple(self._by_id)

    def get(self, advisory_id: str) -> Advisory | None:
        """Give the bulletin of this id, if it is known."""
        return self._by_id.get(advisory_id)

    def concerning(self, product: Product) -> tuple[tuple[str, Concern], ...]:
        """Give what concerns a product, by id."""
        return self._by_product[product]

    def standing(self, advisory_id: str, platform: Platform) -> Standing:
        """Say what a report shows of one bulletin."""
        advisory = self._by_id.get(advisory_id)
        if advisory is None:
            return Standing.UNKNOWN
        concern = advisory.concerns.get(platform.product)
        return Standing.NOT_CONCERNED if concern is None else concern.standing(platform)


# Knows no bulletin: whoever forbids one is told that no report can show its fix.
NO_ADVISORIES: Final = Advisories(())


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """What a report shows of all of them: `advisories` are the ids of those that are open."""

    tcb_status: TcbStatus
    advisories: tuple[str, ...]


def assess(advisories: Advisories, platform: Platform) -> Assessment:
    """Judge a report by every bulletin that concerns its product.

    Bulletins that no report can show do not count: they would make every platform out of date for ever.
    """
    return _assess(advisories, _Shown(*(getattr(platform, name) for name in _Shown._fields)))


class _Shown(NamedTuple):
    """A `Platform`, and nothing else of what has one: many guests show the same."""

    product: Product
    cpuid: Cpuid | None
    tcb: TcbVersions
    current_firmware: FirmwareVersion
    committed_firmware: FirmwareVersion
    platform_info: PlatformInfo
    launch_mitigations: int | None
    current_mitigations: int | None


@lru_cache(maxsize=_REMEMBERED)
def _assess(advisories: Advisories, platform: _Shown) -> Assessment:
    concerning = advisories.concerning(platform.product)
    found = tuple(name for name, concern in concerning if concern.standing(platform) is Standing.OPEN)
    if found:
        status = TcbStatus.OUT_OF_DATE
    elif any(concern.has_figure(platform.cpuid) for _, concern in concerning):
        status = TcbStatus.UP_TO_DATE
    else:
        status = TcbStatus.UNKNOWN
    return Assessment(tcb_status=status, advisories=found)


def cpu_text(cpuid: Cpuid) -> str:
    """Write CPUID family, model and stepping as the data does: ``0x19/0x01/1``."""
    return f"{cpuid.family:#04x}/{cpuid.model:#04x}/{cpuid.stepping}"


def _order(version: FirmwareVersion) -> tuple[int, int, int]:
    # A version number is ordered from left to right; a TCB version is not (kms.snp.tcb).
    return version.major, version.minor, version.build
