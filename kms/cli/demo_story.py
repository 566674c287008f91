"""The demo's story: an operator sets up, a guest gets its keys twice, attackers get nothing."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from kms.cli.demo_attacker import Attacker, EarlyChallenge
from kms.cli.demo_attacks import ATTACKS, Attack
from kms.cli.demo_scene import KEYS, ImageFiles, app_document, power_on, prepare_policy
from kms.cli.demo_server import RunningServer, run_server
from kms.cli.demo_show import Show
from kms.cli.output import OK, REFUSED, print_json
from kms.encoding import b64url
from kms.guest.client import KeyClient
from kms.guest.errors import Problem
from kms.guest.transport import Connection
from kms.keys.envelope import Payload
from kms.keys.released import ReleasedKey
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.machine import SimulatedMachine
from kms.snp.product import Product

_CHALLENGE_SECONDS: Final = 10  # short, so that one can expire while somebody watches
_FINGERPRINT: Final = 8  # bytes of SHA-256: enough to see that two keys are equal, no help to find one
_EXCHANGE: Final = 15.0  # seconds


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attack ended: the server's problem, or None where it gave keys; and whether that was right."""

    attack: Attack
    problem: Problem | None
    as_it_must: bool


def tell(folder: Path, *, as_json: bool, kept: bool) -> int:
    """Tell the story in `folder`, an empty one of our own, and give the exit status.

    Raises:
        KmsError: the demo itself cannot run: no server, no keys for the honest guest.

    """
    show = Show(programs=as_json)
    show.development()
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(1))
        show.chapter("The operator")
        with show.step("a key hierarchy in the form of AMD's, for the simulated chip (RSA-4096)"):
            hierarchy = make_hierarchy()
        rogue = pool.submit(make_hierarchy)  # the attackers' own, meanwhile
        roots = folder / "development-roots.pem"
        roots.write_bytes(hierarchy.ark.pem)
        with show.step("kms image describe: a firmware, kernel, initrd and command line built here"):
            files = ImageFiles.build()
            policies = prepare_policy(files, folder)
        show.fact("image document", "as computed now = policies/demo/image.yaml as committed")
        with show.step("kms serve: HTTPS, embedded database, a new root key, the policy applied"):
            server = stack.enter_context(
                run_server(
                    folder,
                    policies=policies,
                    development_roots=roots,
                    challenge_seconds=_CHALLENGE_SECONDS,
                    kds_url=None,
                )
            )
        show.fact("server", f"{server.url}, process {server.process_id}")
        show.fact("KMS identity", f"{b64url(server.identity)}, pinned by the guest")

        connection = stack.enter_context(Connection(server.url, ca_file=server.ca_file, timeout=_EXCHANGE))
        early = EarlyChallenge.get(connection, _CHALLENGE_SECONDS)
        machine = power_on(hierarchy, files)
        payload = _fetch(show, server, machine)
        same = _fetch_again(show, server, machine, payload)
        attacker = Attacker(
            connection=connection,
            files=files,
            machine=machine,
            rogue_hierarchy=rogue.result(),
            early=early,
        )
        outcomes = run_attacks(show, attacker)
    wrong = sum(not outcome.as_it_must for outcome in outcomes)
    if as_json:
        print_json(_document(payload, outcomes))
    if kept:
        show.done(f"everything is in {folder}: policies/, image/, data/, server.log")
    if wrong or not same:
        show.failure(
            f"NOT AS IT MUST BE: {wrong} attack(s); the keys were {'the same' if same else 'not the same'}"
        )
        return REFUSED
    show.success(
        f"{len(payload.keys)} keys released to the guest that proved itself, {len(outcomes)} attacks refused."
    )
    return OK


def make_hierarchy() -> AmdHierarchy:
    """Make the demo's own ARK and ASK, as large as AMD's."""
    return AmdHierarchy.generate(Product.MILAN, now=datetime.now(UTC))


def _client(server: RunningServer, machine: SimulatedMachine) -> KeyClient:
    return KeyClient(server.url, ca_file=server.ca_file, identity=server.identity, source=machine)


def _fetch(show: Show, server: RunningServer, machine: SimulatedMachine) -> Payload:
    show.chapter("The guest")
    show.fact("chip (SIMULATED)", f"{machine.guest.chip.chip_id.hex()[:32]}…")
    show.fact("measurement", f"{machine.guest.measurement.hex()[:32]}…")
    with show.step("kms guest fetch: challenge, a report over the request, keys sealed to this guest alone"):
        payload = _client(server, machine).fetch(KEYS, app_document=app_document())
    show.fact("release", payload.release_id)
    show.fact("app", payload.app_id.hex())
    for key in payload.keys:
        show.key(f"{key.name}@{key.scope}", key.algorithm, key.epoch, fingerprint(key))
    return payload


def _fetch_again(show: Show, server: RunningServer, machine: SimulatedMachine, first: Payload) -> bool:
    """Fetch as after a reboot: a disk that was encrypted yesterday must open today."""
    with show.step("again, as after a reboot, with a new challenge and another recipient key"):
        second = _client(server, machine).fetch(KEYS, app_document=app_document())
    same = [fingerprint(key) for key in second.keys] == [fingerprint(key) for key in first.keys]
    show.fact("the keys", "are the same" if same else "ARE NOT THE SAME")
    return same


def fingerprint(key: ReleasedKey) -> str:
    """Give a short name of a key's value; the value itself is never shown."""
    return sha256(key.secret).digest()[:_FINGERPRINT].hex()


def run_attacks(show: Show, attacker: Attacker) -> list[Outcome]:
    """Run every attack, show each answer, and say whether it was the right one."""
    show.chapter("The attackers")
    outcomes = []
    for attack in ATTACKS:
        with show.trying(attack.name):
            answer = attack.run(attacker)
        problem = None if answer.status < 400 else answer.problem()
        wanted = (attack.status, attack.code)
        right = problem is not None and (problem.status, problem.code) == wanted
        right = right and (
            attack.reason is None or (problem is not None and attack.reason in problem.reasons)
        )
        outcomes.append(Outcome(attack, problem, right))
        if right and problem is not None:
            show.refused(attack.name, attack.tries, problem)
        else:
            got = (
                "KEYS" if problem is None else f"{problem.status} {problem.code} {' '.join(problem.reasons)}"
            )
            show.not_refused(attack.name, f"{attack.status} {attack.code} {attack.reason or ''}", got)
    return outcomes


def _document(payload: Payload, outcomes: list[Outcome]) -> dict[str, Any]:
    return {
        "released": True,
        "keys": [
            {
                "name": str(key.name),
                "scope": key.scope.value,
                "epoch": key.epoch,
                "algorithm": key.algorithm.value,
                "fingerprint": fingerprint(key),
            }
            for key in payload.keys
        ],
        "refusals": [
            {"attack": each.attack.name, "status": each.problem.status, "code": each.problem.code}
            for each in outcomes
            if each.problem is not None
        ],
    }
