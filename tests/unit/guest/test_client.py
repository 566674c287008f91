"""The guest's client against a server that lies, fails or throttles (field lesson 29)."""

import json
import ssl
from hashlib import sha256

import httpx2
import pytest

from kms.encoding import b64url
from kms.errors import ConfigurationError, MalformedRequest
from kms.evidence.app_document import host_data_of
from kms.guest.client import KeyClient
from kms.guest.errors import (
    AnswerRejected,
    AppDocumentRefused,
    EvidenceError,
    Problem,
    Refused,
    ServerUnreachable,
    ServerUntrusted,
)
from kms.guest.transport import MAX_ANSWER
from kms.identifiers import ComposeHash
from kms.keys.identity import Identity
from kms.keys.names import KeyRequest
from kms.keys.sealing import Suite
from kms.measurement.images import Binding
from kms.policy.question import AppClaim
from kms.simulator.machine import SimulatedMachine
from kms.strict_json import JsonValue
from tests.unit.guest.conftest import (
    APP_ID,
    DISK,
    OTHER_APP_ID,
    FakeKms,
    FakeTime,
    answer_then,
    app_document,
    make_client,
    problem,
    value_of,
    with_host_data,
)

DB = KeyRequest.parse("custom:db/main", "instance", 3)


class TestFetch:
    @pytest.mark.parametrize("suite", Suite)
    def test_keys_arrive_in_the_order_asked(
        self, kms: FakeKms, machine: SimulatedMachine, time: FakeTime, suite: Suite
    ) -> None:
        payload = make_client(kms, machine, time, suite=suite).fetch([DB, DISK], app_document=app_document())
        assert [key.value for key in payload.keys] == [value_of(DB), value_of(DISK)]
        assert [key.epoch for key in payload.keys] == [3, 1]
        assert payload.app_id == APP_ID
        assert payload.identity == kms.identity.public_key

    def test_sends_the_document_that_was_checked(self, kms: FakeKms, client: KeyClient) -> None:
        client.fetch([DISK], app_document=app_document())
        assert kms.evidence[0]["app_document"] == b64url(app_document())

    def test_each_fetch_has_its_own_recipient_key(self, kms: FakeKms, client: KeyClient) -> None:
        client.fetch([DISK])
        client.fetch([DISK])
        assert kms.requests[0].recipient.public_key != kms.requests[1].recipient.public_key

    def test_claims_the_app_of_a_measured_command_line(self, kms: FakeKms, client: KeyClient) -> None:
        claim = AppClaim(app_id=APP_ID, compose_hash=ComposeHash(b"\xc3" * 32))
        client.fetch([DISK], app=claim)
        assert kms.requests[0].ask.app == claim

    @pytest.mark.parametrize(
        "keys", [[], [DISK, DISK], [KeyRequest.parse(f"custom:{n}", "app") for n in range(33)]]
    )
    def test_what_the_server_would_refuse_costs_no_report(
        self, kms: FakeKms, client: KeyClient, keys: list[KeyRequest]
    ) -> None:
        with pytest.raises(MalformedRequest):
            client.fetch(keys)
        assert not kms.requests

    def test_nothing_shows_a_key(self, kms: FakeKms, client: KeyClient) -> None:
        payload = client.fetch([DISK])
        secret = value_of(DISK)
        for shown in (repr(payload), repr(client), str(payload.keys[0])):
            assert secret.hex() not in shown
            assert repr(secret) not in shown


