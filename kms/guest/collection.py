"""What both of the kernel's interfaces to the firmware have in common: a busy platform, and the wire form."""

import errno
import time
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from kms.encoding import b64url
from kms.evidence.sev_snp import TEE
from kms.guest.evidence import read_report
from kms.strict_json import JsonValue

HIGHEST_PRIVLEVEL: Final = 3  # VMPLs are 0 to 3; TSM_REPORT_PRIVLEVEL_MAX, include/linux/tsm.h
BUSY_PATIENCE: Final = 10.0  # seconds
_BUSY: Final = frozenset({errno.EBUSY, errno.EAGAIN})
_FIRST_PAUSE: Final = 0.1  # seconds
_LONGEST_PAUSE: Final = 1.0

T = TypeVar("T")


class BusyRetry:
    """Asks again while the platform is busy: a host may throttle its guests' requests.

    `patience` is in seconds, for one `persist`. `clock` and `sleep` are for tests.
    """

    def __init__(
        self,
        *,
        patience: float = BUSY_PATIENCE,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._patience = patience
        self._clock = clock
        self._sleep = sleep

    def persist(self, attempt: Callable[[], T]) -> T:
        """Give what an attempt gives; after EBUSY or EAGAIN it is made again, while patience lasts.

        Raises:
            OSError: what the last attempt failed with.

        """
        end, pause = self._clock() + self._patience, _FIRST_PAUSE
        while True:
            try:
                return attempt()
            except OSError as error:
                if error.errno not in _BUSY or self._clock() + pause > end:
                    raise
            self._sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def wire_evidence(
    report: bytes,
    certificate_table: bytes,
    launch: Mapping[str, JsonValue] | None,
    *,
    report_data: bytes,
) -> dict[str, JsonValue]:
    """Give evidence in the wire form of the protocol, section 2.

    An empty `certificate_table` is normal: many hosts hand none out, and the server finds the certificates.

    Raises:
        EvidenceError: `report` is none, or not over `report_data`.

    """
    evidence: dict[str, JsonValue] = {"tee": TEE, "report": b64url(report)}
    read_report(evidence, report_data)
    if certificate_table:
        evidence["certificate_table"] = b64url(certificate_table)
    if launch is not None:
        evidence["launch"] = dict(launch)
    return evidence
