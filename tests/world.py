"""A whole world in one process, for tests at the HTTP boundary: a simulated chip, a launched VM, a policy,
and the real application on a real SQLite file. Nothing of the release path is replaced."""

import json
import re
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx2
import yaml
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.administration.authentication import Authentication
from kms.administration.changing import PolicyChanger
from kms.administration.office import Office
from kms.anchor import FileAnchor
from kms.authenticity import Authenticator
from kms.database.collateral import CollateralDatabase
from kms.database.decisions import DecisionStore
from kms.database.engine import SQLITE_FILE, open_engine, reading, sqlite_url
from kms.database.kept_epochs import KeptEpochs
from kms.database.migrate import migrate
from kms.database.schema import entries as entries_table
from kms.database.schema import spent_challenges
from kms.desk import ReleaseDesk
from kms.encoding import b64url
from kms.http.app import create_app
from kms.http.authentication import RequestAuthentication
from kms.http.limits import AddressLimiter
from kms.http.places import Places
from kms.http.release_gate import BODIES, ReleaseGate
from kms.http.routes import Readiness
from kms.http.shares import Shares
from kms.http.total_limit import TotalLimit
from kms.kds.client import KdsClient
from kms.kds.service import CollateralService
from kms.keys.envelope import Payload, open_envelope
from kms.keys.opening import RecipientKey
from kms.keys.sealing import Suite
from kms.ledger.entries import DECISION
from kms.measurement.launch import LaunchDescription, os_image_hash
from kms.packaged import load_advisories, packaged_folder
from kms.policy.revision import Revision
from kms.policy.trust import PolicyTrust
from kms.policy_following import FollowedPolicies
from kms.ports import Clock
from kms.request import report_data
from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.firmware import build_firmware
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.machine import SimulatedMachine, describe
from kms.snp.endorsement import load_der
from kms.snp.product import Product
from kms.snp.revocation import Revocation, RevocationMode
from kms.snp.roots import TrustedRoots
from kms.wiring import new_id
from kms.wiring.keys import key_parts
from kms.wiring.office import build_office, public_ledger
from tests.changer import ROOT, open_parts, put
from tests.recording import SERVER

APP_ID = "86e59625be93207bc2351c4d1bba20037cec8e16"
COMPOSE_HASH = sha256(b"compose").hexdigest()
INSTANCE_ID = sha256(b"instance").hexdigest()[:40]
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
REASON = re.compile(r"[a-z0-9-]+")
CMDLINE = "console=ttyS0 root=/dev/vda ro"


def document(**changes: object) -> bytes:
    """Give an app document; a member set to None is left out."""
    members = {"version": 1, "app_id": APP_ID, "compose_hash": COMPOSE_HASH, **changes}
    return json.dumps({name: value for name, value in members.items() if value is not None}).encode()


def describe_image(cmdline: str | None = CMDLINE, seed: bytes = b"world") -> LaunchDescription:
    """Describe a small image: 64 KiB of firmware, a kernel and an initrd."""
    return describe(
        firmware=build_firmware(size=64 << 10, seed=seed), kernel=b"kernel", initrd=b"initrd", cmdline=cmdline
    )


def image_document(name: str, description: LaunchDescription, **changes: object) -> dict[str, Any]:
    """Give a `kind: image` document as an operator would write it."""
    launch = description.to_json()
    return {
        "kind": "image",
        "name": name,
        "launch": launch,
        "os_image_hash": os_image_hash(launch).hex(),
        "enforces": ["host-data", "dstack-mr-config"],
        "vcpu_types": ["EPYC-v4", "EPYC-Milan"],
        "vcpus": {"min": 1, "max": 8},
        "guest_features": ["0x1"],
        **changes,
    }


def app_document(chip: SimulatedChip, **changes: object) -> dict[str, Any]:
    """Give a `kind: app` document that allows the world's guest."""
    return {
        "kind": "app",
        "id": APP_ID,
        "name": "payments",
        "compose": [COMPOSE_HASH],
        "images": ["os-1"],
        "chips": [chip.chip_id.hex()],
        "tcb": "fleet",
        "binding": ["host-data", "dstack-mr-config"],
        "keys": ["disk", "env", "signing", "custom:db/*", "disk@instance", "disk@chip"],
        **changes,
    }


