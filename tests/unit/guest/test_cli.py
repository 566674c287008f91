"""`kms guest fetch`: where keys go, where they never go, and the exit status."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from kms.cli import run
from kms.cli.guest import parser
from kms.cli.guest_machine import guest_config
from kms.encoding import b64url, from_base64
from kms.guest.client import KeyClient
from kms.guest.hardware import EvidenceOptions, Interface
from kms.guest.keyring import Keyring
from kms.keys.identity import Identity
from kms.keys.names import KeyRequest
from kms.keys.sealing import Suite
from kms.keys.signed import Signed
from kms.labels import RECEIPT
from kms.ledger.proofs import Receipt
from kms.simulator.machine import SimulatedMachine
from tests.unit.guest.conftest import DISK, FakeKms, app_document, problem, value_of

Fetch = Callable[..., int]
Captured = pytest.CaptureFixture[bytes]


def answered_by(kms: FakeKms, monkeypatch: pytest.MonkeyPatch) -> None:
    def client(url: str, **options: Any) -> KeyClient:
        return KeyClient(url, **options | {"transport": httpx2.MockTransport(kms)})

    monkeypatch.setattr("kms.guest.machine.KeyClient", client)


@pytest.fixture
def fetch(kms: FakeKms, machine: SimulatedMachine, monkeypatch: pytest.MonkeyPatch) -> Fetch:
    answered_by(kms, monkeypatch)
    monkeypatch.setattr("kms.guest.hardware.evidence_source", lambda *_, **__: machine)

    def fetch(*arguments: str, pin: bool = True) -> int:
        pinned = ("--identity", b64url(kms.identity.public_key)) if pin else ()
        argv = ["guest", "fetch", "--server", "https://kms.test:8443", *pinned, *arguments]
        monkeypatch.setattr(sys, "argv", ["kms", *argv])
        try:
            return run(argv)
        except SystemExit as error:
            return int(error.code or 0)

    return fetch


@pytest.fixture
def document(tmp_path: Path) -> str:
    path = tmp_path / "app.json"
    path.write_bytes(app_document())
    return str(path)


def test_one_key_is_its_raw_bytes_for_a_pipe(fetch: Fetch, capfdbinary: Captured, document: str) -> None:
    assert fetch("--key", "disk", "--app-document", document) == 0
    captured = capfdbinary.readouterr()
    assert captured.out == value_of(DISK)
    assert captured.err == b""


def test_a_full_disk_behind_standard_output_is_no_refusal(
    fetch: Fetch, monkeypatch: pytest.MonkeyPatch, capfdbinary: Captured
) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert fetch("--key", "disk") == 2
    assert capfdbinary.readouterr().err == b"kms guest: standard output: No space left on device\n"


def test_a_reader_that_left_was_not_given_the_key(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:  # noqa: PTH123 - a descriptor
        monkeypatch.setattr(sys, "stdout", pipe)
        assert fetch("--key", "disk") == 141


@pytest.mark.parametrize("name", ["control", "a b", "-x", "../x", "", "x" * 128])
def test_unlock_takes_no_name_that_the_configuration_would_not(
    fetch: Fetch, kms: FakeKms, name: str, capfdbinary: Captured
) -> None:
    server = ["--server", "https://kms.test:8443", "--trust-any-kms-identity"]
    assert run(["guest", "unlock", *server, "--", "/dev/null", name]) == 2
    assert b"NAME: the name of a mapping" in capfdbinary.readouterr().err
    assert kms.challenges == 0


def test_several_keys_are_one_json_document(fetch: Fetch, capfdbinary: Captured) -> None:
    assert fetch("--key", "disk", "--key", "custom:a/b@instance", "--epoch", "2", "--json") == 0
    shown = json.loads(capfdbinary.readouterr().out)
    assert [(key["name"], key["scope"], key["epoch"]) for key in shown["keys"]] == [
        ("disk", "app", 2),
        ("custom:a/b", "instance", 2),
    ]
    assert from_base64(shown["keys"][0]["value"]) == value_of(DISK)


def test_keys_of_several_epochs_at_once(fetch: Fetch, kms: FakeKms, capfdbinary: Captured) -> None:
    keys = ["disk#1", "disk@app#2", "custom:a/b@instance#0x3", "env", "dstack:disk@instance"]
    assert fetch(*(word for key in keys for word in ("--key", key)), "--epoch", "4", "--json") == 0
    [request] = kms.requests
    assert [(str(key.name), key.scope, key.epoch) for key in request.ask.keys] == [
        ("disk", "app", 1),
        ("disk", "app", 2),
        ("custom:a/b", "instance", 3),
        ("env", "app", 4),
        ("dstack:disk", "instance", None),
    ]
    shown = json.loads(capfdbinary.readouterr().out)["keys"]
    assert [key["epoch"] for key in shown] == [1, 2, 3, 4, None]


def test_a_file_holds_the_key_and_standard_output_does_not(
    fetch: Fetch, capfdbinary: Captured, tmp_path: Path
) -> None:
    path = tmp_path / "key"
    assert fetch("--key", "disk", "--output", str(path), "--allow-disk", "--json") == 0
    assert path.read_bytes() == value_of(DISK)
    shown = capfdbinary.readouterr().out
    assert b64url(value_of(DISK)).encode() not in shown
    assert set(json.loads(shown)["keys"][0]) == {"name", "scope", "epoch", "algorithm"}


def test_an_existing_file_costs_no_challenge(fetch: Fetch, kms: FakeKms, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.touch()
    assert fetch("--key", "disk", "--output", str(path), "--allow-disk") == 2
    assert kms.challenges == 0


def test_a_terminal_never_shows_a_key(
    fetch: Fetch, kms: FakeKms, monkeypatch: pytest.MonkeyPatch, capfdbinary: Captured
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert fetch("--key", "disk") == 2
    assert fetch("--key", "disk", "--json") == 2
    assert kms.challenges == 0
    assert json.loads(capfdbinary.readouterr().out)["error"]["code"] == "wrong-use"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--key", "disk", "--key", "env"],
        ["--key", "disks"],
        ["--key", "env@chip"],
        ["--key", "disk@"],
        ["--key", "disk@instance@app"],
        ["--key", "disk#"],
        ["--key", "disk#0"],
        ["--key", "disk#-1"],
        ["--key", "disk#1#2"],
        ["--key", "disk#1@chip"],
        ["--key", "disk#latest"],
        ["--key", "disk#" + "9" * 5000],
        ["--key", "#1"],
        ["--key", "dstack:env#1"],
        ["--key", "disk#1", "--key", "disk", "--epoch", "1", "--json"],
        ["--key", "disk", "--epoch", "0"],
        ["--key", "disk", "--suite", "rot13"],
        ["--key", "disk", "--app-id", "00"],
        ["--key", "disk", "--app-id", "00", "--compose-hash", "00"],
        ["--key", "disk", "--app-document", "/nonexistent"],
        ["--key", "disk", "--ca", "/nonexistent"],
        ["--key", "disk", "--launch", "/nonexistent"],
        ["--key", "disk", "--trust-any-kms-identity"],
        ["--key", "disk", "--deadline", "nan"],
        ["--key", "disk", "--deadline", "inf"],
        ["--key", "disk", "--deadline", "0"],
        ["--key", "disk", "--deadline=-1"],
        ["--key", "disk", "--epoch", "1e3"],
        ["--key", "disk", "--epoch", str(1 << 60)],
    ],
    ids=lambda arguments: " ".join(arguments)[:60],
)
def test_wrong_use_asks_nothing(fetch: Fetch, kms: FakeKms, arguments: list[str]) -> None:
    assert fetch(*arguments) == 2
    assert not kms.requests


class TestPlaces:
    """A systemd credential and a kernel keyring in place of a pipe: one key, nothing on standard output."""

    def test_a_credential(self, fetch: Fetch, capfdbinary: Captured, tmp_path: Path) -> None:
        store = tmp_path / "credstore"
        place = ["--credential", "disk", "--credential-dir", str(store), "--allow-disk"]
        assert fetch("--key", "disk", *place) == 0
        assert (store / "disk").read_bytes() == value_of(DISK)
        assert capfdbinary.readouterr().out == b""
        assert fetch("--key", "disk", "--json", *place) == 0
        shown = json.loads(capfdbinary.readouterr().out)
        assert shown["credential"] == str(store / "disk")
        assert "value" not in shown["keys"][0]

    def test_a_keyring(self, fetch: Fetch, capfdbinary: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
        kept: list[tuple[str, bytes, Keyring, int | None]] = []

        def add_key(description: str, secret: bytes, *, keyring: Keyring, timeout: int | None) -> int:
            kept.append((description, secret, keyring, timeout))
            return 4711

        monkeypatch.setattr("kms.guest.keyring.check_keyring", lambda *_, **__: None)
        monkeypatch.setattr("kms.guest.keyring.add_key", add_key)
        assert fetch("--key", "disk", "--keyring", "kms:disk") == 0
        assert capfdbinary.readouterr().out == b""
        place = ["--keyring", "kms:disk", "--keyring-of", "session", "--keyring-timeout", "60"]
        assert fetch("--key", "disk", "--json", *place) == 0
        shown = json.loads(capfdbinary.readouterr().out)
        assert shown["keyring_key"] == 4711
        assert "value" not in shown["keys"][0]
        assert kept == [
            ("kms:disk", value_of(DISK), Keyring.USER, None),
            ("kms:disk", value_of(DISK), Keyring.SESSION, 60),
        ]

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--credential", "a/b"],
            ["--credential", "disk", "--credential-dir", "/dev/null"],
            ["--credential", "disk", "--keyring", "disk"],
            ["--credential", "disk", "--output", "/run/disk"],
            ["--keyring", ""],
            ["--keyring", "disk", "--keyring-of", "process"],
            ["--keyring", "disk", "--keyring-timeout", "0"],
            ["--keyring", "disk", "--keyring-timeout", "soon"],
            ["--keyring-of", "user"],
            ["--keyring-timeout", "60"],
            ["--credential-dir", "/run"],
            ["--keyring", "disk", "--key", "env"],
            ["--credential", "disk", "--key", "env", "--json"],
        ],
        ids=" ".join,
    )
    def test_wrong_use_costs_no_challenge(self, fetch: Fetch, kms: FakeKms, arguments: list[str]) -> None:
        assert fetch("--key", "disk", *arguments) == 2
        assert kms.challenges == 0


class TestConfiguration:
    """What the measured image says, and options over it."""

    @pytest.fixture
    def config(self, kms: FakeKms, document: str, tmp_path: Path) -> Path:
        path = tmp_path / "guest.toml"
        path.write_text(f"""
            server = "https://kms.test:8443"
            identity = "{b64url(kms.identity.public_key)}"
            app_document = "{document}"
        """)
        path.chmod(0o644)
        return path

    @pytest.fixture
    def run_fetch(self, fetch: Fetch) -> Fetch:
        return lambda *arguments: run(["guest", "fetch", "--key", "disk", *arguments])

    def test_a_file_says_all(
        self, run_fetch: Fetch, kms: FakeKms, config: Path, capfdbinary: Captured
    ) -> None:
        assert run_fetch("--config", str(config)) == 0
        assert capfdbinary.readouterr().out == value_of(DISK)
        assert "app_document" in kms.evidence[0]

    def test_the_default_file(
        self, run_fetch: Fetch, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("kms.guest.config.DEFAULT_CONFIG", config)
        assert run_fetch() == 0
        monkeypatch.setattr("kms.guest.config.DEFAULT_CONFIG", tmp_path / "missing")
        assert run_fetch() == 2

    def test_options_go_before_the_file(
        self, config: Path, tmp_path: Path, kms: FakeKms, capfdbinary: Captured
    ) -> None:
        words = f"fetch --key disk --config {config} --server https://other --deadline 5 --ca /ca.pem"
        words += " --evidence device --device /dev/x --privlevel 0 --workload /run/w"
        words += f" --suite {Suite.HPKE_X25519} --identity {b64url(bytes(32))}"
        arguments = parser().parse_args(words.split())
        read = guest_config(arguments)
        assert (read.server, read.deadline, read.ca) == ("https://other", 5.0, Path("/ca.pem"))
        assert (read.workload, read.suite, read.identity) == (Path("/run/w"), Suite.HPKE_X25519, bytes(32))
        assert read.evidence == EvidenceOptions(
            device=Path("/dev/x"), interface=Interface.DEVICE, privlevel=0
        )
        assert read.app_document == tmp_path / "app.json"

    def test_without_options_the_files_values_stand(self, config: Path, kms: FakeKms) -> None:
        with config.open("a") as file:
            file.write(f"""
                deadline = 7
                suite = "{Suite.HPKE_X25519}"
                [evidence]
                privlevel = 3
            """)
        read = guest_config(parser().parse_args(["fetch", "--key", "disk", "--config", str(config)]))
        assert (read.deadline, read.suite, read.evidence.privlevel) == (7.0, Suite.HPKE_X25519, 3)
        assert read.identity == kms.identity.public_key

    def test_a_server_without_a_pin_is_not_helped_out_by_the_default_file(
        self, run_fetch: Fetch, kms: FakeKms, config: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("kms.guest.config.DEFAULT_CONFIG", config)
        assert run_fetch("--server", "https://kms.test:8443") == 2
        assert kms.challenges == 0

    def test_a_file_that_others_can_write_asks_nothing(
        self, run_fetch: Fetch, kms: FakeKms, config: Path, capfdbinary: Captured
    ) -> None:
        config.chmod(0o666)
        assert run_fetch("--config", str(config), "--json") == 2
        assert json.loads(capfdbinary.readouterr().out)["error"]["code"] == "configuration"
        assert kms.challenges == 0


class TestWhatTheHostHandsOver:
    """Refused by this machine itself: status 1, as when the server refuses."""

    def test_another_workload(
        self, fetch: Fetch, kms: FakeKms, capfdbinary: Captured, document: str, tmp_path: Path
    ) -> None:
        workload = tmp_path / "workload"
        workload.write_bytes(b"another")
        asked = ("--key", "disk", "--app-document", document, "--workload", str(workload))
        assert fetch(*asked, "--json") == 1
        error = json.loads(capfdbinary.readouterr().out)["error"]
        assert (error["code"], error["reason"]) == ("workload-refused", "compose-hash-differs")
        assert fetch(*asked) == 1
        captured = capfdbinary.readouterr()
        assert (captured.out, b"another workload" in captured.err) == (b"", True)
        assert kms.challenges == 0

    def test_another_app_document(
        self, fetch: Fetch, kms: FakeKms, capfdbinary: Captured, tmp_path: Path
    ) -> None:
        other = tmp_path / "other.json"
        other.write_bytes(app_document() + b" ")
        assert fetch("--key", "disk", "--app-document", str(other), "--json") == 1
        error = json.loads(capfdbinary.readouterr().out)["error"]
        assert (error["code"], error["reason"]) == ("app-document-refused", "host-data-mismatch")
        assert not kms.requests

    def test_a_workload_and_nothing_that_names_it(self, fetch: Fetch, kms: FakeKms, document: str) -> None:
        assert fetch("--key", "disk", "--workload", document) == 2
        assert kms.challenges == 0


@pytest.mark.parametrize("identity", ["", "AAAA", "!", "A" * 44, "@/nonexistent"])
def test_an_identity_that_is_none(fetch: Fetch, kms: FakeKms, identity: str) -> None:
    assert fetch("--key", "disk", "--identity", identity, pin=False) == 2
    assert kms.challenges == 0


def test_a_guest_that_pins_nothing_must_say_so(fetch: Fetch, kms: FakeKms, capfdbinary: Captured) -> None:
    kms.signer = Identity.from_prf(b"\x22" * 64)
    assert fetch("--key", "disk", pin=False) == 2
    assert fetch("--key", "disk") == 1
    assert capfdbinary.readouterr().out == b""
    assert fetch("--key", "disk", "--trust-any-kms-identity", pin=False) == 0


def test_no_abbreviation_stands_for_a_dangerous_option(fetch: Fetch, kms: FakeKms) -> None:
    assert fetch("--key", "disk", "--trust", pin=False) == 2
    assert not kms.requests


def test_the_identity_from_a_file(fetch: Fetch, kms: FakeKms, tmp_path: Path) -> None:
    pin = tmp_path / "kms.id"
    pin.write_text(b64url(kms.identity.public_key) + "\n")
    assert fetch("--key", "disk", "--identity", f"@{pin}", pin=False) == 0


def test_a_refusal_is_status_1_with_its_reasons(fetch: Fetch, kms: FakeKms, capfdbinary: Captured) -> None:
    kms.script = [problem(403, "policy-denied", "debug-enabled")]
    assert fetch("--key", "disk", "--json") == 1
    shown = json.loads(capfdbinary.readouterr().out)["error"]
    assert (shown["status"], shown["code"], shown["reasons"]) == (403, "policy-denied", ["debug-enabled"])
    assert shown["request_id"] == "q1"


def test_what_the_server_calls_malformed_is_status_2(
    fetch: Fetch, kms: FakeKms, capfdbinary: Captured
) -> None:
    kms.script = [problem(400, "malformed-evidence", "report-version")]
    assert fetch("--key", "disk") == 2
    assert b"malformed-evidence (report-version)" in capfdbinary.readouterr().err


def test_an_answer_with_other_keys_is_status_1(fetch: Fetch, kms: FakeKms, capfdbinary: Captured) -> None:
    kms.keys_of = lambda _: [KeyRequest.parse("disk", "chip")]
    assert fetch("--key", "disk", "--json") == 1
    assert json.loads(capfdbinary.readouterr().out)["error"]["reason"] == "keys-mismatch"


def test_no_evidence_is_status_2(
    kms: FakeKms, monkeypatch: pytest.MonkeyPatch, capfdbinary: Captured, tmp_path: Path
) -> None:
    answered_by(kms, monkeypatch)
    pin = b64url(kms.identity.public_key)
    argv = ["guest", "fetch", "--server", "https://kms.test", "--identity", pin, "--key", "disk", "--json"]
    assert run([*argv, "--tsm", str(tmp_path / "report")]) == 2
    assert json.loads(capfdbinary.readouterr().out)["error"]["code"] == "evidence-unavailable"


class TestReceipt:
    """The promise that comes beside the keys, kept for `kms ledger prove`."""

    @staticmethod
    def promising(kms: FakeKms, identity: Identity | None = None, release_id: str = "r1") -> None:
        promise = {
            "decided_at": "2026-11-21T12:00:00.000000Z",
            "entry_sha256": "ab" * 32,
            "release_id": release_id,
            "salt": b64url(bytes(16)),
        }
        signed = Signed.by(identity or kms.identity, RECEIPT, json.dumps(promise).encode())
        kms.edit = lambda answer: {**answer, "receipt": signed.to_json()}

    def test_it_is_kept_as_it_came(
        self, kms: FakeKms, fetch: Fetch, capfdbinary: Captured, tmp_path: Path
    ) -> None:
        self.promising(kms)
        assert fetch("--key", "disk", "--receipt", str(tmp_path / "receipt.json")) == 0
        assert capfdbinary.readouterr().out == value_of(DISK)
        kept = json.loads((tmp_path / "receipt.json").read_bytes())
        assert Receipt.verify(kept, pinned=kms.identity.public_key).release_id == "r1"

    @pytest.mark.parametrize("case", ["none", "another-identity", "another-release"])
    def test_one_that_is_none_is_an_answer_not_to_be_used(
        self, kms: FakeKms, fetch: Fetch, capfdbinary: Captured, tmp_path: Path, case: str
    ) -> None:
        if case == "another-identity":
            self.promising(kms, Identity.from_prf(b"\x77" * 64))
        elif case == "another-release":
            self.promising(kms, release_id="r2")
        assert fetch("--key", "disk", "--receipt", str(tmp_path / "receipt.json")) == 1
        assert capfdbinary.readouterr().out == b""
        assert not (tmp_path / "receipt.json").exists()
