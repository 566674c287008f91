"""What the SIMULATED key distribution service answers: the truth, or what its faults make of it."""

import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import shake_256
from typing import Final

from kms.simulator.kds_faults import FAILURES, Faults, Throttle, retry_after_header
from kms.simulator.kds_shelf import Document, Shelf
from kms.snp.kds_paths import VcekOf, Wanted

_GARBAGE: Final = shake_256(b"neither a certificate nor a list").digest(1500)
_NOTHING: Final = Document("text/plain", b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer that is about to be sent. `genuine` says that it is the right one."""

    status: int
    document: Document = _NOTHING
    headers: Mapping[str, str] = field(default_factory=dict)
    genuine: bool = False


class Replies:
    """Decides on replies. The `seed` decides which requests fail; `clock` dates when to come again."""

    def __init__(self, shelf: Shelf, clock: Callable[[], datetime], seed: int) -> None:
        self._shelf = shelf
        self._clock = clock
        self._chance = random.Random(seed)  # noqa: S311 -- a run can be repeated
        self._lock = threading.Lock()
        self.throttle = Throttle()

    def to(self, wanted: Wanted | None, faults: Faults) -> Reply:
        """Decide on the reply to a request that has arrived and is not cut off."""
        with self._lock:
            fails, failure = self._chance.random() < faults.failing, self._chance.choice(FAILURES)
        if fails:
            return Reply(status=failure)
        if faults.redirect is not None:
            return Reply(status=302, headers={"Location": faults.redirect})
        if isinstance(wanted, VcekOf) and (wait := self.throttle.take(faults.interval)):
            return Reply(status=429, headers=retry_after_header(faults.retry_after, wait, self._clock()))
        document = self._shelf.find(wanted)
        if document is None:
            return Reply(status=404)
        if isinstance(wanted, VcekOf) and faults.wrong_certificate:
            return Reply(status=200, document=self._shelf.of_another_chip(wanted) or _NOTHING)
        if faults.garbage:
            return Reply(status=200, document=Document(document.content_type, _GARBAGE))
        return Reply(status=200, document=document, genuine=not (faults.oversized or faults.cut))
