"""A SIMULATED key distribution service (KDS): AMD's paths over real HTTP on 127.0.0.1, and its bad days.

::

    with SimulatedKds([hierarchy], [chip]) as kds:
        ...  # a server with KMS_KDS_URLS = kds.url
        kds.faults = Faults(down=True)

Its certificates are worth nothing but under the simulated root. Every answer has the header
`KDS-Simulation: true`. Paths and documents: VCEK specification 57230, "KDS interface".
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from kms.simulator.chip import SimulatedChip
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.kds_faults import Faults
from kms.simulator.kds_http import KdsServer
from kms.simulator.kds_log import Asked, Kind, RequestLog
from kms.simulator.kds_replies import Replies
from kms.simulator.kds_shelf import Shelf
from kms.snp.kds_paths import Line


class SimulatedKds:
    """The service; it runs while it is entered.

    It hands out a VCEK for each TCB up to the current one of every chip in its books. `faults` may be set at
    any moment, and holds for requests from then on. `clock` (aware, UTC) dates revocation lists and
    `Retry-After`; `seed` decides which requests fail.
    """

    def __init__(
        self,
        hierarchies: Iterable[AmdHierarchy],
        chips: Iterable[SimulatedChip] = (),
        *,
        faults: Faults = Faults(),  # noqa: B008 -- frozen
        clock: Callable[[], datetime] | None = None,
        seed: int = 0,
    ) -> None:
        self.faults = faults
        clock = clock or _utc_now
        self._shelf = Shelf(hierarchies, clock)
        self._replies = Replies(self._shelf, clock, seed)
        self._log = RequestLog()
        self._server: KdsServer | None = None
        self.add(*chips)

    def __enter__(self) -> Self:
        self._server = KdsServer(self._replies, self._log, lambda: self.faults)
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        server.stop()
        if server.defect is not None and value is None:
            # Or a defect of the simulation would pass for a fault that was ordered.
            raise server.defect

    @property
    def url(self) -> str:
        """The base address, `http://127.0.0.1:PORT`. Raises `RuntimeError` while it does not run."""
        if self._server is None:
            raise RuntimeError("the simulated KDS does not run")
        return f"http://127.0.0.1:{self._server.port}"

    def add(self, *chips: SimulatedChip) -> None:
        """Take chips into the books, or in place of what was known of them."""
        for chip in chips:
            self._shelf.add(chip)

    def publish(self, line: Line, revocation_list: bytes | None) -> None:
        """Serve these bytes as a line's revocation list; None: one that revokes nothing, as at first."""
        self._shelf.publish(line, revocation_list)

    def use_turn(self) -> None:
        """Use up the throttle's turn, as somebody else behind the same address would."""
        self._replies.throttle.take(0)

    @property
    def log(self) -> tuple[Asked, ...]:
        """Every request so far, in the order of arrival."""
        return self._log.entries()

    def asked(self, kind: Kind | None = None) -> int:
        """Count requests, by default of every kind; those that got no answer count too."""
        return sum(kind in {None, each.kind} for each in self.log)

    def served(self, path: str) -> int:
        """Count how often the right answer for a path (with its query) went out whole."""
        return sum(each.genuine and each.path == path for each in self.log)


def _utc_now() -> datetime:
    return datetime.now(UTC)