class TestAnswersThatMustNotBeUsed:
    def test_an_impostor_behind_the_same_ca(
        self, kms: FakeKms, machine: SimulatedMachine, time: FakeTime
    ) -> None:
        kms.signer = Identity.from_prf(b"\x22" * 64)
        with pytest.raises(AnswerRejected) as error:
            make_client(kms, machine, time).fetch([DISK])
        assert error.value.reason == "identity-mismatch"

    def test_only_the_pin_tells_an_impostor(
        self, kms: FakeKms, machine: SimulatedMachine, time: FakeTime
    ) -> None:
        kms.signer = Identity.from_prf(b"\x22" * 64)
        payload = make_client(kms, machine, time, pinned=False).fetch([DISK])
        assert payload.identity == kms.signer.public_key

    @pytest.mark.parametrize(
        ("suite", "reason"),
        # HPKE has the request in its context; a sealed box has it only in the signed payload.
        [(Suite.HPKE_X25519, "cannot-open"), (Suite.X25519_SEALEDBOX, "cannot-open")],
    )
    def test_yesterdays_answer_replayed(
        self, kms: FakeKms, machine: SimulatedMachine, time: FakeTime, suite: Suite, reason: str
    ) -> None:
        answers: list[dict[str, object]] = []

        def keep_first(answer: dict[str, object]) -> dict[str, object]:
            answers.append(answer)
            return answers[0]

        kms.edit = keep_first
        client = make_client(kms, machine, time, suite=suite)
        client.fetch([DISK])
        with pytest.raises(AnswerRejected) as error:
            client.fetch([DISK])
        assert error.value.reason == reason

    def test_a_signed_answer_to_another_request_sealed_anew(
        self, kms: FakeKms, machine: SimulatedMachine, time: FakeTime
    ) -> None:
        kms.digest_of = lambda _: bytes(64)
        with pytest.raises(AnswerRejected) as error:
            make_client(kms, machine, time, suite=Suite.X25519_SEALEDBOX).fetch([DISK])
        assert error.value.reason == "request-mismatch"

    @pytest.mark.parametrize(
        "given",
        [
            [DB],
            [DISK, DB],
            [KeyRequest.parse("disk", "chip")],
            [KeyRequest.parse("custom:other", "app")],
            [KeyRequest.parse("disk", "app", 1)],
        ],
        ids=str,
    )
    def test_other_keys_than_asked_for(
        self, kms: FakeKms, client: KeyClient, given: list[KeyRequest]
    ) -> None:
        kms.keys_of = lambda _: given
        with pytest.raises(AnswerRejected) as error:
            client.fetch([KeyRequest.parse("disk", "app", 2)])
        assert error.value.reason == "keys-mismatch"

    def test_keys_of_another_app(self, kms: FakeKms, client: KeyClient) -> None:
        kms.app_id = OTHER_APP_ID
        with pytest.raises(AnswerRejected) as error:
            client.fetch([DISK], app_document=app_document())
        assert error.value.reason == "app-mismatch"

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"suite": "x25519-sealedbox"}, "suite-mismatch"),
            ({"release_id": "r2"}, "release-mismatch"),
            ({"sealed": "AAAA"}, "cannot-open"),
            ({"sealed": ""}, "cannot-open"),
            ({"sealed": "!"}, "answer-malformed"),
            ({"sealed": None}, "answer-malformed"),
            ({"release_id": 7}, "answer-malformed"),
        ],
        ids=str,
    )
    def test_changed_on_the_way(
        self, kms: FakeKms, client: KeyClient, change: dict[str, object], reason: str
    ) -> None:
        kms.edit = lambda answer: answer | change
        with pytest.raises(AnswerRejected) as error:
            client.fetch([DISK])
        assert error.value.reason == reason

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"[]",
            b"{",
            b'{"challenge":"AA","challenge":"AB"}',
            b'{"challenge":"' + b"A" * MAX_ANSWER + b'"}',
        ],
    )
    def test_a_challenge_that_is_none(self, kms: FakeKms, client: KeyClient, body: bytes) -> None:
        kms.script = [lambda _: httpx2.Response(201, content=body)]
        with pytest.raises(AnswerRejected) as error:
            client.fetch([DISK])
        assert error.value.reason == "answer-malformed"


