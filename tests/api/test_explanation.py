"""An explanation never differs from a release: the same evidence through both."""

from typing import Any

import pytest

from kms.encoding import b64url
from kms.evidence.sev_snp import parse_evidence
from kms.identifiers import AppId, ComposeHash
from kms.measurement.images import Binding
from kms.policy.compiled import Policy
from kms.policy.decision import AppClaim
from kms.policy.revision import Revision
from kms.request import report_data
from kms.simulator.machine import SimulatedMachine
from kms.snp.verify import verify
from kms.verification import Question, Verification, explain
from tests.world import APP_ID, COMPOSE_HASH, World, describe_image, document, image_document

PLACEHOLDERS = "console=ttyS0 app={app_id} compose={compose_hash}"
CLAIM = {"id": APP_ID, "compose_hash": COMPOSE_HASH}


def explained(world: World, evidence: dict[str, Any], claim: AppClaim | None) -> Verification:
    import yaml

    text = "---\n".join(yaml.safe_dump(each, sort_keys=False) for each in world.documents)
    policy = Policy(Revision.from_files({"policy.yaml": text.encode()}, development=True))
    parsed = parse_evidence(evidence)
    question = Question(
        report=parsed.report,
        advisories=world.desk.advisories,
        app_document=parsed.app_document,
        policy=policy,
        claim=claim,
        kms_identities=frozenset({world.desk.identity.public_key}),
    )
    trust = world.desk.authenticator
    outcome = verify(parsed.report, parsed.certificates, trust.roots, world.now[0], trust.revocation)
    return explain(question, outcome, world.now[0], development=True)


CASES: dict[str, dict[str, Any]] = {
    "host-data": {"document": document()},
    "dstack": {
        "document": b'{"app_id":"%s","compose_hash":"%s"}' % (APP_ID.encode(), COMPOSE_HASH.encode()),
        "binding": Binding.DSTACK_MR_CONFIG,
    },
    "pinned to this KMS": {"pin": "ours"},
    "pinned to another KMS": {"pin": "another"},
    "another compose": {"document": document(compose_hash="ab" * 32)},
    "another app": {"document": document(app_id="cd" * 20)},
    "command line": {"cmdline": True},
    "command line of another compose": {"cmdline": True, "compose": "ef" * 32},
    "other kernel": {"document": document(), "description": describe_image(seed=b"other")},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_the_explanation_is_the_release(world: World, case: dict[str, Any]) -> None:
    claim = None
    request_fields: dict[str, Any] = {}
    if "pin" in case:
        key = world.desk.identity.public_key if case["pin"] == "ours" else bytes(31) + b"\x01"
        machine = world.launch(app_document=document(kms_identity=b64url(key)))
    elif "cmdline" in case:
        compose = case.get("compose", COMPOSE_HASH)
        description = describe_image(PLACEHOLDERS)
        await world.apply(
            *(each for each in world.default_policy(app={"binding": ["cmdline"]}) if each["kind"] != "image"),
            image_document("os-1", description, enforces=["cmdline"]),
        )
        filled = PLACEHOLDERS.format(app_id=APP_ID, compose_hash=compose)
        machine = SimulatedMachine.launch(world.chip, description, cmdline=filled)
        request_fields["app"] = {"id": APP_ID, "compose_hash": compose}
        claim = AppClaim(app_id=AppId.from_hex(APP_ID), compose_hash=ComposeHash.from_hex(compose))
    else:
        changes = {"description": case["description"]} if "description" in case else {}
        machine = world.launch(
            app_document=case["document"], binding=case.get("binding", Binding.HOST_DATA), **changes
        )
    request = await world.request(**request_fields)
    evidence = machine.evidence(report_data(request))
    outcome = explained(world, evidence, claim)
    answer = await world.post(request, evidence)
    assert outcome.verified == (answer.status == 200)
    if not outcome.verified:
        failed = [check.reason for check in outcome.checks if not check.passed]
        assert answer.reasons == list(dict.fromkeys(failed))
    [record] = await world.records()
    assert outcome.boot_info is not None
    assert outcome.boot_info.to_json() == record.entry["boot_info"]
