"""What attackers try against the demo's server, and the only acceptable answer to each.

Each attack is built from honest parts and one lie.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final

from kms.cli.demo_attacker import Attacker, Exchange
from kms.cli.demo_scene import SceneBroken, app_document
from kms.encoding import b64url, from_base64
from kms.guest.transport import Answer
from kms.keys.names import KeyRequest
from kms.measurement.guest_features import FEATURE_BITS, SNP_ACTIVE
from kms.simulator.chip import POLICY, simulated_chip_id
from kms.simulator.kernel import fake_kernel
from kms.simulator.machine import SimulatedMachine
from kms.snp.product import Product
from kms.snp.report import VMPL_HOST

_DEBUG_BIT: Final = 1 << 19  # POLICY.DEBUG, SNP ABI 56860
_DEBUG_SWAP: Final = SNP_ACTIVE | 1 << FEATURE_BITS["debug-swap"]
_EVIL_COMPOSE: Final = sha256(b"services: {exfiltrate: {}}").digest()

_UNTRUSTED: Final = "evidence-untrusted"
_UNKNOWN: Final = "measurement-unknown"
_DENIED: Final = "policy-denied"

_Run = Callable[[Attacker], Answer]


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack, and its answer: status, code, and one of the reasons where the code has several."""

    name: str
    tries: str
    status: int
    code: str
    reason: str | None
    run: _Run


_attacks: list[Attack] = []


def _attack(
    name: str, tries: str, status: int, code: str, reason: str | None = None
) -> Callable[[_Run], _Run]:
    def listed(run: _Run) -> _Run:
        _attacks.append(Attack(name, tries, status, code, reason, run))
        return run

    return listed


@_attack("replayed challenge", "sends an honest guest's whole exchange a second time", 409, "challenge-used")
def _replayed_challenge(attacker: Attacker) -> Answer:
    exchange = attacker.exchange(attacker.machine)
    first = attacker.send(exchange)
    if first.status != 200:
        raise SceneBroken(f"the honest exchange to replay was answered {first.status}")
    return attacker.send(exchange)


@_attack(
    "another guest's report",
    "sends an overheard report with a request of its own",
    403,
    _UNTRUSTED,
    "report-data-mismatch",
)
def _anothers_report(attacker: Attacker) -> Answer:
    overheard = attacker.exchange(attacker.machine)
    own = attacker.exchange(attacker.machine)
    return attacker.send(Exchange(own.request, overheard.evidence))


@_attack(
    "request altered after signing",
    "asks for another key than the hardware signed",
    403,
    _UNTRUSTED,
    "report-data-mismatch",
)
def _altered_request(attacker: Attacker) -> Answer:
    exchange = attacker.exchange(attacker.machine)
    return attacker.send(replace(exchange, request=exchange.request.replace(b'"disk"', b'"env"')))


@_attack("forged report", "clears the debug bit in a signed report", 403, _UNTRUSTED, "report-signature")
def _forged_report(attacker: Attacker) -> Answer:
    """Take the report of a debug guest and clear its DEBUG bit."""
    exchange = attacker.exchange(attacker.launch(attacker.files, policy=POLICY | _DEBUG_BIT))
    text = exchange.evidence["report"]
    report = bytearray(from_base64(text if isinstance(text, str) else ""))
    report[0x008:0x010] = POLICY.to_bytes(8, "little")  # POLICY, SNP ABI 56860
    return attacker.send(Exchange(exchange.request, exchange.evidence | {"report": b64url(bytes(report))}))


@_attack(
    "unknown root",
    "signs with a whole key hierarchy of its own that calls itself AMD's",
    403,
    _UNTRUSTED,
    "root-unknown",
)
def _unknown_root(attacker: Attacker) -> Answer:
    forged = replace(attacker.machine.guest.chip, hierarchy=attacker.rogue_hierarchy)
    return attacker.ask_as(replace(attacker.machine.guest, chip=forged))


@_attack(
    "report requested by the host",
    "has the host ask for the report, over data of the host's choice",
    403,
    _UNTRUSTED,
    "requested-by-host",
)
def _requested_by_host(attacker: Attacker) -> Answer:
    return attacker.ask_as(replace(attacker.machine.guest, vmpl=VMPL_HOST))


@_attack("app document swapped", "sends a document of its own", 403, _UNTRUSTED, "host-data-mismatch")
def _swapped_document(attacker: Attacker) -> Answer:
    return attacker.ask(replace(attacker.machine, app_document=app_document(compose_hash=_EVIL_COMPOSE)))


@_attack("tampered kernel", "boots the image with a kernel that has a back door", 403, _UNKNOWN, _UNKNOWN)
def _tampered_kernel(attacker: Attacker) -> Answer:
    return attacker.ask(attacker.launch(replace(attacker.files, kernel=fake_kernel(b"backdoor"))))