class TestTryingAgain:
    def test_503_then_success_with_a_new_challenge(
        self, kms: FakeKms, client: KeyClient, time: FakeTime
    ) -> None:
        kms.script = [
            lambda request: answer_then(kms, request),
            problem(503, "collateral-unavailable", retry_after="7"),
        ]
        client.fetch([DISK])
        assert kms.challenges == 2
        assert len(time.slept) == 1
        assert time.slept[0] >= 7

    def test_429_waits_as_long_as_the_server_says(
        self, kms: FakeKms, client: KeyClient, time: FakeTime
    ) -> None:
        kms.script = [
            problem(429, "rate-limited", retry_after="20"),
            problem(429, "rate-limited", retry_after="3"),
        ]
        client.fetch([DISK])
        assert time.slept[0] >= 20
        assert 3 <= time.slept[1] < 20

    def test_gives_up_at_once_when_told_to_wait_beyond_the_deadline(
        self, kms: FakeKms, client: KeyClient, time: FakeTime
    ) -> None:
        kms.script = [problem(503, "root-key-unavailable", "root-key-unavailable", retry_after="600")]
        with pytest.raises(ServerUnreachable) as error:
            client.fetch([DISK])
        assert time.slept == []
        assert error.value.problem == Problem(
            status=503,
            code="root-key-unavailable",
            reasons=("root-key-unavailable",),
            request_id="q1",
            retry_after=600,
        )

    def test_the_deadline_ends_a_server_that_never_answers(
        self, kms: FakeKms, machine: SimulatedMachine, time: FakeTime
    ) -> None:
        def refuse(_: httpx2.Request) -> httpx2.Response:
            raise httpx2.ConnectError("connection refused")

        kms.script = [refuse] * 100
        with pytest.raises(ServerUnreachable, match="connection refused"):
            make_client(kms, machine, time, deadline=30).fetch([DISK])
        assert 5 <= len(time.slept) < 15
        # Until a pause would not end before the deadline; none is longer than 10 s.
        assert 1020 <= time.now <= 1030
        assert time.slept[:3] == sorted(time.slept[:3])

    def test_a_certificate_that_does_not_verify_is_not_asked_again(
        self, kms: FakeKms, client: KeyClient, time: FakeTime
    ) -> None:
        def intercept(_: httpx2.Request) -> httpx2.Response:
            fault = ssl.SSLCertVerificationError(1, "certificate verify failed")
            fault.verify_message = "unable to get local issuer certificate"
            raise httpx2.ConnectError(str(fault)) from fault

        kms.script = [intercept]
        with pytest.raises(ServerUntrusted, match="local issuer"):
            client.fetch([DISK])
        assert time.slept == []

    def test_a_lost_answer_is_asked_for_anew(self, kms: FakeKms, client: KeyClient) -> None:
        def lose(_: httpx2.Request) -> httpx2.Response:
            raise httpx2.ReadTimeout("timed out")

        kms.script = [lambda request: answer_then(kms, request), lose]
        assert client.fetch([DISK]).keys[0].value == value_of(DISK)
        assert kms.challenges == 2

    @pytest.mark.parametrize(
        "wait", ["-1", "1e9", "", "soon", "9" * 30, "Wed, 21 Oct 2026 07:28:00 GMT", "٣"]
    )
    def test_a_strange_retry_after_is_ignored(
        self, kms: FakeKms, client: KeyClient, time: FakeTime, wait: str
    ) -> None:
        answer = httpx2.Response(503, json={}, headers={b"Retry-After": wait.encode("utf-8")})
        kms.script = [lambda _: answer]
        client.fetch([DISK])
        assert time.slept[0] < 1

    @pytest.mark.parametrize(
        ("status", "code"),
        [
            (400, "malformed-evidence"),
            (403, "policy-denied"),
            (409, "challenge-used"),
            (410, "challenge-expired"),
            (413, "too-large"),
            (500, "internal"),
            (302, "unknown"),
        ],
    )
    def test_a_refusal_is_not_asked_again(
        self, kms: FakeKms, client: KeyClient, time: FakeTime, status: int, code: str
    ) -> None:
        kms.script = [problem(status, code, "debug-enabled", "chip-not-listed")]
        with pytest.raises(Refused) as error:
            client.fetch([DISK])
        assert error.value.problem == Problem(
            status=status, code=code, reasons=("debug-enabled", "chip-not-listed"), request_id="q1"
        )
        assert time.slept == []

    def test_a_strangers_words_are_not_printed(self, kms: FakeKms, client: KeyClient) -> None:
        body: dict[str, JsonValue] = {
            "code": "\x1b[2J",
            "reasons": ["ok", "\n", 7, "x" * 999],
            "request_id": [],
        }
        kms.script = [lambda _: httpx2.Response(403, json=body)]
        with pytest.raises(Refused) as error:
            client.fetch([DISK])
        assert error.value.problem == Problem(status=403, code="unknown", reasons=("ok",))