def tcb_document(chip: SimulatedChip, **changes: object) -> dict[str, Any]:
    """Give a `kind: tcb` document whose minimum is what the chip has."""
    return {
        "kind": "tcb",
        "name": "fleet",
        "products": {chip.hierarchy.product.value: dict(chip.reported_tcb.components())},
        "check": ["reported", "committed"],
        "provisional_firmware": "forbid",
        **changes,
    }


@dataclass
class Answer:
    """A response, with its JSON."""

    response: httpx2.Response

    @property
    def status(self) -> int:
        return self.response.status_code

    @property
    def body(self) -> dict[str, Any]:
        loaded: dict[str, Any] = self.response.json()
        return loaded

    @property
    def code(self) -> str | None:
        return self.body.get("code")

    @property
    def reasons(self) -> list[str]:
        return list(self.body.get("reasons", []))

    def check_refused(self, status: int, code: str, *reasons: str) -> None:
        """Check a problem document whole: status, code, exactly these reasons, and nothing else."""
        body = self.body
        assert (self.status, body["code"], self.reasons) == (status, code, list(reasons)), body
        assert self.response.headers["content-type"] == "application/problem+json"
        assert body["type"] == f"urn:attested-kms:problem:{code}"
        assert body["status"] == status
        assert body["title"]
        assert body["request_id"] == self.response.headers["kms-request-id"]
        expected = {"type", "title", "status", "code", "request_id"} | ({"reasons"} if reasons else set())
        assert set(body) == expected
        assert all(REASON.fullmatch(reason) for reason in self.reasons)
        assert self.response.headers["cache-control"] == "no-store"


@dataclass(frozen=True)
class Record:
    """A row of the audit record: the entry as stored, its salt, and the entry read."""

    raw: bytes
    salt: bytes
    entry: dict[str, Any]


