"""The world of ``kms demo --kds-down``: a policy for any chip, and guests that bring no certificates."""

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from kms.cli.demo_attacker import DISK, get_challenge
from kms.cli.demo_scene import KEYS, ImageFiles, SceneBroken, app_document, power_on, prepare_policy
from kms.cli.demo_server import RunningServer
from kms.encoding import b64url
from kms.guest.client import KeyClient
from kms.guest.errors import Problem, Refused, ServerUnreachable
from kms.guest.request import build_request
from kms.guest.transport import Connection
from kms.keys.envelope import Payload
from kms.keys.opening import RecipientKey
from kms.keys.sealing import Suite
from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.machine import Collateral, SimulatedMachine
from kms.snp.kds_paths import VcekOf
from kms.snp.product import Product
from kms.strict_json import JsonValue

_APP_FILE: Final = "app.yaml"
_LISTED_CHIPS: Final = "chips: [demo-rack]"
_ANY_CHIP: Final = "chips: any"
_ANSWER_WITHIN: Final = 20.0  # seconds; the server itself waits a little for the KDS
_BOOT_WITHIN: Final = 30.0


@dataclass(frozen=True, slots=True)
class BareGuest:
    """A guest on bare metal, whose host hands it no certificates: its report is all that it brings."""

    machine: SimulatedMachine

    def evidence(self, report_data: bytes) -> dict[str, JsonValue]:
        """Give evidence over 64 bytes, without certificates (`kms.guest.evidence.EvidenceSource`)."""
        return self.machine.evidence(report_data, collateral=Collateral.NONE)

    @property
    def chip(self) -> SimulatedChip:
        """The chip that it runs on."""
        return self.machine.guest.chip

    @property
    def certificate_path(self) -> str:
        """Where a KDS has the certificate of its chip."""
        return VcekOf(self.chip.hierarchy.product, self.chip.chip_id, self.chip.reported_tcb).path


@dataclass(frozen=True, slots=True, kw_only=True)
class Guests:
    """The machines of the demo: two in the rack, and an attacker's, of whose chip the KDS never heard.

    The attacker signs with a key of its own; nobody certified it, so it sends no certificate.
    """

    first: BareGuest
    second: BareGuest
    invented: BareGuest
    tampered: BareGuest

    @classmethod
    def power_on(cls, hierarchy: AmdHierarchy, files: ImageFiles) -> "Guests":
        """Start them all. The tampered one is the invented one with another command line."""
        second, invented = _chip(hierarchy, b"demo rack, second machine"), _chip(hierarchy, b"never made")
        other = replace(files, cmdline=files.cmdline + " init=/bin/sh")
        return cls(
            first=BareGuest(power_on(hierarchy, files)),
            second=_launch(second, files),
            invented=_launch(invented, files),
            tampered=_launch(invented, other),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of asking for keys: a payload, or a problem. `retries` were made by the guest on its own."""

    payload: Payload | None = None
    problem: Problem | None = None
    retry_after: int | None = None
    retries: int = 0

    @property
    def status(self) -> int | None:
        """The status of the last answer; None where there was none."""
        if self.payload is not None:
            return 200
        return None if self.problem is None else self.problem.status

    @property
    def code(self) -> str | None:
        """The code of the problem."""
        return None if self.problem is None else self.problem.code


def prepare_open_policy(files: ImageFiles, folder: Path) -> Path:
    """Copy the demo's policy below `folder`, and allow every genuine chip.

    An app that lists its chips never makes the server ask for another chip's certificate.

    Raises:
        SceneBroken: the demo's policy does not list its chips any more.

    """
    policies = prepare_policy(files, folder)
    app = policies / _APP_FILE
    text = app.read_text(encoding="utf-8")
    if text.count(_LISTED_CHIPS) != 1:
        raise SceneBroken(f"policies/demo/{_APP_FILE} does not say `{_LISTED_CHIPS}`")
    app.write_text(text.replace(_LISTED_CHIPS, _ANY_CHIP), encoding="utf-8")
    return policies


def boot(server: RunningServer, guest: BareGuest) -> Outcome:
    """Fetch all keys as a booting guest does: after a 503 or 429 it comes again when it was told to."""
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        time.sleep(seconds)

    client = KeyClient(
        server.url,
        ca_file=server.ca_file,
        identity=server.identity,
        source=guest,
        deadline=_BOOT_WITHIN,
        timeout=_ANSWER_WITHIN,
        sleep=sleep,
    )
    try:
        payload = client.fetch(KEYS, app_document=app_document())
    except (Refused, ServerUnreachable) as error:
        return Outcome(problem=error.problem, retries=len(waits))
    return Outcome(payload=payload, retries=len(waits))


def ask_once(connection: Connection, guest: BareGuest) -> Outcome:
    """Ask for the disk key once, and take the answer; keys are not opened, and so come without a payload."""
    recipient = RecipientKey.generate(Suite.X25519_SEALEDBOX)
    request = build_request(get_challenge(connection), recipient, DISK)
    evidence = guest.evidence(request.report_data)
    body: dict[str, JsonValue] = {"request": b64url(request.raw), "evidence": evidence}
    answer = connection.post("/v1/releases", body, remaining=lambda: _ANSWER_WITHIN)
    return Outcome(problem=answer.problem(), retry_after=answer.retry_after)


def _chip(hierarchy: AmdHierarchy, seed: bytes) -> SimulatedChip:
    chip_id = simulated_chip_id(Product.MILAN, seed)
    return SimulatedChip.typical(hierarchy, chip_id=chip_id, now=datetime.now(UTC))


def _launch(chip: SimulatedChip, files: ImageFiles) -> BareGuest:
    return BareGuest(SimulatedMachine.launch(chip, files.description(), app_document=app_document()))