class TestBeforeItAsks:
    @pytest.mark.parametrize("binding", [Binding.HOST_DATA, Binding.DSTACK_MR_CONFIG])
    def test_both_kinds_of_document_bind(
        self, kms: FakeKms, machine: SimulatedMachine, time: FakeTime, binding: Binding
    ) -> None:
        members = {"version": 3} if binding is Binding.DSTACK_MR_CONFIG else {}
        document = app_document(**members)
        bound = with_host_data(machine, host_data_of(document, binding))
        make_client(kms, bound, time).fetch([DISK], app_document=document)
        assert len(kms.requests) == 1

    def test_a_document_that_host_data_does_not_stand_for(self, kms: FakeKms, client: KeyClient) -> None:
        with pytest.raises(AppDocumentRefused) as error:
            client.fetch([DISK], app_document=app_document() + b" ")
        assert error.value.reason == "host-data-mismatch"
        assert not kms.requests

    def test_a_bound_document_that_cannot_be_read(
        self, kms: FakeKms, machine: SimulatedMachine, time: FakeTime
    ) -> None:
        bound = with_host_data(machine, sha256(b"{").digest())
        with pytest.raises(AppDocumentRefused) as error:
            make_client(kms, bound, time).fetch([DISK], app_document=b"{")
        assert error.value.reason == "app-document-unreadable"
        assert not kms.requests

    def test_a_bound_document_that_names_another_kms(
        self, kms: FakeKms, machine: SimulatedMachine, time: FakeTime
    ) -> None:
        document = app_document(kms_identity=b64url(b"\x07" * 32))
        bound = with_host_data(machine, sha256(document).digest())
        with pytest.raises(AppDocumentRefused) as error:
            make_client(kms, bound, time).fetch([DISK], app_document=document)
        assert error.value.reason == "kms-identity-differs"
        assert not kms.requests

    def test_a_source_that_gives_a_report_over_other_bytes(
        self, kms: FakeKms, machine: SimulatedMachine, time: FakeTime
    ) -> None:
        class Confused:
            def evidence(self, report_data: bytes) -> dict[str, JsonValue]:
                return machine.evidence(report_data[::-1])

        with pytest.raises(EvidenceError) as error:
            make_client(kms, Confused(), time).fetch([DISK])
        assert error.value.reason == "report-data-mismatch"
        assert not kms.requests

    @pytest.mark.parametrize(
        "url",
        [
            "http://kms:8443",
            "kms:8443",
            "https://",
            "https://user:word@kms",
            "https://kms/?a=b",
            "",
        ],
    )
    def test_an_address_that_is_not_plain_https(self, machine: SimulatedMachine, url: str) -> None:
        with pytest.raises(ConfigurationError):
            KeyClient(url, ca_file=None, identity=bytes(32), source=machine)

    def test_a_pin_of_another_length(self, machine: SimulatedMachine) -> None:
        with pytest.raises(ConfigurationError):
            KeyClient("https://kms", ca_file=None, identity=b"short", source=machine)


def test_the_request_is_compact_json_with_the_names_of_the_protocol(kms: FakeKms, client: KeyClient) -> None:
    client.fetch([DB])
    raw = kms.requests[0].raw
    body = json.loads(raw)
    assert list(body) == ["challenge", "recipient", "keys"]
    assert body["keys"] == [{"name": "custom:db/main", "scope": "instance", "epoch": 3}]
    assert b" " not in raw


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_times_that_never_pass(machine: SimulatedMachine, value: float) -> None:
    with pytest.raises(ConfigurationError):
        KeyClient("https://kms", ca_file=None, identity=bytes(32), source=machine, deadline=value)
    with pytest.raises(ConfigurationError):
        KeyClient("https://kms", ca_file=None, identity=bytes(32), source=machine, timeout=value)
