"""Every status that the protocol names, with its exact code and reasons, at the HTTP boundary."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kms.desk import ReleaseDesk
from kms.encoding import b64url
from kms.errors import CollateralUnavailable, KmsError, LedgerUnavailable, RootKeyUnavailable
from kms.http.limits import MAX_BODY, AddressLimiter
from kms.keys.opening import RecipientKey
from kms.keys.sealing import Suite
from kms.request import report_data
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.machine import Collateral
from kms.snp.product import Product
from tests.world import Answer, World, open_world, resigned, tampered

P384_ORDER = (
    0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
)
SECRET_INPUT = "xyzzy-never-repeated"


async def honest(world: World, **changes: Any) -> tuple[bytes, dict[str, Any]]:
    """A request of the honest guest, and its evidence."""
    request = await world.request(**changes)
    return request, dict(world.machine.evidence(report_data(request)))


class TestMalformedRequest:
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b'"text"',
            b"\xff\xfe",
            b'{"request":"AA","request":"AA","evidence":{}}',
            b'{"request":"AA"}',
            b'{"evidence":{}}',
            b'{"request":"AA","evidence":{},"expected_measurement":"00"}',
            b'{"request":"A","evidence":{}}',
            b'{"request":"AA==\\n","evidence":{}}',
            b'{"request":"AB","evidence":{}}',
            b'{"request":7,"evidence":{}}',
            b'{"request":NaN,"evidence":{}}',
            b'{"request":"' + b"[" * 50 + b'","evidence":' + b"[" * 100 + b"]" * 100 + b"}",
            b'{"request":"\\ud800","evidence":{}}',
            b'{"a":' * 100_000,
        ],
    )
    async def test_bodies_that_are_not_a_release(self, world: World, body: bytes) -> None:
        answer = Answer(await world.client.post("/v1/releases", content=body))
        answer.check_refused(400, "malformed-request")

    @pytest.mark.parametrize(
        ("changes", "reasons"),
        [
            ({"recipient": {}}, ()),
            ({"recipient": None}, ()),
            ({"recipient": {"suite": "none", "public_key": b64url(b"k" * 32)}}, ("suite-unknown",)),
            (
                {"recipient": {"suite": "x25519-sealedbox", "public_key": b64url(bytes(32))}},
                ("public-key-invalid",),
            ),
            (
                {"recipient": {"suite": "x25519-sealedbox", "public_key": b64url(b"k" * 31)}},
                ("public-key-invalid",),
            ),
            (
                {
                    "recipient": {
                        "suite": "hpke-mlkem768x25519-hkdf-sha256-aes-256-gcm",
                        "public_key": b64url(b"\xff" * 1216),
                    }
                },
                ("public-key-invalid",),
            ),
            ({"keys": []}, ()),
            ({"keys": [{"name": f"custom:{n}", "scope": "app"} for n in range(33)]}, ()),
            ({"keys": [{"name": "disk", "scope": "app"}] * 2}, ()),
            ({"keys": [{"name": "disk", "scope": "app", "epoch": 0}]}, ()),
            ({"keys": [{"name": "disk", "scope": "app", "epoch": True}]}, ()),
            ({"keys": [{"name": "disk", "scope": "app", "epoch": 1.0}]}, ()),
            ({"keys": [{"name": "disk", "scope": "app", "epoch": "1"}]}, ()),
            ({"keys": [{"name": "disk", "scope": "app", "other": 1}]}, ()),
            ({"keys": [{"name": "disk", "scope": "host"}]}, ()),
            ({"keys": [{"name": "disk"}]}, ()),
            ({"keys": [{"name": "env", "scope": "chip"}]}, ()),
            ({"keys": [{"name": "custom:../x", "scope": "app"}]}, ()),
            ({"keys": [{"name": "custom:db//x", "scope": "app"}]}, ()),
            ({"keys": [{"name": "custom:db/*", "scope": "app"}]}, ()),
            ({"keys": [{"name": "custom:" + "a" * 129, "scope": "app"}]}, ()),
            ({"keys": [{"name": "Disk", "scope": "app"}]}, ()),
            ({"keys": {"name": "disk", "scope": "app"}}, ()),
            ({"app": {"id": "AA" * 20}}, ()),
            ({"app": {"id": "00" * 20}}, ()),
            ({"app": {"id": "aa" * 21}}, ()),
            ({"app": {"id": "0x" + "aa" * 19}}, ()),
            ({"app": {"compose_hash": "aa" * 31}}, ()),
            ({"app": {"instance_id": "aa" * 15}}, ()),
            ({"app": {"unknown": 1}}, ()),
            ({"policy": "please"}, ()),
            ({"challenge": 7}, ()),
        ],
    )
    async def test_requests_that_are_not_of_their_format(
        self, world: World, changes: dict[str, object], reasons: tuple[str, ...]
    ) -> None:
        request, evidence = await honest(world, **changes)
        (await world.post(request, evidence)).check_refused(400, "malformed-request", *reasons)
        assert await world.records() == []

    async def test_a_request_beyond_64_kib(self, world: World) -> None:
        request = (await world.request()).ljust((64 << 10) + 1)
        evidence = world.machine.evidence(report_data(request))
        (await world.post(request, evidence)).check_refused(413, "too-large", "request-too-large")

    async def test_a_request_of_exactly_64_kib(self, world: World) -> None:
        request = (await world.request()).ljust(64 << 10)
        answer = await world.post(request, world.machine.evidence(report_data(request)))
        assert answer.status == 200


REPORT_SHAPES: list[tuple[dict[str, Any], str]] = [
    ({"version": 1}, "report-version"),
    ({"version": 6}, "report-version"),
    ({"signature_algorithm": 0}, "signature-algorithm"),
    ({"signature_algorithm": 2}, "signature-algorithm"),
    ({"policy": 0x10000}, "policy-bits"),
    ({"policy": 0x30000 | 1 << 26}, "policy-bits"),
    ({"policy": 0x30000 | 1 << 63}, "policy-bits"),
    ({"flags": 1 << 5}, "reserved-bits"),
    ({"flags": 1 << 31}, "reserved-bits"),
    ({"reported_tcb": bytes([4, 0, 1, 0, 0, 0, 24, 219])}, "tcb-reserved"),
    ({"launch_tcb": bytes([4, 0, 0, 0, 0, 1, 24, 219])}, "tcb-reserved"),
]
REPORT_BYTES: list[tuple[int, bytes, str]] = [
    (0x04C, b"\x01", "reserved-bytes"),
    (0x18B, b"\x01", "reserved-bytes"),
    (0x1EB, b"\x01", "reserved-bytes"),
    (0x1EF, b"\x01", "reserved-bytes"),
    (0x1F8, b"\x01", "reserved-bytes"),
    (0x29F, b"\x01", "reserved-bytes"),
    (0x330, b"\x01", "reserved-bytes"),
    (0x49F, b"\x01", "reserved-bytes"),
    (0x2A0, bytes(72), "signature-range"),
    (0x2E8, bytes(72), "signature-range"),
    (0x2A0, P384_ORDER.to_bytes(72, "little"), "signature-range"),
    (0x2E8, P384_ORDER.to_bytes(72, "little"), "signature-range"),
    (0x2A0 + 71, b"\x01", "signature-range"),
    (0x2E8 + 48, b"\x01", "signature-range"),
]


class TestMalformedEvidence:
    @pytest.mark.parametrize(("fields", "reason"), REPORT_SHAPES)
    async def test_a_report_whose_fields_cannot_be(
        self, world: World, fields: dict[str, Any], reason: str
    ) -> None:
        request = await world.request()
        answer = await world.post(request, resigned(world.machine, report_data(request), **fields))
        answer.check_refused(400, "malformed-evidence", reason)

    @pytest.mark.parametrize(("offset", "value", "reason"), REPORT_BYTES)
    async def test_a_report_whose_bytes_cannot_be(
        self, world: World, offset: int, value: bytes, reason: str
    ) -> None:
        request = await world.request()
        evidence = tampered(world.machine, report_data(request), {offset: value})
        (await world.post(request, evidence)).check_refused(400, "malformed-evidence", reason)
        assert await world.spent() == 0

    @pytest.mark.parametrize("length", [0, 1, 0x2A0, 1183, 1185, 2368])
    async def test_a_report_of_another_length(self, world: World, length: int) -> None:
        request, evidence = await honest(world)
        evidence["report"] = b64url((world.machine.guest.report(report_data(request)) * 2)[:length])
        (await world.post(request, evidence)).check_refused(400, "malformed-evidence", "report-length")

    @pytest.mark.parametrize(
        ("changes", "reasons"),
        [
            ({"tee": "tdx"}, ("tee-unknown",)),
            ({"tee": None}, ()),
            ({"report": None}, ()),
            ({"report": "AA AA"}, ()),
            ({"certificate_table": b64url(b"\x01" * 30)}, ("certificate-table",)),
            ({"certificates": [b64url(b"not a certificate")]}, ("certificate-unreadable",)),
            ({"certificates": ["-----BEGIN CERTIFICATE-----\nAA==\n"]}, ("certificate-unreadable",)),
            ({"certificates": ["***"]}, ("certificate-unreadable",)),
            ({"certificates": [7]}, ()),
            ({"certificates": "AA"}, ()),
            ({"launch": []}, ()),
            ({"launch": {"measurement": "00" * 48}}, ()),
            ({"launch": {"vcpus": "2"}}, ()),
            ({"launch": {"vcpus": -1}}, ()),
            ({"launch": {"guest_features": "1"}}, ()),
            ({"launch": {"vcpu_signature": "0xZZ"}}, ()),
            ({"app_document": "%"}, ()),
            ({"launch": {"description": {}}}, ("launch-description",)),
            ({"launch": {"description": "text"}}, ()),
            ({"launch": {"description": None}}, ()),
            ({"measurement": "00" * 48}, ()),
        ],
    )
    async def test_evidence_that_is_not_of_its_format(
        self, world: World, changes: dict[str, object], reasons: tuple[str, ...]
    ) -> None:
        request, evidence = await honest(world)
        answer = await world.post(request, {**evidence, **changes})
        answer.check_refused(400, "malformed-evidence", *reasons)
        assert await world.spent() == 0

    @pytest.mark.parametrize("evidence", [None, [], "text", 7, {}])
    async def test_evidence_of_another_type(self, world: World, evidence: object) -> None:
        (await world.post(await world.request(), evidence)).check_refused(400, "malformed-evidence")

    async def test_seventeen_certificates(self, world: World) -> None:
        request = await world.request()
        evidence = world.machine.evidence(report_data(request), collateral=Collateral.LIST)
        leaf, *others = list(evidence["certificates"])  # type: ignore[arg-type]  # a list of texts
        sixteen = [leaf, *others, *[leaf] * 13]
        assert (await world.post(request, {**evidence, "certificates": sixteen})).status == 200
        request = await world.request()
        evidence = world.machine.evidence(report_data(request), collateral=Collateral.LIST)
        answer = await world.post(request, {**evidence, "certificates": [*sixteen, leaf]})
        answer.check_refused(400, "malformed-evidence")

    async def test_a_pem_bundle_counts_its_certificates(self, world: World) -> None:
        request, evidence = await honest(world)
        pem = world.chip.hierarchy.ask.pem.decode() * 17
        answer = await world.post(request, {**evidence, "certificates": [pem]})
        answer.check_refused(400, "malformed-evidence", "certificates-too-many")

    async def test_certificates_that_the_parser_stumbles_over(self, world: World) -> None:
        """An X.509 version that is none, and a name whose type does not go with its attribute."""
        genuine = world.chip.certificates()[0]
        version = genuine.index(bytes.fromhex("a003020102")) + 4
        country = genuine.index(bytes.fromhex("0603550406")) + 5
        for position, value in ((version, 0x05), (country, 0x03)):
            broken = bytearray(genuine)
            broken[position] = value
            request = await world.request()
            evidence = world.machine.evidence(report_data(request))
            answer = await world.post(request, {**evidence, "certificates": [b64url(bytes(broken))]})
            answer.check_refused(400, "malformed-evidence", "certificate-unreadable")


class TestChallenges:
    async def test_a_challenge_of_another_server(self, world: World) -> None:
        for challenge in (b"", b"\x00" * 57, b"x" * 57, b"x" * 200):
            answer = await world.ask(challenge=b64url(challenge) or "AA")
            answer.check_refused(400, "challenge-invalid")
        assert await world.records() == []

    async def test_a_challenge_with_one_bit_changed(self, world: World) -> None:
        from kms.encoding import from_base64

        genuine = from_base64(await world.challenge())
        for position in range(0, len(genuine), 7):
            forged = bytearray(genuine)
            forged[position] ^= 1
            (await world.ask(challenge=b64url(bytes(forged)))).check_refused(400, "challenge-invalid")

    async def test_a_used_challenge(self, world: World) -> None:
        challenge = await world.challenge()
        assert (await world.ask(challenge=challenge)).status == 200
        (await world.ask(challenge=challenge)).check_refused(409, "challenge-used")
        assert len(await world.records()) == 1

    async def test_an_expired_challenge(self, world: World) -> None:
        response = await world.client.post("/v1/challenges")
        world.now[0] += timedelta(seconds=299)
        assert (await world.ask(challenge=response.json()["challenge"])).status == 200
        response = await world.client.post("/v1/challenges")
        world.now[0] += timedelta(seconds=300)
        answer = await world.ask(challenge=response.json()["challenge"])
        answer.check_refused(410, "challenge-expired")

    async def test_a_challenge_is_dated_and_its_request_body_ignored(self, world: World) -> None:
        response = await world.client.post("/v1/challenges", content=b"\xff not json")
        assert response.status_code == 201
        assert response.json()["expires_at"] == "2026-11-21T12:05:00Z"


class TestRefusals:
    async def test_evidence_untrusted(self, world: World) -> None:
        request = await world.request()
        answer = await world.post(request, tampered(world.machine, report_data(request), {0x10: b"\x01"}))
        answer.check_refused(403, "evidence-untrusted", "report-signature")

    async def test_measurement_unknown(self, world: World) -> None:
        answer = await world.ask(world.launch(cmdline="console=ttyS0 debug"))
        answer.check_refused(403, "measurement-unknown", "measurement-unknown")

    async def test_policy_denied_names_every_reason_of_the_step(self, world: World) -> None:
        await world.apply_changed(
            app={"compose": ["ab" * 32], "chips": ["ab" * 64], "keys": ["env"], "binding": ["cmdline"]}
        )
        (await world.ask()).check_refused(
            403,
            "policy-denied",
            "compose-not-listed",
            "binding-not-allowed",
            "chip-not-listed",
            "key-not-allowed",
        )

    async def test_epoch_unavailable(self, world: World) -> None:
        answer = await world.ask(keys=[{"name": "disk", "scope": "app", "epoch": 2}])
        answer.check_refused(403, "epoch-unavailable", "epoch-unavailable")

    async def test_checks_run_cheapest_first(self, world: World) -> None:
        """Shape, challenge, binding, signature, measurement, policy: the first that fails is the answer."""
        request = await world.request(challenge=b64url(b"no challenge"), keys=[])
        (await world.post(request, {})).check_refused(400, "malformed-request")
        request = await world.request(challenge=b64url(b"no challenge"))
        (await world.post(request, {})).check_refused(400, "malformed-evidence")
        forged = tampered(world.machine, bytes(64), {0x10: b"\x01"})
        (await world.post(request, forged)).check_refused(400, "challenge-invalid")
        request = await world.request()
        (await world.post(request, forged)).check_refused(403, "evidence-untrusted", "report-data-mismatch")


class TestLimits:
    async def test_a_body_beyond_1_mib(self, world: World) -> None:
        answer = Answer(await world.client.post("/v1/releases", content=b" " * (MAX_BODY + 1)))
        answer.check_refused(413, "too-large", "body-too-large")
        answer = Answer(await world.client.post("/v1/releases", content=b" " * MAX_BODY))
        answer.check_refused(400, "malformed-request")

    async def test_a_body_that_does_not_say_its_length(self, world: World) -> None:
        sent = 0

        async def endless() -> Any:
            nonlocal sent
            while sent < 64 * MAX_BODY:
                sent += 1 << 16
                yield b" " * (1 << 16)

        answer = Answer(await world.client.post("/v1/releases", content=endless()))
        answer.check_refused(413, "too-large", "body-too-large")

    @pytest.mark.parametrize("length", ["99999999999999999999", "1048577"])
    async def test_a_length_that_is_too_large_by_its_own_word(self, world: World, length: str) -> None:
        response = await world.client.post("/v1/releases", content=b"{}", headers={"content-length": length})
        Answer(response).check_refused(413, "too-large", "body-too-large")

    async def test_an_app_document_beyond_64_kib(self, world: World) -> None:
        request, evidence = await honest(world)
        evidence["app_document"] = b64url(bytes((64 << 10) + 1))
        answer = await world.post(request, evidence)
        answer.check_refused(413, "too-large", "app-document-too-large")

    async def test_too_many_requests_from_an_address(
        self, tmp_path: Path, simulated_hierarchies: Mapping[Product, AmdHierarchy]
    ) -> None:
        seconds = [0.0]
        limiter = AddressLimiter(1, 2, lambda: seconds[0])
        async with open_world(tmp_path, simulated_hierarchies[Product.MILAN], limiter=limiter) as world:
            for _ in range(2):
                await world.challenge()
            answer = Answer(await world.client.post("/v1/challenges"))
            answer.check_refused(429, "rate-limited")
            assert int(answer.response.headers["retry-after"]) >= 1
            assert (await world.client.get("/healthz")).status_code == 200
            seconds[0] += 1.5
            await world.challenge()


class Broken:
    """A dependency that fails whatever it is asked."""

    def __init__(self, error: KmsError) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def fail(*_: object) -> None:
            raise self._error

        return fail


class TestUnavailable:
    @pytest.mark.parametrize(
        ("member", "error"),
        [
            ("collateral", CollateralUnavailable(SECRET_INPUT)),
            ("decisions", LedgerUnavailable(SECRET_INPUT)),
            ("root_key", RootKeyUnavailable(SECRET_INPUT)),
            ("root_key", RootKeyUnavailable(SECRET_INPUT, reason="root-key-sealed", retry_after=30)),
        ],
        ids=["collateral", "ledger", "root-key", "root-key-sealed"],
    )
    async def test_each_dependency_that_does_not_answer(
        self,
        tmp_path: Path,
        simulated_hierarchies: Mapping[Product, AmdHierarchy],
        member: str,
        error: KmsError,
    ) -> None:
        def change(desk: ReleaseDesk) -> ReleaseDesk:
            broken: dict[str, Any] = {member: Broken(error)}
            if member == "collateral":
                return replace(desk, authenticator=replace(desk.authenticator, **broken))
            return replace(desk, **broken)

        async with open_world(tmp_path, simulated_hierarchies[Product.MILAN], change_desk=change) as world:
            request = await world.request()
            evidence = world.machine.evidence(report_data(request), collateral=Collateral.NONE)
            if member != "collateral":
                evidence = world.machine.evidence(report_data(request))
            answer = await world.post(request, evidence)
            reasons = () if error.reason == error.code else (error.reason,)
            answer.check_refused(503, error.code, *reasons)
            assert int(answer.response.headers["retry-after"]) >= 1
            assert await world.spent() == 0

    async def test_no_certificates_and_none_stored(self, world: World) -> None:
        request = await world.request()
        evidence = world.machine.evidence(report_data(request), collateral=Collateral.NONE)
        answer = await world.post(request, evidence)
        answer.check_refused(503, "collateral-unavailable")
        assert int(answer.response.headers["retry-after"]) >= 1

    async def test_readiness_has_named_reasons(
        self, tmp_path: Path, simulated_hierarchies: Mapping[Product, AmdHierarchy]
    ) -> None:
        async with open_world(
            tmp_path, simulated_hierarchies[Product.MILAN], not_ready=("policy-missing",)
        ) as world:
            answer = Answer(await world.client.get("/readyz"))
            answer.check_refused(503, "not-ready", "policy-missing")
            assert (await world.client.get("/healthz")).status_code == 200


class TestFramework:
    @pytest.mark.parametrize(
        "path", ["/", "/v1", "/v1/releases/", "/v1/nothing", "/../../etc/passwd", "/%00"]
    )
    async def test_not_found(self, world: World, path: str) -> None:
        Answer(await world.client.get(path)).check_refused(404, "not-found")

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("PUT", "/v1/releases"),
            ("PUT", "/v1/challenges"),
            ("POST", "/v1/identity"),
            ("DELETE", "/healthz"),
        ],
    )
    async def test_method_not_allowed(self, world: World, method: str, path: str) -> None:
        answer = Answer(await world.client.request(method, path))
        answer.check_refused(405, "method-not-allowed")
        assert answer.response.headers["allow"]

    @pytest.mark.parametrize(
        "headers",
        [
            {"content-type": "text/plain"},
            {"content-type": "application/x-www-form-urlencoded"},
            {"content-type": "application/json", "content-encoding": "gzip"},
            {"content-type": "application/json", "content-encoding": "br"},
        ],
    )
    async def test_unsupported_media_type(self, world: World, headers: dict[str, str]) -> None:
        answer = Answer(await world.client.post("/v1/releases", content=b"{}", headers=headers))
        answer.check_refused(415, "unsupported-media-type")

    async def test_json_with_parameters_is_json(self, world: World) -> None:
        request, evidence = await honest(world)
        body = json.dumps({"request": b64url(request), "evidence": evidence})
        headers = {"content-type": "Application/JSON; charset=utf-8"}
        assert (await world.client.post("/v1/releases", content=body, headers=headers)).status_code == 200

    async def test_a_failure_of_our_own_is_a_bare_500(
        self, tmp_path: Path, simulated_hierarchies: Mapping[Product, AmdHierarchy]
    ) -> None:
        class Bug:
            async def active(self) -> None:
                raise RuntimeError(SECRET_INPUT)

        async with open_world(
            tmp_path,
            simulated_hierarchies[Product.MILAN],
            change_desk=lambda desk: replace(desk, policies=Bug()),  # type: ignore[arg-type]  # broken on purpose
        ) as world:
            answer = await world.ask()
            answer.check_refused(500, "internal")
            assert SECRET_INPUT not in answer.response.text


class TestEveryResponse:
    async def responses(self, world: World) -> list[Answer]:
        request, evidence = await honest(world)
        body = {"request": b64url(request), "evidence": evidence}
        client = world.client
        return [
            Answer(await client.post("/v1/challenges")),
            Answer(await client.post("/v1/releases", json=body)),
            Answer(await client.post("/v1/releases", json=body)),
            Answer(await client.post("/v1/releases", content=b"{")),
            Answer(await client.post("/v1/releases", content=b"{}", headers={"content-encoding": "gzip"})),
            Answer(await client.post("/v1/releases", content=b" " * (MAX_BODY + 1))),
            Answer(await client.put("/v1/releases")),
            Answer(await client.get("/nothing")),
            Answer(await client.get("/v1/identity")),
            Answer(await client.get("/healthz")),
            Answer(await client.get("/readyz")),
            Answer(await client.get("/openapi.json")),
            Answer(await client.get("/docs")),
        ]

    async def test_development_mode_is_said(self, world: World) -> None:
        answers = await self.responses(world)
        assert [answer.status for answer in answers] == [
            201, 200, 409, 400, 415, 413, 405, 404, 200, 200, 200, 200, 200,
        ]  # fmt: skip
        for answer in answers:
            assert answer.response.headers["kms-development"] == "true"
            assert answer.response.headers["kms-request-id"]
        assert answers[1].body["development"] is True
        assert answers[8].body["development"] is True
        assert answers[10].body["development"] is True

    async def test_development_mode_is_said_when_the_server_fails(
        self, tmp_path: Path, simulated_hierarchies: Mapping[Product, AmdHierarchy]
    ) -> None:
        broken = Broken(LedgerUnavailable("x"))
        async with open_world(
            tmp_path,
            simulated_hierarchies[Product.MILAN],
            change_desk=lambda desk: replace(desk, decisions=broken, policies=None),  # type: ignore[arg-type]
        ) as world:
            answer = await world.ask()
            assert answer.status == 503
            assert answer.response.headers["kms-development"] == "true"

    async def test_production_says_nothing_of_it(
        self, tmp_path: Path, simulated_hierarchies: Mapping[Product, AmdHierarchy]
    ) -> None:
        async with open_world(tmp_path, simulated_hierarchies[Product.MILAN], development=False) as world:
            for answer in await self.responses(world):
                assert "kms-development" not in answer.response.headers
                assert answer.response.headers["kms-request-id"]


class TestNothingIsEchoed:
    """Field lesson 34: no error repeats its input, a trace or a path."""

    @pytest.mark.parametrize(
        "place",
        ["body", "member", "challenge", "suite", "name", "scope", "app", "tee", "hint", "document", "path"],
    )
    async def test_input_never_comes_back(self, world: World, place: str) -> None:
        member: dict[str, dict[str, object]] = {
            "member": {SECRET_INPUT: SECRET_INPUT},
            "challenge": {"challenge": SECRET_INPUT},
            "suite": {"recipient": {"suite": SECRET_INPUT, "public_key": b64url(b"k" * 32)}},
            "name": {"keys": [{"name": SECRET_INPUT, "scope": "app"}]},
            "scope": {"keys": [{"name": "disk", "scope": SECRET_INPUT}]},
            "app": {"app": {"id": SECRET_INPUT}},
        }
        request, evidence = await honest(world, **member.get(place, {}))
        if place == "body":
            answer = Answer(await world.client.post("/v1/releases", content=SECRET_INPUT.encode()))
        elif place == "path":
            answer = Answer(await world.client.get(f"/{SECRET_INPUT}"))
        else:
            changes: dict[str, object] = {
                "tee": {"tee": SECRET_INPUT},
                "hint": {"launch": {SECRET_INPUT: SECRET_INPUT}},
                "document": {"app_document": b64url(SECRET_INPUT.encode())},
            }.get(place, {})  # type: ignore[assignment]  # dicts of texts
            answer = await world.post(request, {**evidence, **changes})
        assert answer.status in {400, 403, 404}
        text = answer.response.text + repr(answer.response.headers)
        for trace in (SECRET_INPUT, "Traceback", ".py", "/kms", "sqlite"):
            assert trace not in text

    async def test_a_refusal_holds_no_value(self, world: World) -> None:
        await world.apply_changed(app={"compose": ["ab" * 32], "chips": ["ab" * 64]})
        answer = await world.ask()
        assert answer.status == 403
        for value in ("ab" * 32, world.chip.chip_id.hex(), world.machine.guest.measurement.hex()):
            assert value not in answer.response.text


async def test_an_answer_has_the_members_of_the_protocol(world: World) -> None:
    key = RecipientKey.generate(Suite.HPKE_X25519)
    request = await world.request(key)
    answer = await world.post(request, world.machine.evidence(report_data(request)))
    assert answer.status == 200
    assert set(answer.body) == {
        "release_id", "suite", "sealed", "boot_info", "policy_revision", "receipt", "development",
    }  # fmt: skip
    assert answer.body["suite"] == "hpke-x25519-hkdf-sha256-aes-256-gcm"
    assert answer.body["policy_revision"].startswith("sha256:")
    assert answer.response.headers["cache-control"] == "no-store"
    assert answer.body["release_id"] == answer.response.headers["kms-request-id"]


async def test_who_the_server_is(world: World) -> None:
    body = (await world.client.get("/v1/identity")).json()
    assert set(body) == {"identity", "previous", "tls_ca", "epochs", "version", "development"}
    assert body["identity"] == b64url(world.desk.identity.public_key)
    assert body["epochs"] == [1]


async def test_a_challenge_costs_no_body_whatever_it_is(world: World) -> None:
    """The body of `POST /v1/challenges` is ignored, its type and encoding too."""
    headers = {"content-type": "text/plain", "content-encoding": "gzip"}
    response = await world.client.post("/v1/challenges", content=b"not gzip", headers=headers)
    assert response.status_code == 201
