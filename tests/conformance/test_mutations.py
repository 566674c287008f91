"""Twenty thousand random changes to sound requests: never a crash, never a key.

Some change a release that was granted, whose challenge is base. Those that shall reach the later steps come
from a chip that is revoked, with a challenge that is not base. So no change, however small, can be answered
with keys.
"""

import copy
import dataclasses
import http.client
import json
import os
import random
import ssl
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.conformance.own_client import STATUS, Client, open_release, outer, request_bytes
from tests.conformance.own_encoding import b64, unb64
from tests.conformance.own_fleet import Fleet, Guest
from tests.conformance.own_platform import SIGNED_LENGTH, certificate_table, sign
from tests.conformance.own_sealing import SEALED_BOX, new_recipient
from tests.conformance.own_server import Server

MUTATIONS = 20_000
CONNECTIONS = 4
REACHED = ("malformed-request", "malformed-evidence", "challenge-used", "evidence-untrusted", "policy-denied")
INTERESTING: tuple[object, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    2**64,
    10**400,
    "",
    "A",
    "\x00",
    "\ud7ff",
    "\U0010ffff",
    "0x1",
    "A" * 5000,
    [],
    {},
    [[[[]]]],
    {"": None},
)


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip, insert, delete, repeat or cut, one to four times."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(changed)) if changed else 0
        length = rng.choice((1, 1, 2, 4, 16, 100))
        match rng.randrange(6):
            case 0 if changed:
                changed[at] ^= 1 << rng.randrange(8)
            case 1 if changed:
                changed[at] = rng.choice((0, 0x22, 0x2C, 0x5C, 0x7B, 0x7D, 0x7F, 0x80, 0xFF))
            case 2:
                changed[at:at] = rng.randbytes(length)
            case 3:
                del changed[at : at + length]
            case 4:
                changed[at:at] = changed[at : at + length]
            case _ if rng.random() < 0.2:
                del changed[at:]
    return bytes(changed)


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside a JSON value."""
    found: list[tuple[Any, Any]] = []
    members: Any = value.items() if isinstance(value, dict) else enumerate(value)
    for key, member in members:
        found.append((value, key))
        if isinstance(member, dict | list):
            found += _nodes(member)
    return found


def mutate_json(rng: random.Random, value: Any) -> Any:
    """Delete, retype, swap, duplicate, rename or change inside members of a JSON value."""
    changed = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        nodes = _nodes(changed)
        if not nodes:
            break
        container, key = rng.choice(nodes)
        other, other_key = rng.choice(nodes)
        match rng.randrange(6):
            case 0:
                del container[key]
            case 1:
                container[key] = copy.deepcopy(rng.choice(INTERESTING))
            case 2:
                # Copies, so that no container comes to hold itself.
                first, second = copy.deepcopy(container[key]), copy.deepcopy(other[other_key])
                container[key] = second
                other[other_key] = first
            case 3 if isinstance(container, list):
                container.extend(copy.deepcopy([container[key]] * rng.choice((1, 20))))
            case 3:
                container[str(key) + rng.choice(("", " ", "2"))] = copy.deepcopy(container[key])
            case _ if isinstance(container[key], str) and container[key]:
                text = mutate_bytes(rng, container[key].encode())
                container[key] = text.decode("utf-8", "replace")
            case _:
                container[key] = copy.deepcopy(rng.choice(INTERESTING))
    return changed


@dataclasses.dataclass(frozen=True, slots=True)
class Base:
    """What is mutated: sound, and never to be granted (again)."""

    guest: Guest
    request: bytes
    evidence: dict[str, Any]

    def with_evidence(self, **fields: object) -> bytes:
        return outer(self.request, {**self.evidence, **fields})


Kind = Callable[[random.Random, Base], bytes]


def _body(rng: random.Random, base: Base) -> bytes:
    return mutate_bytes(rng, outer(base.request, base.evidence))


def _body_members(rng: random.Random, base: Base) -> bytes:
    return json.dumps(mutate_json(rng, {"request": b64(base.request), "evidence": base.evidence})).encode()


def _request(rng: random.Random, base: Base) -> bytes:
    return outer(mutate_bytes(rng, base.request), base.evidence)


def _proven_request(rng: random.Random, base: Base) -> bytes:
    """The hardware signs what the mutation says."""
    if rng.random() < 0.3:
        request = mutate_bytes(rng, base.request)
    else:
        request = json.dumps(mutate_json(rng, json.loads(base.request))).encode()
    return outer(request, base.guest.evidence(request))


def _report(rng: random.Random, base: Base) -> bytes:
    report = mutate_bytes(rng, unb64(base.evidence["report"]))
    return base.with_evidence(report=b64(report))


def _signed_report(rng: random.Random, base: Base) -> bytes:
    """A chip that signs nonsense."""
    body = bytearray(unb64(base.evidence["report"])[:SIGNED_LENGTH])
    for _ in range(rng.choice((1, 1, 3))):
        at = rng.randrange(SIGNED_LENGTH)
        body[at] ^= rng.choice((1 << rng.randrange(8), 0xFF))
    return base.with_evidence(report=b64(sign(bytes(body), base.guest.chip.key)))


def _certificates(rng: random.Random, base: Base) -> bytes:
    certificates = [unb64(certificate) for certificate in base.evidence["certificates"]]
    at = rng.randrange(len(certificates))
    certificates[at] = mutate_bytes(rng, certificates[at])
    if rng.random() < 0.2:
        rng.shuffle(certificates)
    return base.with_evidence(certificates=[b64(certificate) for certificate in certificates])


def _table(rng: random.Random, base: Base) -> bytes:
    vcek, ask = (unb64(certificate) for certificate in base.evidence["certificates"])
    table = certificate_table({"vcek": vcek, "ask": ask})
    head = mutate_bytes(rng, table[:72]) + table[72:]
    return base.with_evidence(certificates=[], certificate_table=b64(head))


def _document(rng: random.Random, base: Base) -> bytes:
    """The host binds a mutated document."""
    document = base.guest.app_document()
    assert document is not None
    guest = dataclasses.replace(base.guest, document=mutate_bytes(rng, document))
    return outer(base.request, guest.evidence(base.request))


# With weights. What changes the text only is cheap; what is signed again, or reaches the chain, is not.
SPENT_KINDS: dict[Kind, int] = {_body: 5, _body_members: 5, _request: 3, _proven_request: 1}
REVOKED_KINDS: dict[Kind, int] = {
    _body_members: 3,
    _proven_request: 2,
    _report: 4,
    _signed_report: 3,
    _certificates: 3,
    _table: 2,
    _document: 2,
}


def mutation(rng: random.Random, kinds: dict[Kind, int], base: Base) -> bytes:
    [kind] = rng.choices(list(kinds), list(kinds.values()))
    return kind(rng, base)


def judge(status: int, kind: str, body: bytes) -> str:
    """Check one answer; return its code."""
    assert 400 <= status < 500 or status == 503, f"status {status}: {body[:500]!r}"
    assert kind == "application/problem+json", kind
    problem = json.loads(body)
    # A chip without certificates, of which no KDS knows, is the only thing that may have to wait.
    assert (status == 503) == (problem["code"] == "collateral-unavailable"), problem["code"]
    assert problem["status"] == status
    assert STATUS[problem["code"]] == status
    assert problem["request_id"]
    assert problem["title"]
    if status == 403:
        assert problem["reasons"]
    return str(problem["code"])


def granted(kms: Client, fleet: Fleet) -> Base:
    """Return a release that was granted, every optional field in use."""
    guest = fleet.guest(launch={"image": "demo-os", "vcpus": 2, "vcpu_type": "EPYC-v4"})
    keys = ({"name": "disk", "scope": "app", "epoch": 1}, {"name": "custom:db/main", "scope": "app"})
    attempt = kms.ask(guest, keys, app={"id": guest.app.id})
    open_release(attempt, kms.identity)
    return Base(guest, attempt.request, attempt.evidence)


def revoked(kms: Client, fleet: Fleet) -> Base:
    """Return the same from a revoked chip, with a new challenge, not yet sent."""
    guest = fleet.guest(chip="stolen", launch={"image": "demo-os", "vcpus": 2})
    key = {"name": "custom:db/main", "scope": "app"}
    request = request_bytes(kms.challenge(), new_recipient(SEALED_BOX), [key], {"id": guest.app.id})
    return Base(guest, request, guest.evidence(request))


SPENDING = {"policy-denied", "measurement-unknown", "epoch-unavailable", "challenge-used"}


@pytest.mark.slow
def test_random_mutations(kms: Client, server: Server, fleet: Fleet) -> None:
    spent = granted(kms, fleet)
    seed = os.environ.get("MUTATION_SEED") or os.urandom(4).hex()
    trust = ssl.create_default_context(cafile=str(server.ca))

    def run(start: int) -> Counter[str]:
        """Send every CONNECTIONS-th mutation over one connection that is kept alive."""
        counted: Counter[str] = Counter()
        fresh = revoked(kms, fleet)
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, context=trust, timeout=60)
        try:
            for index in range(start, MUTATIONS, CONNECTIONS):
                rng = random.Random(f"{seed}:{index}")
                deep = rng.random() < 0.35
                body = mutation(rng, REVOKED_KINDS, fresh) if deep else mutation(rng, SPENT_KINDS, spent)
                try:
                    connection.request("POST", "/v1/releases", body, {"Content-Type": "application/json"})
                    response = connection.getresponse()
                    answer = response.read()
                    code = judge(response.status, str(response.getheader("content-type")), answer)
                except Exception as error:
                    error.add_note(f"MUTATION_SEED={seed}, mutation {index}: {body[:2000]!r}")
                    raise
                counted[code] += 1
                if deep and code in SPENDING:
                    fresh = revoked(kms, fleet)
        finally:
            connection.close()
        return counted

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        counted: Counter[str] = sum(pool.map(run, range(CONNECTIONS)), Counter())
    assert counted.total() == MUTATIONS
    assert min(counted[code] for code in REACHED) > 100, f"the mutations miss a step: {counted}"
    assert server.alive()
    assert "Traceback" not in server.log_text()