@dataclass
class World:
    """A server's desk and client, and one honest guest. `now[0]` may be moved by tests."""

    chip: SimulatedChip
    description: LaunchDescription
    machine: SimulatedMachine
    desk: ReleaseDesk
    changer: PolicyChanger
    followed: FollowedPolicies
    office: Office
    client: httpx2.AsyncClient
    engine: AsyncEngine
    now: list[datetime]
    documents: list[dict[str, Any]] = field(default_factory=list)

    async def apply(self, *documents: dict[str, Any]) -> str:
        """Put a policy of these documents in force."""
        text = "---\n".join(yaml.safe_dump(document, sort_keys=False) for document in documents)
        revision = Revision.from_files({"policy.yaml": text.encode()}, development=self.desk.development)
        await put(self.changer, revision)
        await self.followed.refresh()
        self.documents = list(documents)
        return revision.digest

    async def in_force(self) -> str | None:
        """Give the name of the revision in force."""
        head = await self.changer.history.head()
        return None if head is None else head.revision

    async def apply_changed(self, **changes: Mapping[str, object]) -> str:
        """Put the default policy in force with changes by document kind."""
        return await self.apply(*self.default_policy(**changes))

    def default_policy(self, **changes: Mapping[str, object]) -> list[dict[str, Any]]:
        """Give the policy that allows the honest guest, with changes by document kind."""
        return [
            app_document(self.chip, **changes.get("app", {})),
            image_document("os-1", self.description, **changes.get("image", {})),
            tcb_document(self.chip, **changes.get("tcb", {})),
            *([{"kind": "guest", "name": "g", **changes["guest"]}] if "guest" in changes else []),
            *([{"kind": "revoked", "name": "r", **changes["revoked"]}] if "revoked" in changes else []),
        ]

    async def challenge(self) -> str:
        response = await self.client.post("/v1/challenges")
        assert response.status_code == 201, response.text
        challenge: str = response.json()["challenge"]
        return challenge

    async def request(self, key: RecipientKey | None = None, **changes: Any) -> bytes:
        """Give request bytes for a fresh challenge."""
        key = key or RecipientKey.generate(Suite.X25519_SEALEDBOX)
        recipient = {"suite": key.suite.value, "public_key": b64url(key.public_key)}
        members: dict[str, object] = {
            "challenge": changes.pop("challenge", None) or await self.challenge(),
            "recipient": recipient,
            "keys": [{"name": "disk", "scope": "app"}],
            **changes,
        }
        return json.dumps(members).encode()

    def launch(self, **changes: Any) -> SimulatedMachine:
        """Launch a machine like the honest one, with changes to `SimulatedMachine.launch`."""
        inputs = {"app_document": document(), **changes}
        chip, description = inputs.pop("chip", self.chip), inputs.pop("description", self.description)
        return SimulatedMachine.launch(chip, description, **inputs)

    async def records(self) -> list[Record]:
        """Give the audit record, oldest first."""
        columns = entries_table.c
        query = select(columns.entry, columns.salt).where(columns.kind == DECISION).order_by(columns.id)
        async with reading(self.engine) as connection:
            rows = (await connection.execute(query)).all()
        return [Record(row.entry, row.salt, json.loads(row.entry)) for row in rows]

    async def spent(self) -> int:
        """Give how many challenges are spent."""
        async with reading(self.engine) as connection:
            return int(
                (await connection.execute(select(func.count()).select_from(spent_challenges))).scalar_one()
            )

    async def post(self, request: bytes, evidence: object) -> Answer:
        return Answer(
            await self.client.post("/v1/releases", json={"request": b64url(request), "evidence": evidence})
        )

    async def ask(self, machine: SimulatedMachine | None = None, **changes: Any) -> Answer:
        """Let a machine (by default the honest one) ask honestly for the disk key."""
        request = await self.request(**changes)
        return await self.post(request, (machine or self.machine).evidence(report_data(request)))

    async def fetch(self, suite: Suite = Suite.X25519_SEALEDBOX, **changes: Any) -> Payload:
        """Let the honest machine fetch, and open what it gets."""
        key = RecipientKey.generate(suite)
        request = await self.request(key, **changes)
        answer = await self.post(request, self.machine.evidence(report_data(request)))
        assert answer.status == 200, answer.body
        return open_answer(answer, key, request, self.desk.identity.public_key)


def resigned(machine: SimulatedMachine, data: bytes, **fields: Any) -> dict[str, Any]:
    """Give the machine's evidence with report fields changed before its chip signs it."""
    guest = machine.guest
    signed = replace(guest.fields(data), **fields).encode()
    return {**machine.evidence(data), "report": b64url(guest.chip.sign_report(signed))}


def tampered(machine: SimulatedMachine, data: bytes, changes: dict[int, bytes]) -> dict[str, Any]:
    """Give the machine's evidence with report bytes replaced after its chip signed it."""
    report = bytearray(machine.guest.report(data))
    for offset, value in changes.items():
        report[offset : offset + len(value)] = value
    return {**machine.evidence(data), "report": b64url(bytes(report))}


def open_answer(answer: Answer, key: RecipientKey, request: bytes, identity: bytes) -> Payload:
    from hashlib import sha512

    from kms.encoding import from_base64

    digest = sha512(request).digest()
    envelope = key.open(from_base64(answer.body["sealed"]), digest)
    return open_envelope(
        envelope,
        pinned_identity=identity,
        request_sha512=digest,
    )


_MIGRATED: list[bytes] = []


async def _open_migrated(folder: Path) -> AsyncEngine:
    """Open a migrated database in `folder`: migrated once in a test run, then a copy of that file."""
    file = folder / SQLITE_FILE
    if not _MIGRATED:
        engine = open_engine(sqlite_url(folder))
        await migrate(engine, packaged_folder("migrations"))
        await engine.dispose()
        _MIGRATED.append(file.read_bytes())
    file.write_bytes(_MIGRATED[0])
    return open_engine(sqlite_url(folder))


