"""`kms env seal` by an app's owner, `kms guest env` in its guest: what is sealed, and what is refused."""

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from kms.cli import run
from kms.encoding import b64url, from_base64
from kms.guest.transport import Connection
from kms.keys.env_key import EnvKey, env_key_text
from kms.keys.env_sealing import MAX_ENV, SealedEnv
from kms.keys.hand_over import hand_overs
from kms.keys.identity import Identity
from kms.keys.signed import Signed
from kms.labels import ENV_KEY
from kms.simulator.machine import SimulatedMachine
from tests.unit.guest.conftest import APP_ID, ENV_EPOCH, OTHER_APP_ID, FakeKms, app_document, problem

ENVIRONMENT = b"# of payments\nDB_PASSWORD='hunter2 \\n'\n\nEMPTY=\n_x1=a=b\xff\n"
IMPOSTOR = Identity.from_prf(b"\x22" * 64)

Seal = Callable[..., int]
Open = Callable[..., int]
Captured = pytest.CaptureFixture[bytes]


@pytest.fixture(autouse=True)
def network(kms: FakeKms, machine: SimulatedMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(url: str, **options: Any) -> Connection:
        return Connection(url, **options | {"transport": httpx2.MockTransport(kms)})

    monkeypatch.setattr("kms.guest.transport.Connection", connect)
    monkeypatch.setattr("kms.guest.client.Connection", connect)
    monkeypatch.setattr("kms.guest.hardware.evidence_source", lambda *_, **__: machine)


def with_pin(kms: FakeKms, arguments: tuple[str, ...]) -> list[str]:
    if not {"--identity", "--trust-any-kms-identity"}.isdisjoint(arguments):
        return list(arguments)
    return ["--identity", b64url(kms.identity.public_key), *arguments]


@pytest.fixture
def seal(kms: FakeKms) -> Seal:
    def seal(file: object, *arguments: str, app: str = APP_ID.hex()) -> int:
        server = ["--server", "https://kms.test:8443", "--app", app]
        return run(["env", "seal", *server, *with_pin(kms, arguments), str(file)])

    return seal


@pytest.fixture
def open_env(kms: FakeKms, tmp_path: Path) -> Open:
    document = tmp_path / "app.json"
    document.write_bytes(app_document())

    def open_env(file: object, *arguments: str) -> int:
        server = ["--server", "https://kms.test:8443", "--app-document", str(document)]
        return run(["guest", "env", *server, *with_pin(kms, arguments), str(file)])

    return open_env


@pytest.fixture
def env(tmp_path: Path) -> Path:
    path = tmp_path / "app.env"
    path.write_bytes(ENVIRONMENT)
    return path


@pytest.fixture
def sealed(kms: FakeKms, tmp_path: Path) -> Path:
    """A file as an honest owner has sealed it."""
    path = tmp_path / "app.env.sealed"
    path.write_bytes(SealedEnv.seal(ENVIRONMENT, env_key(kms)).to_json())
    return path


def env_key(kms: FakeKms) -> EnvKey:
    return EnvKey(
        app_id=APP_ID,
        epoch=ENV_EPOCH,
        public_key=kms.env_private.public_key().public_bytes_raw(),
        identity=kms.identity.public_key,
    )


def error_of(captured: Captured) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(captured.readouterr().out)["error"]
    return shown


class TestBothSides:
    def test_the_guest_has_what_the_owner_sealed_byte_for_byte(
        self, seal: Seal, open_env: Open, env: Path, tmp_path: Path, capfdbinary: Captured
    ) -> None:
        out = tmp_path / "out.sealed"
        assert seal(env, "--output", str(out)) == 0
        assert open_env(out, "--allow-disk", "--output", str(tmp_path / "opened")) == 0
        assert (tmp_path / "opened").read_bytes() == ENVIRONMENT
        assert (tmp_path / "opened").stat().st_mode & 0o777 == 0o600
        captured = capfdbinary.readouterr()
        assert b"hunter2" not in captured.out + captured.err + out.read_bytes()

    def test_through_pipes(
        self,
        seal: Seal,
        open_env: Open,
        tmp_path: Path,
        capfdbinary: Captured,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(ENVIRONMENT)))
        assert seal("-") == 0
        file = tmp_path / "piped"
        file.write_bytes(capfdbinary.readouterr().out)
        assert open_env(file) == 0
        assert capfdbinary.readouterr().out == ENVIRONMENT

    def test_as_json(
        self, seal: Seal, open_env: Open, env: Path, tmp_path: Path, capfdbinary: Captured
    ) -> None:
        out = tmp_path / "out.sealed"
        assert seal(env, "--json", "--output", str(out)) == 0
        shown = json.loads(capfdbinary.readouterr().out)
        assert (shown["app_id"], shown["epoch"], shown["output"]) == (APP_ID.hex(), ENV_EPOCH, str(out))
        assert open_env(out, "--json") == 0
        assert from_base64(json.loads(capfdbinary.readouterr().out)["environment"]) == ENVIRONMENT
        opened = str(tmp_path / "opened")
        assert open_env(out, "--json", "--allow-disk", "--output", opened) == 0
        assert "environment" not in json.loads(capfdbinary.readouterr().out)

    def test_both_follow_a_kms_to_its_new_identity_and_say_so(
        self, kms: FakeKms, seal: Seal, open_env: Open, env: Path, capfdbinary: Captured
    ) -> None:
        old, new = kms.identity, Identity.from_prf(b"\x12" * 64)
        kms.signer, kms.hand_overs = new, hand_overs([old, new], [datetime.now(UTC)])
        out = env.with_name("out.sealed")
        assert seal(env, "--output", str(out)) == 0
        said = capfdbinary.readouterr().err.decode()
        assert said.startswith("kms env:")
        assert said.count(b64url(new.public_key)) == 1
        assert SealedEnv.parse(out.read_bytes()).identity == new.public_key
        assert open_env(out) == 0
        captured = capfdbinary.readouterr()
        assert captured.out == ENVIRONMENT
        assert captured.err.decode().count(b64url(new.public_key)) == 1


