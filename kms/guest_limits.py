"""How often a chip and an app may ask: only what is proven counts, else anybody could lock them out."""

import math
from hashlib import sha256
from typing import Final

from kms.buckets import Buckets
from kms.errors import RateLimited
from kms.identifiers import AppId, ChipId

CHIP_RATE_LIMITED: Final = "chip-rate-limited"
APP_RATE_LIMITED: Final = "app-rate-limited"
_KEY_LENGTH: Final = 48


class ProvenLimits:
    """`kms.ports.GuestLimits` with a bucket for each chip, and one for each app."""

    def __init__(self, *, chips: Buckets, apps: Buckets) -> None:
        self._chips = chips
        self._apps = apps

    def take_chip(self, chip_id: ChipId | None) -> None:
        """Count a request whose report this chip signed; see `kms.ports.GuestLimits`.

        A report signed by a VLEK that names no chip is counted by its app and address alone.
        """
        if chip_id is not None:
            _take(self._chips, chip_id, CHIP_RATE_LIMITED)

    def take_app(self, app_id: AppId) -> None:
        """Count a request of a guest that the policy allows for this app; see `kms.ports.GuestLimits`."""
        _take(self._apps, app_id, APP_RATE_LIMITED)


def _take(buckets: Buckets, identifier: bytes, reason: str) -> None:
    # Hashed for one short length: what servers tell each other of it has a column (`kms.rate_sharing`).
    wait = buckets.retry_after(sha256(identifier).hexdigest()[:_KEY_LENGTH])
    if wait is not None:
        raise RateLimited("it asks too often", reason=reason, retry_after=math.ceil(wait))
