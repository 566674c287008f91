"""Operators' work on a real office over HTTP: the answers are its own, in the documented shapes."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
import rfc8785
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kms.administration.office import Json, Office
from kms.errors import (
    EpochInUse,
    Forbidden,
    KeysConflict,
    MalformedEvidence,
    NotFound,
    OperatorExists,
    PolicyConflict,
    PolicyGated,
    PolicyRefused,
    Unauthenticated,
)
from kms.http import candidate_schemas as candidate
from kms.http import key_schemas as keys
from kms.http import operator_schemas as accounts
from kms.http import policy_schemas as policy
from kms.http import record_schemas as records
from kms.http.schemas import Shape
from kms.labels import POLICY_STATEMENT, labelled
from kms.operator_ports import RecordFilter
from kms.operators import Actor, Proof, Role
from kms.policy.history import PolicySignature, SignatureFormat
from kms.policy.trust import PolicyTrust
from kms.remote_office import open_remote
from kms.request import report_data
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.world import APP_ID, World, open_world

ROOT = Actor(name="root", role=Role.ADMIN, proof=Proof.COMMAND_LINE)
MONTH = timedelta(days=30)
Asking = Callable[[Office], Awaitable[Json]]


@asynccontextmanager
async def operating(world: World, role: Role = Role.ADMIN, name: str = "alice") -> AsyncIterator[Office]:
    """Add an operator and open the office with its token, over HTTP."""
    added = await world.office.operators.add(ROOT, name, role, life=None, subject=None)
    transport = httpx2.ASGITransport(app=world.client._transport.app)  # type: ignore[attr-defined]
    async with open_remote("https://kms", token=str(added["token"]), ca=None, transport=transport) as office:
        yield office


def files(world: World, **changes: dict[str, object]) -> dict[str, bytes]:
    return {
        f"{document['kind']}.yaml": yaml.safe_dump(document, sort_keys=False).encode()
        for document in world.default_policy(**changes)
    }


async def refused_release(world: World) -> str:
    """Have a guest refused for its chip, and give the id that it is told."""
    await world.apply_changed(app={"chips": ["ab" * 64]})
    answer = await world.ask()
    answer.check_refused(403, "policy-denied", "chip-not-listed")
    release_id: str = answer.body["request_id"]
    await world.apply_changed()
    return release_id


async def test_what_is_read_is_what_the_office_gives(world: World) -> None:
    await world.ask()
    refused = await refused_release(world)
    request = await world.request()
    evidence = world.machine.evidence(report_data(request))
    asked: list[tuple[type[Shape], Asking]] = [
        (policy.StatusAnswer, lambda office: office.policies.status(ROOT)),
        (policy.HistoryAnswer, lambda office: office.policies.history(ROOT, before=None, limit=1)),
        (candidate.LintAnswer, lambda office: office.policies.lint(ROOT, files(world))),
        (candidate.LintAnswer, lambda office: office.policies.lint(ROOT, {"a.yaml": b"kind: ap\n"})),
        (
            policy.DiffAnswer,
            lambda office: office.policies.diff(ROOT, old=None, new=files(world, app={"chips": "any"})),
        ),
        (
            candidate.WhatIfAnswer,
            lambda office: office.policies.what_if(
                ROOT, files(world, app={"chips": ["ab" * 64]}), since=MONTH
            ),
        ),
        (policy.ProposalsAnswer, lambda office: office.policies.proposals(ROOT)),
        (records.ReleasesAnswer, lambda office: office.records.releases(ROOT, RecordFilter(), limit=1)),
        (
            records.ReleasesAnswer,
            lambda office: office.records.releases(ROOT, RecordFilter(app=APP_ID, code="x"), limit=50),
        ),
        (records.EntryAnswer, lambda office: office.records.release(ROOT, refused)),
        (records.ExplanationAnswer, lambda office: office.records.explain(ROOT, refused)),
        (
            records.ExplanationAnswer,
            lambda office: office.records.verify(
                ROOT, json.loads(json.dumps(evidence)), request=request, at=world.now[0]
            ),
        ),
        (keys.KeysAnswer, lambda office: office.keys.keys(ROOT)),
        (keys.RotationAnswer, lambda office: office.keys.rotation(ROOT, app=None, since=MONTH)),
        (keys.RotationAnswer, lambda office: office.keys.rotation(ROOT, app=APP_ID, since=MONTH)),
        (records.ImagesAnswer, lambda office: office.images.images(ROOT, after=None, limit=50)),
        (
            records.MeasurementsAnswer,
            lambda office: office.images.measurements(ROOT, "os-1", after="1", limit=3),
        ),
    ]
    async with operating(world) as office:
        for shape, asking in asked:
            there, here = await asking(office), await asking(world.office)
            assert there == here, shape
            shape.model_validate(there)


async def test_operators_and_what_they_did(world: World) -> None:
    async with operating(world) as office:
        added = await office.operators.add(ROOT, "bob", Role.VIEWER, life=MONTH, subject=None)
        accounts.NewOperatorAnswer.model_validate(added)
        with pytest.raises(OperatorExists):
            await office.operators.add(ROOT, "bob", Role.VIEWER, life=None, subject="CN=bob")
        revoked = await office.operators.revoke(ROOT, "bob")
        accounts.OperatorAnswer.model_validate(revoked)
        listed = await office.operators.operators(ROOT, after=None, limit=1)
        accounts.OperatorsAnswer.model_validate(listed)
        assert listed["next"] == "alice"
        did = await office.operators.actions(ROOT, before=None, limit=2)
        accounts.ActionsAnswer.model_validate(did)
        older = await office.operators.actions(ROOT, before=str(did["next"]), limit=2)
    assert isinstance(did["actions"], list)
    newest = did["actions"][0]
    assert isinstance(newest, dict)
    told = {name: newest[name] for name in ("operator", "proof", "client", "action", "target", "outcome")}
    assert told == {
        "operator": "alice",
        "proof": "token",
        "client": "127.0.0.1",
        "action": "operator-revoke",
        "target": "bob",
        "outcome": "done",
    }
    assert older["actions"] != did["actions"]


async def test_a_policy_is_changed_and_a_conflict_says_what_changed(world: World) -> None:
    before = str(await world.in_force())
    async with operating(world, Role.OPERATOR) as office:
        wider = await office.policies.apply(
            ROOT, files(world, app={"chips": "any"}), message="any chip", expect=before
        )
        policy.OutcomeAnswer.model_validate(wider)
        assert (wider["applied"], wider["intent"]) == (True, "widen")
        assert await world.in_force() == wider["revision"]
        with pytest.raises(PolicyConflict) as conflict:
            await office.policies.rollback(ROOT, before, message="", expect=before)
        assert conflict.value.details["expected"] == before
        assert "any" in json.dumps(conflict.value.details["diff"])
        shown = await office.policies.revision(ROOT, before)
        policy.RevisionAnswer.model_validate(shown)
        compared = await office.policies.diff(ROOT, old=before, new=str(wider["revision"]))
        assert compared == wider["diff"]
        back = await office.policies.rollback(ROOT, before, message="no", expect=str(wider["revision"]))
        policy.OutcomeAnswer.model_validate(back)
        revoked = await office.policies.revoke(ROOT, "chip", world.chip.chip_id.hex(), reason="stolen")
        policy.OutcomeAnswer.model_validate(revoked)
        with pytest.raises(PolicyRefused) as lifted:
            await office.policies.apply(ROOT, before, message="", expect=None)
        assert lifted.value.reason == "revocations-lifted"
        history = await office.policies.history(ROOT, before=None, limit=500)
    policy.HistoryAnswer.model_validate(history)
    assert isinstance(history["changes"], list)
    assert len(history["changes"]) == 4


async def test_a_change_that_would_refuse_guests_is_gated(world: World) -> None:
    assert (await world.ask()).status == 200
    narrow = files(world, app={"chips": ["ab" * 64]})
    async with operating(world) as office:
        with pytest.raises(PolicyGated) as gated:
            await office.policies.apply(ROOT, narrow, message="", expect=None, gate=MONTH)
    candidate.WhatIfAnswer.model_validate(gated.value.details["what_if"])


async def test_a_proposal_is_signed_and_applied(
    tmp_path: Path, simulated_hierarchies: Mapping[Product, AmdHierarchy]
) -> None:
    key = Ed25519PrivateKey.generate()
    trust = PolicyTrust(keys={"alice": key.public_key().public_bytes_raw()}, widen=1, narrow=1)
    async with (
        open_world(tmp_path, simulated_hierarchies[Product.MILAN], trust=trust) as world,
        operating(world) as office,
    ):
        proposal = await office.policies.propose(ROOT, files(world, app={"chips": "any"}), message="m")
        policy.ProposalAnswer.model_validate(proposal)
        statement = proposal["statement"]
        assert isinstance(statement, dict)
        revision = str(statement["revision"])
        waiting = await office.policies.apply(ROOT, revision, message="", expect=None)
        assert (waiting["applied"], (await world.ask()).status) == (False, 403)
        over = labelled(POLICY_STATEMENT, rfc8785.dumps(statement))
        signature = PolicySignature(
            SignatureFormat.ED25519, key.public_key().public_bytes_raw(), key.sign(over)
        )
        signed: Any = await office.policies.sign(ROOT, revision, signature)
        policy.ProposalAnswer.model_validate(signed)
        assert signed == await office.policies.proposal(ROOT, revision)
        assert [each["valid"] for each in signed["signatures"]] == [True]
        applied = await office.policies.apply(ROOT, revision, message="", expect=None)
        policy.OutcomeAnswer.model_validate(applied)
        assert applied["applied"] is True
        await world.followed.refresh()
        assert (await world.ask()).status == 200


async def test_an_epoch_is_made_and_retired(world: World) -> None:
    assert (await world.ask()).status == 200
    async with operating(world) as office:
        made = await office.keys.rotate(ROOT, at=None)
        keys.EpochAnswer.model_validate(made)
        with pytest.raises(EpochInUse) as in_use:
            await office.keys.retire(ROOT, 1, seen_within=MONTH, force=False)
        assert in_use.value.details["count"] == 1
        world.now[0] += timedelta(minutes=1)
        retired = await office.keys.retire(ROOT, 1, seen_within=MONTH, force=True)
        keys.RetiredAnswer.model_validate(retired)
        assert {name: retired[name] for name in in_use.value.details} == in_use.value.details
        with pytest.raises(KeysConflict) as again:
            await office.keys.retire(ROOT, 1, seen_within=MONTH, force=True)
        assert again.value.reason == "epoch-retired"
        scheduled = await office.keys.rotate(ROOT, at=world.now[0] + timedelta(days=1))
        keys.EpochAnswer.model_validate(scheduled)
        keys.NewGenerationAnswer.model_validate(await office.keys.rotate_identity(ROOT))
        listed: Any = await office.keys.keys(ROOT)
    keys.KeysAnswer.model_validate(listed)
    assert [each["state"] for each in listed["epochs"]] == ["retired", "current", "scheduled"]
    assert listed["identity"]["generation"] == 2


async def test_an_operator_reads_epochs_and_an_admin_changes_them(world: World) -> None:
    async with operating(world, Role.OPERATOR) as office:
        await office.keys.keys(ROOT)
        for change in (
            office.keys.rotate(ROOT, at=None),
            office.keys.retire(ROOT, 1, seen_within=MONTH, force=True),
            office.keys.rotate_identity(ROOT),
        ):
            with pytest.raises(Forbidden) as forbidden:
                await change
            assert forbidden.value.reason == "role-may-not-change-keys"
    async with operating(world, Role.VIEWER, "vera") as office:
        with pytest.raises(Forbidden):
            await office.keys.keys(ROOT)


async def test_refusals_come_back_as_they_were_made(world: World) -> None:
    async with operating(world, Role.VIEWER) as office:
        with pytest.raises(Forbidden) as forbidden:
            await office.policies.apply(ROOT, files(world), message="", expect=None)
        assert forbidden.value.reason == "role-may-not-change-policy"
        with pytest.raises(NotFound):
            await office.policies.revision(ROOT, "sha256:" + "0" * 64)
    async with operating(world, Role.OPERATOR, "olga") as office:
        with pytest.raises(PolicyRefused) as refused:
            await office.policies.apply(ROOT, {"a.yaml": b"kind: ap\n"}, message="", expect=None)
        assert refused.value.details["findings"]
        with pytest.raises(MalformedEvidence):
            await office.records.verify(ROOT, {"tee": "sev-snp", "report": "AA"}, request=None, at=None)
        await world.office.operators.revoke(ROOT, "olga")
        with pytest.raises(Unauthenticated):
            await office.policies.status(ROOT)


async def test_evidence_is_for_operators(world: World) -> None:
    for headers in ({}, {"authorization": "Bearer x"}, {"authorization": "Basic eDp5"}):
        response = await world.client.post("/v1/verifications", content=b"{", headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
    assert (await world.client.get("/v1/verifications")).status_code == 405