class TestOwner:
    def test_an_epoch_that_is_asked_for(self, kms: FakeKms, seal: Seal, env: Path, tmp_path: Path) -> None:
        out = str(tmp_path / "out")
        assert seal(env, "--epoch", str(ENV_EPOCH), "--output", out) == 0
        assert kms.env_keys[-1].query == f"epoch={ENV_EPOCH}".encode()

    def test_the_servers_answer_for_another_epoch(self, seal: Seal, env: Path, capfdbinary: Captured) -> None:
        assert seal(env, "--epoch", str(ENV_EPOCH + 1), "--json") == 1
        assert error_of(capfdbinary)["reason"] == "epoch-mismatch"

    def test_an_impostor_behind_the_same_ca(
        self, kms: FakeKms, seal: Seal, env: Path, tmp_path: Path, capfdbinary: Captured
    ) -> None:
        """Who seals to an impostor's key has handed over the secrets."""
        kms.signer = IMPOSTOR
        out = tmp_path / "out"
        assert seal(env, "--json", "--output", str(out)) == 1
        assert error_of(capfdbinary)["reason"] == "identity-mismatch"
        assert not out.exists()
        assert seal(env, "--trust-any-kms-identity", "--output", str(out)) == 0

    def test_another_apps_key_replayed(
        self, kms: FakeKms, seal: Seal, env: Path, capfdbinary: Captured
    ) -> None:
        kms.app_id = OTHER_APP_ID
        assert seal(env, "--json") == 1
        assert error_of(capfdbinary)["reason"] == "app-mismatch"

    @pytest.mark.parametrize(
        "answer",
        [(timedelta(minutes=6), "env-key-outdated"), (timedelta(minutes=-3), "env-key-from-the-future")],
        ids=str,
    )
    def test_an_answer_of_another_time(
        self,
        kms: FakeKms,
        seal: Seal,
        env: Path,
        capfdbinary: Captured,
        answer: tuple[timedelta, str],
    ) -> None:
        age, reason = answer
        kms.now = lambda: datetime.now(UTC) - age
        assert seal(env, "--json") == 1
        assert error_of(capfdbinary)["reason"] == reason

    def test_another_key_under_the_kms_signature(
        self, kms: FakeKms, seal: Seal, env: Path, capfdbinary: Captured
    ) -> None:
        def change(answer: dict[str, object]) -> dict[str, object]:
            payload = json.loads(from_base64(str(answer["payload"])))
            payload["public_key"] = b64url(X25519PrivateKey.generate().public_key().public_bytes_raw())
            return answer | {"payload": b64url(json.dumps(payload).encode())}

        kms.edit = change
        assert seal(env, "--json") == 1
        assert error_of(capfdbinary)["reason"] == "signature-invalid"

    def test_a_key_to_which_nothing_can_be_sealed(
        self, kms: FakeKms, seal: Seal, env: Path, capfdbinary: Captured
    ) -> None:
        low_order = env_key_text(APP_ID, ENV_EPOCH, bytes(32), datetime.now(UTC))
        kms.edit = lambda _: {**Signed.by(kms.identity, ENV_KEY, low_order).to_json()}
        assert seal(env, "--json") == 1
        assert error_of(capfdbinary)["reason"] == "env-key-malformed"

    @pytest.mark.parametrize("member", ["payload", "signature", "identity"])
    def test_an_answer_that_is_none(
        self, kms: FakeKms, seal: Seal, env: Path, capfdbinary: Captured, member: str
    ) -> None:
        kms.edit = lambda answer: answer | {member: "!"}
        assert seal(env, "--json") == 1
        assert error_of(capfdbinary)["reason"] == "answer-malformed"

    def test_an_app_that_is_not_listed_is_wrong_use(
        self, kms: FakeKms, seal: Seal, env: Path, capfdbinary: Captured
    ) -> None:
        assert seal(env, "--json", app=OTHER_APP_ID.hex()) == 2
        assert error_of(capfdbinary)["code"] == "not-found"

    def test_a_busy_server_is_asked_again(self, kms: FakeKms, seal: Seal, env: Path) -> None:
        kms.script = [problem(503, "root-key-unavailable")]
        assert seal(env) == 0

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"# nothing\n",
            b"PASSWORD\n",
            b"=hunter2\n",
            b"1A=hunter2\n",
            b"A-B=hunter2\n",
            b" A=hunter2\n",
            b"export A=hunter2\n",
            b"A=1\nB=2\nA=hunter2\n",
            b"A=hunter2\0\n",
            b"A=hunter2\r\nB=1\r\n",
            b"\xef\xbb\xbfA=hunter2\n",
            b"A=$(cat <<END\nhunter2\nEND\n)\n",
            b"A=" + b"x" * MAX_ENV,
        ],
        ids=lambda content: repr(content[:16]),
    )
    def test_what_a_guest_could_not_read_is_found_before_anything_is_asked(
        self, kms: FakeKms, seal: Seal, tmp_path: Path, capfdbinary: Captured, content: bytes
    ) -> None:
        path = tmp_path / "bad.env"
        path.write_bytes(content)
        assert seal(path) == 2
        assert not kms.env_keys
        captured = capfdbinary.readouterr()
        assert b"hunter2" not in captured.out + captured.err

    def test_any_bytes_if_one_says_so(
        self, seal: Seal, open_env: Open, tmp_path: Path, capfdbinary: Captured
    ) -> None:
        path, out = tmp_path / "raw", tmp_path / "out"
        path.write_bytes(b"\0\r\n")
        assert seal(path, "--raw", "--output", str(out)) == 0
        capfdbinary.readouterr()
        assert open_env(out) == 0
        assert capfdbinary.readouterr().out == b"\0\r\n"

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--epoch", "0"],
            ["--epoch", "-1"],
            ["--identity", "AAAA"],
            ["--ca", "/nonexistent"],
            ["--trust"],
            ["--identity", "AAAA", "--trust-any-kms-identity"],
            ["--deadline", "nan"],
        ],
        ids=" ".join,
    )
    def test_wrong_use_asks_nothing(self, kms: FakeKms, seal: Seal, env: Path, arguments: list[str]) -> None:
        assert seal(env, *arguments) == 2
        assert not kms.env_keys

    @pytest.mark.parametrize("app", ["", "a1", "A1" * 20, "00" * 20, "../identity"])
    def test_an_app_id_that_is_none(self, kms: FakeKms, seal: Seal, env: Path, app: str) -> None:
        assert seal(env, app=app) == 2
        assert not kms.env_keys

    def test_the_identity_must_be_said(self, kms: FakeKms, env: Path) -> None:
        argv = ["env", "seal", "--server", "https://kms.test", "--app", APP_ID.hex(), str(env)]
        assert run(argv) == 2
        assert not kms.env_keys

    def test_a_place_that_cannot_be_written_leaves_nothing_behind(
        self, seal: Seal, env: Path, tmp_path: Path
    ) -> None:
        assert seal(env, "--output", str(tmp_path / "no" / "such")) == 2
        (tmp_path / "folder").mkdir()
        assert seal(env, "--output", str(tmp_path / "folder")) == 2
        assert list(tmp_path.glob(".*")) == []


