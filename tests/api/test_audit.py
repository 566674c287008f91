"""No key leaves before its record is durable; and the record says what happened, and no secret."""

import asyncio
import base64
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from io import StringIO
from pathlib import Path
from types import ModuleType

import pytest
import structlog
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import OperationalError

from kms import app_keys as app_keys_module
from kms import release as release_module
from kms.database import decisions as decisions_module
from kms.desk import ReleaseDesk
from kms.encoding import b64url, from_base64
from kms.identifiers import AppId
from kms.keys.epochs import EpochTable
from kms.keys.root_messages import FOUNDING_EPOCH, app_message, challenge_message
from kms.keys.signed import Signed
from kms.labels import RECEIPT
from kms.ledger.entries import DecisionEntry
from kms.request import report_data
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from kms.strict_json import Fields
from kms.telemetry.logs import configure_logs
from tests.world import APP_ID, World, open_world, tampered

Hierarchies = Mapping[Product, AmdHierarchy]
ROOT = b"r" * 32


class TestRecordBeforeKey:
    async def test_without_a_commit_no_key_leaves(self, world: World) -> None:
        """The database fails at the last moment, the commit: nothing happened, and nothing leaves."""

        def fail(_: Connection) -> None:
            raise OperationalError("COMMIT", None, Exception("disk I/O error"))

        request = await world.request()
        evidence = world.machine.evidence(report_data(request))
        event.listen(Engine, "commit", fail)  # of all engines: decisions have one of their own
        answer = await world.post(request, evidence)
        event.remove(Engine, "commit", fail)
        answer.check_refused(503, "ledger-unavailable")
        assert int(answer.response.headers["retry-after"]) >= 1
        assert "disk" not in answer.response.text
        assert await world.records() == []
        assert await world.spent() == 0
        assert (await world.post(request, evidence)).status == 200

    async def test_a_bug_while_writing_leaves_nobody_waiting(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever the writer meets, those who wait for it get an answer, and the next ones too."""

        def fail(*_: object) -> None:
            raise RuntimeError("a bug")

        with monkeypatch.context() as patched:
            patched.setattr(decisions_module, "_spend", fail)
            answer = await asyncio.wait_for(world.ask(), 2)
        assert answer.status in {500, 503}
        assert await world.spent() == 0
        assert (await asyncio.wait_for(world.ask(), 2)).status in {200, 503}

    async def test_a_database_that_is_locked_or_gone(self, world: World) -> None:
        async with world.engine.connect() as connection:
            await connection.execute(text("DROP TABLE decisions"))
        (await world.ask()).check_refused(503, "ledger-unavailable")
        assert await world.spent() == 0

    async def test_a_record_that_hangs_holds_the_key_back(
        self, tmp_path: Path, simulated_hierarchies: Hierarchies
    ) -> None:
        release, waiting = asyncio.Event(), asyncio.Event()

        def slow(desk: ReleaseDesk) -> ReleaseDesk:
            class Slow:
                async def is_spent(self, challenge: bytes) -> bool:
                    return await desk.decisions.is_spent(challenge)

                async def record(
                    self,
                    entry: DecisionEntry,
                    expires_at: datetime | None,
                    judged_by: EpochTable | None = None,
                ) -> None:
                    waiting.set()
                    await release.wait()
                    await desk.decisions.record(entry, expires_at, judged_by)

            return replace(desk, decisions=Slow())

        async with open_world(tmp_path, simulated_hierarchies[Product.MILAN], change_desk=slow) as world:
            asked = asyncio.create_task(world.ask())
            await waiting.wait()
            await asyncio.sleep(0.05)
            assert not asked.done()
            release.set()
            assert (await asked).status == 200

    async def test_a_stopped_record_gives_no_key(self, world: World) -> None:
        await world.desk.decisions.stop()  # type: ignore[attr-defined]  # the real store
        (await world.ask()).check_refused(503, "ledger-unavailable", "ledger-stopped")


class TestRefusals:
    async def test_an_authentic_one_spends_and_is_recorded_with_reasons_and_values(
        self, world: World
    ) -> None:
        await world.apply_changed(app={"compose": ["ab" * 32], "keys": ["env"]})
        challenge = await world.challenge()
        answer = await world.ask(challenge=challenge)
        assert answer.status == 403
        [record] = await world.records()
        entry = record.entry
        assert entry["outcome"] == "refused"
        assert entry["code"] == "policy-denied"
        assert entry["reasons"] == answer.reasons == ["compose-not-listed", "key-not-allowed"]
        assert entry["release_id"] == answer.body["request_id"]
        assert entry["challenge"] == sha256(from_base64(challenge)).hexdigest()
        assert entry["boot_info"]["app_id"] == APP_ID
        assert entry["boot_info"]["chip_id"] == world.chip.chip_id.hex()
        assert entry["boot_info"]["measurement"] == world.machine.guest.measurement.hex()
        failed = {check["name"] for check in entry["checks"] if not check["passed"]}
        assert failed == {"compose-listed", "key-allowed"}
        assert entry["development"] is True
        (await world.ask(challenge=challenge)).check_refused(409, "challenge-used")

    async def test_an_unknown_measurement_is_recorded_with_what_was_proven(self, world: World) -> None:
        machine = world.launch(cmdline="other")
        assert (await world.ask(machine)).status == 403
        [record] = await world.records()
        assert record.entry["code"] == "measurement-unknown"
        assert record.entry["boot_info"]["measurement"] == machine.guest.measurement.hex()
        assert record.entry["boot_info"]["image"] is None
        assert record.entry["boot_info"]["os_image_hash"] is None
        assert await world.spent() == 1

    @pytest.mark.parametrize("binding", ["missing", "another"])
    async def test_an_authentic_one_without_its_app_document_spends(self, world: World, binding: str) -> None:
        request = await world.request()
        evidence = dict(world.machine.evidence(report_data(request)))
        if binding == "missing":
            del evidence["app_document"]
        else:
            evidence["app_document"] = b64url(b"{}")
        answer = await world.post(request, evidence)
        assert (answer.status, answer.code) == (403, "evidence-untrusted")
        assert await world.spent() == 1

    async def test_an_inauthentic_one_does_not_spend(self, world: World) -> None:
        challenge = await world.challenge()
        request = await world.request(challenge=challenge)
        data = report_data(request)
        other = world.machine.evidence(report_data(b"another request"))
        for evidence in (
            tampered(world.machine, data, {0x10: b"\x01"}),
            {**world.machine.evidence(data), "certificates": [], "report": other["report"]},
        ):
            answer = await world.post(request, evidence)
            assert (answer.status, answer.code) == (403, "evidence-untrusted")
        assert await world.spent() == 0
        assert [record.entry["challenge"] for record in await world.records()] == [None, None]
        assert [record.entry["outcome"] for record in await world.records()] == ["refused", "refused"]
        assert (await world.post(request, world.machine.evidence(data))).status == 200
        assert await world.spent() == 1


class TestReceipt:
    async def test_it_is_the_signed_salted_digest_of_the_stored_entry(self, world: World) -> None:
        answer = await world.ask()
        [record] = await world.records()
        receipt = Signed.read(Fields(answer.body["receipt"], "receipt"))
        receipt.verify(RECEIPT)
        assert receipt.identity == world.desk.identity.public_key
        promise = json.loads(receipt.payload)
        assert promise["release_id"] == answer.body["release_id"]
        assert from_base64(promise["salt"]) == record.salt
        assert len(record.salt) == 16
        assert promise["entry_sha256"] == sha256(record.salt + record.raw).hexdigest()
        assert promise["decided_at"] == record.entry["decided_at"] == "2026-11-21T12:00:00.000000Z"
        assert record.entry["release_id"] == answer.body["release_id"]

    async def test_each_entry_has_a_salt_of_its_own(self, world: World) -> None:
        for _ in range(5):
            await world.ask()
        assert len({record.salt for record in await world.records()}) == 5


def spellings(secret: bytes) -> list[bytes]:
    return [
        secret,
        secret.hex().encode(),
        secret.hex().upper().encode(),
        base64.b64encode(secret).rstrip(b"="),
        base64.urlsafe_b64encode(secret).rstrip(b"="),
        repr(secret)[2:-1].encode(),
    ]


def all_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


async def secrets_of(world: World) -> list[bytes]:
    """Every secret on the way of one release: the root, what it derives, and the keys."""
    keys = [{"name": name, "scope": "app"} for name in ("disk", "env", "signing", "custom:db/x")]
    payload = await world.fetch(keys=keys)
    root = world.desk.root_key
    derived = [
        await root.prf(FOUNDING_EPOCH, app_message(AppId.from_hex(APP_ID))),
        await root.prf(FOUNDING_EPOCH, challenge_message()),
    ]
    return [ROOT, *derived, *(key.secret for key in payload.keys)]


class TestNoSecretStays:
    @pytest.fixture(autouse=True)
    def logs(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[StringIO]:
        """What a server would write to its standard error."""
        written = StringIO()
        monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
        configure_logs("debug")
        # Cached loggers would outlive this test.
        structlog.configure(
            logger_factory=structlog.PrintLoggerFactory(written), cache_logger_on_first_use=False
        )
        yield written
        structlog.reset_defaults()

    async def test_not_in_the_database_or_the_logs(
        self, tmp_path: Path, world: World, logs: StringIO
    ) -> None:
        secrets = await secrets_of(world)
        await world.apply_changed(app={"keys": []})
        assert (await world.ask()).status == 403
        files = all_bytes(tmp_path)
        logged = logs.getvalue().encode()
        assert b"released" in logged
        assert b"decided_at" in files
        for secret in secrets:
            for spelling in spellings(secret):
                assert spelling not in files
                assert spelling not in logged

    @pytest.mark.parametrize(
        ("module", "place"),
        [
            (app_keys_module, "derive"),
            (release_module, "build_envelope"),
            (release_module, "seal"),
            (release_module, "make_receipt"),
        ],
    )
    async def test_not_in_the_log_of_a_failure_of_our_own(
        self,
        world: World,
        logs: StringIO,
        monkeypatch: pytest.MonkeyPatch,
        module: ModuleType,
        place: str,
    ) -> None:
        """The trace of a bug on the way of the keys names places, not what stood in the variables there."""

        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("a bug")

        secrets = await secrets_of(world)
        monkeypatch.setattr(module, place, fail)
        assert (await world.ask()).status == 500
        # Log lines are JSON, which doubles the backslashes of a repr.
        logged = logs.getvalue().replace("\\\\", "\\").encode()
        assert b"a bug" in logged
        for secret in secrets:
            for spelling in spellings(secret):
                # A part is too much already: what logs show of a variable may be cut short.
                assert spelling[:24] not in logged
