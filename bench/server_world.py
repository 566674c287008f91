"""Who asks the servers of the bench: machines of a SIMULATED rack, and their requests, signed beforehand."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from bench.server_guests import Guests, http_post
from kms.encoding import b64url
from kms.keys.opening import RecipientKey
from kms.keys.sealing import Suite
from kms.request import report_data
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.e2e.rack import Rack

_CHIPS: Final = 4
_INSTANCES: Final = 16
_UNLIMITED: Final = "1000000/s burst 1000000"
SUITE: Final = Suite.X25519_SEALEDBOX


class World:
    """A rack of machines that may have their keys, and the settings of a server that knows them.

    Nothing is switched off in the server. Its limits are wide, because all guests come from one address with
    a few chips, and challenges live long enough to be signed before they are used.
    """

    def __init__(self, folder: Path) -> None:
        now = datetime.now(UTC)
        hierarchy = AmdHierarchy.generate(Product.MILAN, now=now - timedelta(days=30))
        rack = Rack(folder, hierarchy, _CHIPS)
        self._guests = [rack.guest(number) for number in range(_INSTANCES)]
        # Without one, the store is asked for a list again and again.
        collateral = folder / "collateral" / "vcek" / "Milan"
        collateral.mkdir(parents=True)
        end = now + timedelta(days=7)
        (collateral / "crl").write_bytes(hierarchy.revocation_list(this_update=now, next_update=end))
        self.settings = {
            **rack.settings,
            "KMS_COLLATERAL_DIR": str(folder / "collateral"),
            "KMS_CHALLENGE_TTL": "3600",
            **dict.fromkeys(
                ("KMS_RATE_LIMIT", "KMS_RATE_LIMIT_TOTAL", "KMS_RATE_LIMIT_CHIP", "KMS_RATE_LIMIT_APP"),
                _UNLIMITED,
            ),
        }

    def requests(self, guests: Guests, number: int) -> list[bytes]:
        """Take so many challenges, and give a request with signed evidence for each."""
        return [
            self._request(place, json.loads(body)["challenge"])
            for place, body in enumerate(guests.challenges(number))
        ]

    def _request(self, place: int, challenge: str) -> bytes:
        key, guest = RecipientKey.generate(SUITE), self._guests[place % _INSTANCES]
        asked = {
            "challenge": challenge,
            "recipient": {"suite": SUITE.value, "public_key": b64url(key.public_key)},
            "keys": [{"name": "disk", "scope": "app"}],
        }
        request = json.dumps(asked).encode("ascii")
        body = {"request": b64url(request), "evidence": guest.evidence(report_data(request))}
        return http_post("/v1/releases", json.dumps(body).encode("ascii"))