@asynccontextmanager
async def open_world(
    folder: Path,
    hierarchy: AmdHierarchy,
    *,
    description: LaunchDescription | None = None,
    make_chip: Callable[[SimulatedChip], SimulatedChip] = lambda chip: chip,
    development: bool = True,
    change_desk: Callable[[ReleaseDesk], ReleaseDesk] = lambda desk: desk,
    limiter: AddressLimiter | None = None,
    revocation: RevocationMode = RevocationMode.WHEN_AVAILABLE,
    make_kds: Callable[[Clock], KdsClient] | None = None,
    not_ready: tuple[str, ...] = (),
    trust: PolicyTrust | None = None,
) -> AsyncIterator[World]:
    """Build the world on a SQLite file in `folder`, with the default policy in force.

    `change_desk` replaces what the desk works with; `not_ready` is what `/readyz` is told. Without
    `make_kds` no key distribution service is asked. With `trust` the default policy waits for signatures.
    """
    now = [NOW]
    chip_id = simulated_chip_id(hierarchy.product, b"chip 1")
    chip = make_chip(SimulatedChip.typical(hierarchy, chip_id=chip_id, now=NOW - timedelta(days=1)))
    description = description or describe_image()
    machine = SimulatedMachine.launch(chip, description, app_document=document())
    engine = await _open_migrated(folder)

    def clock() -> datetime:
        return now[0]

    anchor = FileAnchor(folder / "anchor.json")
    keys = await key_parts(engine, ROOT, anchor=anchor, clock=clock, server=SERVER)
    parts = await open_parts(engine, folder, clock, trust)
    followed = parts.followed
    epochs = KeptEpochs(keys.register)
    decisions = DecisionStore(engine, clock, keys.recorder)
    roots = TrustedRoots.with_development([load_der(hierarchy.ark.certificate)])
    collateral = CollateralService(
        store=CollateralDatabase(engine, clock),
        kds=None if make_kds is None else make_kds(clock),
        roots=roots,
        clock=clock,
    )
    desk = ReleaseDesk(
        clock=clock,
        randomness=secrets.token_bytes,
        authenticator=Authenticator(
            roots=roots,
            revocation=Revocation(mode=revocation, max_age=timedelta(days=7)),
            collateral=collateral,
        ),
        advisories=load_advisories(),
        policies=followed,
        decisions=decisions,
        root_key=ROOT,
        epochs=epochs,
        apps_ca=keys.apps_ca,
        foreign=keys.foreign,
        identity=keys.identity,
        identities=keys.identities,
        challenge_key=keys.challenge_key,
        challenge_lifetime=timedelta(seconds=300),
        development=development,
    )
    desk = change_desk(desk)

    office = build_office(engine, parts, desk, keys, followed)

    async def ready() -> tuple[str, ...]:
        return not_ready

    app = create_app(
        desk,
        readiness=Readiness(reasons=ready),
        limiter=limiter or AddressLimiter(1_000_000, 1_000_000, lambda: 0.0),
        gate=ReleaseGate(TotalLimit(1_000_000, 1_000_000, lambda: 0.0), Places(1024), Shares(BODIES)),
        new_request_id=new_id,
        tls_ca=None,
        office=office,
        ledger=public_ledger(engine, keys),
        authenticate=RequestAuthentication(
            Authentication(register=parts.register, clock=clock),
            oidc=None,
            clock=clock,
            monotonic=lambda: 0.0,
        ),
    )
    decisions.start()
    collateral.start()
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    try:
        async with httpx2.AsyncClient(transport=transport, base_url="https://kms") as client:
            world = World(
                chip, description, machine, desk, parts.changer, followed, office, client, engine, now
            )
            await world.apply(*world.default_policy())
            yield world
    finally:
        await collateral.stop()
        await decisions.stop()
        await engine.dispose()


__all__ = [
    "APP_ID",
    "COMPOSE_HASH",
    "INSTANCE_ID",
    "NOW",
    "Answer",
    "Product",
    "Record",
    "World",
    "open_world",
    "resigned",
    "tampered",
]
