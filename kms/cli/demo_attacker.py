"""An attacker of the demo: everything but the honest chip's key and the image's cooperation.

It has the network, the host, the honest machine to overhear and to launch anew, and a root of its own.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from kms.cli.demo_scene import ImageFiles, app_document
from kms.encoding import b64url
from kms.guest.request import build_request
from kms.guest.transport import Answer, Connection
from kms.keys.names import KeyRequest
from kms.keys.opening import RecipientKey
from kms.keys.sealing import Suite
from kms.measurement.guest_features import SNP_ACTIVE
from kms.simulator.chip import POLICY, SimulatedGuest
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.machine import SimulatedMachine
from kms.strict_json import Fields, JsonValue

DISK: Final = (KeyRequest.parse("disk", "app"),)
_EXCHANGE_TIMEOUT: Final = 15.0  # seconds


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and the evidence for it, as one would overhear them."""

    request: bytes
    evidence: dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class EarlyChallenge:
    """A genuine challenge, and when it is over by `time.monotonic`."""

    challenge: bytes
    over: float

    @classmethod
    def get(cls, connection: Connection, lifetime: int) -> "EarlyChallenge":
        """Get one from a server whose challenges live `lifetime` seconds."""
        # Asked for before the clock is read, so it is over by then.
        challenge = get_challenge(connection)
        return cls(challenge, time.monotonic() + lifetime)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attacker:
    """Somebody with the network, the host and the honest machine at hand, and a root of its own."""

    connection: Connection
    files: ImageFiles
    machine: SimulatedMachine
    rogue_hierarchy: AmdHierarchy
    early: EarlyChallenge

    def challenge(self) -> bytes:
        """Get a challenge, as anybody may."""
        return get_challenge(self.connection)

    def exchange(
        self,
        machine: SimulatedMachine,
        *,
        challenge: bytes | None = None,
        keys: Sequence[KeyRequest] = DISK,
    ) -> Exchange:
        """Write a request and have a machine sign it."""
        recipient = RecipientKey.generate(Suite.X25519_SEALEDBOX)
        request = build_request(challenge or self.challenge(), recipient, keys)
        return Exchange(request.raw, machine.evidence(request.report_data))

    def send(self, exchange: Exchange) -> Answer:
        """Send a request with its evidence."""
        body: dict[str, JsonValue] = {"request": b64url(exchange.request), "evidence": exchange.evidence}
        return self.connection.post("/v1/releases", body, remaining=lambda: _EXCHANGE_TIMEOUT)

    def ask(self, machine: SimulatedMachine, keys: Sequence[KeyRequest] = DISK) -> Answer:
        """Ask for keys with whatever machine."""
        return self.send(self.exchange(machine, keys=keys))

    def ask_as(self, guest: SimulatedGuest) -> Answer:
        """Ask for keys as the honest machine with another guest in it."""
        return self.ask(replace(self.machine, guest=guest))

    def launch(
        self, files: ImageFiles, *, policy: int = POLICY, guest_features: int = SNP_ACTIVE
    ) -> SimulatedMachine:
        """Launch other files, or in another way, on the honest chip and under the honest app document."""
        return SimulatedMachine.launch(
            self.machine.guest.chip,
            files.description(),
            app_document=app_document(),
            policy=policy,
            guest_features=guest_features,
        )


def get_challenge(connection: Connection) -> bytes:
    """Get a fresh challenge."""
    answer = connection.post("/v1/challenges", {}, remaining=lambda: _EXCHANGE_TIMEOUT)
    return Fields(answer.json(), "challenge").base64("challenge", at_most=256)
