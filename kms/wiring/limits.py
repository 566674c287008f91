"""Who may ask how often, and how much is worked on at once: from settings to what the server asks."""

import secrets
import time
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncEngine

from kms.buckets import Buckets
from kms.database.rate_takings import RateTakings
from kms.guest_limits import ProvenLimits
from kms.http.limits import AddressLimiter
from kms.http.places import Places
from kms.http.release_gate import BODIES, ReleaseGate
from kms.http.shares import Shares
from kms.http.total_limit import TotalLimit
from kms.rate_sharing import SharedLimits
from kms.settings import Rate, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a server process, at rest; `shared` is what makes some of them those of all servers."""

    addresses: AddressLimiter
    gate: ReleaseGate
    guests: ProvenLimits
    shared: SharedLimits


def build_limits(settings: Settings, engine: AsyncEngine) -> Limits:
    """Build the limits that the settings name."""
    addresses = AddressLimiter(*settings.rate_limit, time.monotonic)
    chips, apps = _buckets(settings.rate_limit_chip), _buckets(settings.rate_limit_app)
    return Limits(
        addresses=addresses,
        gate=ReleaseGate(
            TotalLimit(*settings.rate_limit_total, time.monotonic),
            Places(settings.max_in_flight),
            Shares(BODIES),
        ),
        guests=ProvenLimits(chips=chips, apps=apps),
        shared=SharedLimits(
            RateTakings(engine),
            {"a": addresses.buckets, "c": chips, "p": apps},
            server=secrets.token_hex(16),
        ),
    )


def _buckets(rate: Rate) -> Buckets:
    return Buckets(*rate, time.monotonic)