@_attack("changed command line", "boots with init=/bin/sh", 403, _UNKNOWN, _UNKNOWN)
def _changed_cmdline(attacker: Attacker) -> Answer:
    return attacker.ask(
        attacker.launch(replace(attacker.files, cmdline=attacker.files.cmdline + " init=/bin/sh"))
    )


@_attack("other guest features", "switches DebugSwap on", 403, _UNKNOWN, _UNKNOWN)
def _debug_swap(attacker: Attacker) -> Answer:
    return attacker.ask(attacker.launch(attacker.files, guest_features=_DEBUG_SWAP))


@_attack(
    "debug policy", "launches the guest so that the host may read its memory", 403, _DENIED, "debug-enabled"
)
def _debug_policy(attacker: Attacker) -> Answer:
    return attacker.ask(attacker.launch(attacker.files, policy=POLICY | _DEBUG_BIT))


@_attack(
    "old TCB", "rolls the platform back to firmware with known holes", 403, _DENIED, "tcb-reported-too-low"
)
def _old_tcb(attacker: Attacker) -> Answer:
    chip = attacker.machine.guest.chip
    old = replace(chip.reported_tcb, snp=chip.reported_tcb.snp - 10)
    rolled_back = replace(chip, reported_tcb=old, current_tcb=old, committed_tcb=old)
    return attacker.ask_as(replace(attacker.machine.guest, chip=rolled_back, launch_tcb=old))


@_attack(
    "chip not listed", "runs the very same guest on a machine elsewhere", 403, _DENIED, "chip-not-listed"
)
def _unlisted_chip(attacker: Attacker) -> Answer:
    elsewhere = replace(
        attacker.machine.guest.chip, chip_id=simulated_chip_id(Product.MILAN, b"a machine in another rack")
    )
    return attacker.ask_as(replace(attacker.machine.guest, chip=elsewhere))


@_attack(
    "another workload",
    "launches the image with a well-bound document of a workload that nobody allowed",
    403,
    _DENIED,
    "compose-not-listed",
)
def _other_workload(attacker: Attacker) -> Answer:
    evil = app_document(compose_hash=_EVIL_COMPOSE)
    return attacker.ask(
        SimulatedMachine.launch(attacker.machine.guest.chip, attacker.files.description(), app_document=evil)
    )


@_attack(
    "image that does not enforce its document",
    "uses a listed image that never checks the app document",
    403,
    _DENIED,
    "binding-not-enforced",
)
def _image_that_does_not_enforce(attacker: Attacker) -> Answer:
    return attacker.ask(
        attacker.launch(replace(attacker.files, cmdline=attacker.files.cmdline + " dstack=1"))
    )


@_attack(
    "VMPL 3", "asks from a process that took over a lower privilege level", 403, _DENIED, "vmpl-not-allowed"
)
def _vmpl_3(attacker: Attacker) -> Answer:
    return attacker.ask_as(replace(attacker.machine.guest, vmpl=3))


@_attack("key not allowed", "asks for a key of another path", 403, _DENIED, "key-not-allowed")
def _key_not_allowed(attacker: Attacker) -> Answer:
    return attacker.ask(attacker.machine, keys=(KeyRequest.parse("custom:other/secret", "app"),))


@_attack(
    "epoch that does not exist", "asks for a key of epoch 99", 403, "epoch-unavailable", "epoch-unavailable"
)
def _no_such_epoch(attacker: Attacker) -> Answer:
    return attacker.ask(attacker.machine, keys=(KeyRequest.parse("disk", "app", 99),))


@_attack(
    "invented challenge",
    "makes up a challenge, to use a report prepared in advance",
    400,
    "challenge-invalid",
)
def _invented_challenge(attacker: Attacker) -> Answer:
    return attacker.send(attacker.exchange(attacker.machine, challenge=b"\x01" + bytes(56)))


@_attack("cut report", "sends 64 bytes as a report", 400, "malformed-evidence", "report-length")
def _cut_report(attacker: Attacker) -> Answer:
    exchange = attacker.exchange(attacker.machine)
    return attacker.send(Exchange(exchange.request, exchange.evidence | {"report": b64url(bytes(64))}))


@_attack(
    "expired challenge", "holds a genuine challenge back until its time is over", 410, "challenge-expired"
)
def _expired_challenge(attacker: Attacker) -> Answer:
    exchange = attacker.exchange(attacker.machine, challenge=attacker.early.challenge)
    time.sleep(max(0.0, attacker.early.over - time.monotonic()))
    return attacker.send(exchange)


ATTACKS: Final = tuple(_attacks)