class TestGuest:
    def test_it_asks_for_the_epoch_of_the_file_and_no_other(
        self, kms: FakeKms, open_env: Open, sealed: Path
    ) -> None:
        assert open_env(sealed) == 0
        [[key]] = [request.ask.keys for request in kms.requests]
        assert (str(key.name), key.scope, key.epoch) == ("env", "app", ENV_EPOCH)

    def test_another_apps_file(
        self, kms: FakeKms, open_env: Open, sealed: Path, capfdbinary: Captured
    ) -> None:
        sealed.write_bytes(SealedEnv.seal(ENVIRONMENT, replace(env_key(kms), app_id=OTHER_APP_ID)).to_json())
        assert open_env(sealed, "--json") == 1
        assert error_of(capfdbinary)["reason"] == "app-mismatch"

    def test_a_file_sealed_to_an_impostors_key(
        self, kms: FakeKms, open_env: Open, sealed: Path, capfdbinary: Captured
    ) -> None:
        kms.env_private = X25519PrivateKey.generate()
        assert open_env(sealed, "--json") == 1
        assert error_of(capfdbinary)["reason"] == "cannot-open"

    def test_a_refused_epoch(self, kms: FakeKms, open_env: Open, sealed: Path, capfdbinary: Captured) -> None:
        kms.script = [problem(403, "epoch-unavailable", "epoch-unavailable")]
        assert open_env(sealed, "--json") == 1
        assert error_of(capfdbinary)["code"] == "epoch-unavailable"

    @pytest.mark.parametrize("content", [b"", b"{}", ENVIRONMENT, bytes(3 << 20)], ids=len)
    def test_a_file_that_is_none_asks_nothing(
        self, kms: FakeKms, open_env: Open, tmp_path: Path, capfdbinary: Captured, content: bytes
    ) -> None:
        path = tmp_path / "file"
        path.write_bytes(content)
        assert open_env(path) == 2
        assert open_env(tmp_path / "nowhere") == 2
        assert kms.challenges == 0
        assert b"hunter2" not in capfdbinary.readouterr().err

    def test_a_terminal_never_shows_it(
        self, kms: FakeKms, open_env: Open, sealed: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        assert open_env(sealed) == 2
        assert open_env(sealed, "--json") == 2
        assert kms.challenges == 0

    def test_an_existing_file_is_never_replaced(
        self, kms: FakeKms, open_env: Open, sealed: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "opened").write_bytes(b"old")
        assert open_env(sealed, "--allow-disk", "--output", str(tmp_path / "opened")) == 2
        assert (tmp_path / "opened").read_bytes() == b"old"
        assert kms.challenges == 0
