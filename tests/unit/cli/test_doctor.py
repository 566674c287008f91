"""``kms doctor`` on real files, each part broken in turn: it names the part and the remedy."""

import json
import resource
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typing_extensions import override

from kms.anchor import FileAnchor
from kms.cli import run
from kms.doctor import Status
from kms.doctor.anchor import _apart
from kms.http.tls import LocalTls
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.certificates import SERVER, Authority, pem
from tests.unit.kds.stock import DAY, Amd, write

Captured = pytest.CaptureFixture[str]
POLICY = "kind: revoked\nname: none\n"
FLOOR = """\
kind: tcb
name: fleet
products:
  milan: {bootloader: 4, tee: 0, snp: 24, microcode: 219}
"""


@dataclass
class Installation:
    """A data folder, and the settings that name it."""

    folder: Path
    capsys: Captured
    patch: pytest.MonkeyPatch

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def use(self, **settings: str) -> None:
        for name, value in settings.items():
            self.patch.setenv(name, value)

    def run(self, *argv: str) -> tuple[int, str]:
        self.capsys.readouterr()
        status = run([*argv])
        return status, self.capsys.readouterr().out

    def apply(self, *documents: str) -> None:
        """Put a policy in force, and so found the KMS where there is none."""
        folder = self.folder / "policy"
        folder.mkdir(exist_ok=True)
        (folder / "policy.yaml").write_text("---\n".join(documents))
        assert self.run("policy", "apply", str(folder), "--message", "test")[0] == 0

    def sql(self, *statements: str) -> None:
        with closing(sqlite3.connect(self.data / "kms.sqlite3")) as database:
            for each in statements:
                database.execute(each)
            database.commit()

    def examine(self) -> "Examined":
        """Run the command; nothing in the data folder is another one afterwards."""
        before = contents(self.folder)
        status, out = self.run("doctor", "--json")
        assert contents(self.folder) == before
        document = json.loads(out)
        assert set(document) == {"healthy", "checks"}
        assert document["healthy"] is (status == 0)
        return Examined(document["checks"])


@dataclass
class Examined:
    checks: list[dict[str, str]]

    def __getitem__(self, name: str) -> dict[str, str]:
        (found,) = [each for each in self.checks if each["name"] == name]
        return found

    @property
    def failed(self) -> set[str]:
        return {each["name"] for each in self.checks if each["status"] == "failed"}

    def says(self, name: str, status: str, words: str) -> None:
        """Exactly this fails, if it is a failure; it says these words, and what to do about it."""
        found = self[name]
        assert found["status"] == status, found
        assert words in found["detail"], found
        assert found["remedy"] or status in {"ok", "unknown"}, found
        if status == "failed":
            assert self.failed == {name}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): sha256(file.read_bytes()).digest()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a KMS that was founded, and has a policy and TLS files."""
    folder = tmp_path_factory.mktemp("founded")
    (folder / "policy").mkdir()
    (folder / "policy" / "policy.yaml").write_text(POLICY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KMS_DATA_DIR", str(folder / "data"))
        patch.setenv("KMS_KDS_URLS", "none")
        assert run(["policy", "apply", str(folder / "policy"), "--message", "test"]) == 0
    LocalTls(folder / "data" / "tls").ensure(["localhost"], datetime.now(UTC))
    return folder / "data"


@pytest.fixture
def empty(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> Installation:
    """Before the first start."""
    installation = Installation(tmp_path, capsys, monkeypatch)
    installation.use(KMS_DATA_DIR=str(installation.data), KMS_KDS_URLS="none")
    return installation


@pytest.fixture
def kms(empty: Installation, founded: Path) -> Installation:
    shutil.copytree(founded, empty.data)
    return empty


class TestWell:
    def test_nothing_fails_and_nothing_is_changed(self, kms: Installation) -> None:
        found = kms.examine()
        assert found.failed == set()
        for name in ("settings", "development-mode", "data-folder", "database", "database-schema"):
            assert found[name]["status"] == "ok"
        for name in (
            "database-mode",
            "database-writable",
            "anchor",
            "root-key",
            "ledger",
            "policy",
            "tls-pair",
        ):
            assert found[name]["status"] == "ok"

    def test_before_the_first_start_nothing_fails_and_nothing_is_made(self, empty: Installation) -> None:
        found = empty.examine()
        assert found.failed == set()
        assert found["database"]["status"] == found["root-key"]["status"] == "warning"
        assert found["policy"]["status"] == "unknown"
        assert not empty.data.exists()

    def test_people_are_told_what_to_do(self, kms: Installation) -> None:
        kms.use(KMS_WORKERS="256")
        status, out = kms.run("doctor")
        assert status == 0
        assert "warning  workers" in out
        assert "→ more workers than cores" in out
        assert out.endswith("nothing failed\n")
        (kms.data / "root-key.json").unlink()
        status, out = kms.run("doctor")
        assert status == 1
        assert "failed   root-key" in out
        assert "1 of" in out

    def test_a_wrong_use_is_one(self, kms: Installation) -> None:
        assert kms.run("doctor", "--fix")[0] == 2


class TestSettings:
    def test_a_file_that_cannot_be_read(self, kms: Installation) -> None:
        kms.use(KMS_CONFIG=str(kms.folder / "none.toml"))
        kms.examine().says("settings", "failed", "none.toml")

    def test_a_wrong_value(self, kms: Installation) -> None:
        kms.use(KMS_LISTEN="kms:8443")
        kms.examine().says("settings", "failed", "KMS_LISTEN")

    def test_what_they_name_is_not_there(self, kms: Installation) -> None:
        kms.use(KMS_POLICY_TRUST=str(kms.folder / "none.toml"))
        found = kms.examine()
        found.says("settings", "failed", "KMS_POLICY_TRUST")
        assert found["state"]["status"] == "unknown"

    def test_a_policy_folder_with_errors(self, kms: Installation) -> None:
        (kms.folder / "watched").mkdir()
        (kms.folder / "watched" / "app.yaml").write_text("kind: [")
        kms.use(KMS_POLICY_DIR=str(kms.folder / "watched"))
        kms.examine().says("settings", "failed", "has errors")

    def test_a_variable_that_is_no_setting(self, kms: Installation) -> None:
        kms.use(KMS_POLICYDIR="/etc/policy")
        kms.examine().says("settings-unused", "warning", "KMS_POLICY_DIR")


class TestFiles:
    def test_a_folder_that_others_look_into(self, kms: Installation) -> None:
        kms.data.chmod(0o755)
        kms.examine().says("data-folder", "warning", "0755")

    def test_a_folder_of_another_user(self, kms: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
        owner = kms.data.stat().st_uid
        monkeypatch.setattr("kms.doctor.files.os.geteuid", lambda: owner + 1)
        kms.examine().says("data-folder", "warning", f"this is user {owner + 1}")

    def test_a_root_key_that_others_read(self, kms: Installation) -> None:
        (kms.data / "root-key.json").chmod(0o644)
        kms.examine().says("root-key", "failed", "0644")

    def test_a_tls_key_that_others_read(self, kms: Installation) -> None:
        (kms.data / "tls" / "server-key.pem").chmod(0o640)
        kms.examine().says("tls-key", "failed", "0640")

    @pytest.mark.parametrize(("free", "status"), [(10 << 20, "failed"), (500 << 20, "warning")])
    def test_a_disk_that_is_full(
        self, kms: Installation, monkeypatch: pytest.MonkeyPatch, free: int, status: str
    ) -> None:
        usage = shutil.disk_usage(kms.folder)._replace(free=free)
        monkeypatch.setattr("kms.doctor.files.shutil.disk_usage", lambda _: usage)
        kms.examine().says("disk-space", status, "MiB are free")


class TestCertificates:
    def own(
        self, kms: Installation, *, life: timedelta, key_of: str | None = None, made: timedelta = timedelta()
    ) -> None:
        """Use a certificate of the operator's own."""
        authority = Authority("CA", now=datetime.now(UTC) - made)
        certificate, key = authority.issue("kms", usages=(SERVER,), life=life)
        if key_of is not None:
            _, key = authority.issue(key_of)
        (kms.folder / "kms.pem").write_text(pem(certificate))
        key_file = kms.folder / "kms-key.pem"
        key_file.touch(0o600)
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        kms.use(KMS_TLS_CERT=str(kms.folder / "kms.pem"), KMS_TLS_KEY=str(key_file))

    def test_one_that_is_good(self, kms: Installation) -> None:
        self.own(kms, life=timedelta(days=90))
        kms.examine().says("tls-certificate", "ok", "it is good until")

    def test_one_that_ends_soon(self, kms: Installation) -> None:
        self.own(kms, life=timedelta(days=12))
        kms.examine().says("tls-certificate", "warning", "in 11 days")

    def test_one_that_ended(self, kms: Installation) -> None:
        self.own(kms, life=timedelta(days=1), made=timedelta(days=2))
        kms.examine().says("tls-certificate", "failed", "no guest takes it")

    def test_one_that_begins_later(self, kms: Installation) -> None:
        self.own(kms, life=timedelta(days=90), made=timedelta(days=-40))
        kms.examine().says("tls-certificate", "failed", "valid only from")

    def test_the_key_of_another(self, kms: Installation) -> None:
        self.own(kms, life=timedelta(days=90), key_of="other")
        # The server would not start with it either.
        found = kms.examine()
        assert found.failed == {"settings", "tls-pair"}

    def test_names_that_it_has_not(self, kms: Installation) -> None:
        kms.use(KMS_TLS_NAMES="kms.example.org,localhost")
        kms.examine().says("tls-names", "warning", "not for kms.example.org")

    def test_one_that_is_damaged(self, kms: Installation) -> None:
        (kms.data / "tls" / "server.pem").write_text("damaged")
        kms.examine().says("tls-certificate", "failed", "server.pem cannot be read")


class TestDatabase:
    def test_one_that_is_gone(self, kms: Installation) -> None:
        (kms.data / "kms.sqlite3").unlink()
        kms.examine().says("anchor", "failed", "the database is new")

    def test_one_that_is_none(self, kms: Installation) -> None:
        (kms.data / "kms.sqlite3").write_bytes(b"not a database" * 100)
        kms.examine().says("database", "failed", "not a database")

    def test_one_of_a_newer_version(self, kms: Installation) -> None:
        kms.sql("UPDATE alembic_version SET version_num = '9999'")
        kms.examine().says("database-schema", "failed", "9999 is newer")

    def test_one_of_an_older_version(self, kms: Installation) -> None:
        kms.sql("UPDATE alembic_version SET version_num = '0003'")
        found = kms.examine()
        found.says("database-schema", "warning", "to be applied: 0004, 0005")
        assert found["policy"]["status"] == "unknown"

    def test_one_of_other_software(self, empty: Installation) -> None:
        empty.data.mkdir(0o700)
        empty.sql("CREATE TABLE songs (name TEXT)")
        empty.examine().says("database-schema", "failed", "other software")

    def test_one_that_does_things_of_its_own(self, kms: Installation) -> None:
        kms.sql("CREATE TRIGGER undo AFTER INSERT ON policy_changes BEGIN DELETE FROM policy_changes; END")
        kms.examine().says("database-own-doings", "failed", "trigger undo")

    def test_one_of_the_other_mode(self, kms: Installation) -> None:
        kms.sql("UPDATE installation SET mode = 'development'")
        kms.examine().says("database-mode", "failed", "made for development mode")

    def test_one_that_cannot_be_written(self, kms: Installation) -> None:
        with closing(sqlite3.connect(kms.data / "kms.sqlite3", isolation_level=None)) as another:
            another.execute("BEGIN IMMEDIATE")
            status, out = kms.run("doctor", "--json")
        found = Examined(json.loads(out)["checks"])
        assert status == 1
        found.says("database-writable", "failed", "locked")


class TestAnchor:
    def test_one_that_is_damaged(self, kms: Installation) -> None:
        (kms.data / "anchor.json").write_text("{")
        found = kms.examine()
        assert found["anchor"]["status"] == "failed"
        assert found.failed <= {"anchor", "ledger", "policy"}

    def test_one_whose_folder_is_not_there(self, kms: Installation) -> None:
        kms.use(KMS_LEDGER_ANCHOR=str(kms.folder / "unmounted" / "anchor.json"))
        assert "anchor" in kms.examine().failed

    def test_one_that_saw_more_than_the_database_has(self, kms: Installation) -> None:
        seen = json.loads((kms.data / "anchor.json").read_text())
        seen["policy"]["sequence"] += 8
        (kms.data / "anchor.json").write_text(json.dumps(seen))
        kms.examine().says("policy", "failed", "an older database was put in its place")

    def test_one_that_saw_more_of_the_ledger_than_the_database_has(self, kms: Installation) -> None:
        """What `kms serve` refuses to start on."""
        seen = json.loads((kms.data / "anchor.json").read_text())
        seen["ledger"] = {"size": 9, "root": "01" * 32, "place": 9}
        (kms.data / "anchor.json").write_text(json.dumps(seen))
        kms.examine().says("ledger", "failed", "this server has seen of 9 entries")

    def test_one_that_was_opened_is_closed(self, kms: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
        closed = []

        async def close(anchor: object) -> None:
            closed.append(anchor)

        monkeypatch.setattr("kms.anchor.FileAnchor.close", close)
        kms.examine()
        assert len(closed) == 1

    @pytest.mark.parametrize("host", ["localhost", "postgres.example.org"])
    def test_where_postgresql_keeps_its_files_cannot_be_told(self, tmp_path: Path, host: str) -> None:
        said = _apart(FileAnchor(tmp_path / "anchor.json"), f"postgresql+asyncpg://kms@{host}/kms")
        assert (said.status, said.name) == (Status.UNKNOWN, "anchor-apart")
        assert "another one" in said.remedy

    def test_one_on_the_disk_of_the_database(self, kms: Installation) -> None:
        kms.examine().says("anchor-apart", "warning", "puts back both")

    def test_one_that_is_new_beside_an_old_database(self, kms: Installation) -> None:
        (kms.data / "anchor.json").unlink()
        kms.examine().says("anchor", "warning", "will be believed")


class TestRootKey:
    def test_one_that_is_lost(self, kms: Installation) -> None:
        (kms.data / "root-key.json").unlink()
        kms.examine().says("root-key", "failed", "this KMS had one")

    def test_one_that_is_damaged(self, kms: Installation) -> None:
        (kms.data / "root-key.json").write_text("{}")
        assert kms.examine().failed == {"root-key"}

    def test_that_of_another_kms(self, kms: Installation, tmp_path: Path) -> None:
        kms.use(KMS_DATA_DIR=str(tmp_path / "other"))
        kms.apply(POLICY)
        kms.use(KMS_DATA_DIR=str(kms.data))
        shutil.copy(tmp_path / "other" / "root-key.json", kms.data / "root-key.json")
        kms.examine().says("root-key", "failed", "not the one of this database")


class TestPolicy:
    def test_none_is_in_force(self, kms: Installation) -> None:
        kms.sql("DELETE FROM active_policy", "DELETE FROM policy_changes")
        kms.examine().says("policy", "failed", "none is in force")

    def test_what_lint_finds(self, kms: Installation) -> None:
        kms.apply(POLICY, FLOOR)
        kms.examine().says("policy-findings", "warning", "lets in milan machines that are open to")

    @pytest.mark.parametrize(
        ("days", "status", "words"),
        [(-1, "failed", "expired: tcb fleet"), (10, "warning", "soon: tcb fleet"), (90, "ok", "none of 1")],
    )
    def test_a_minimum_that_ends(self, kms: Installation, days: int, status: str, words: str) -> None:
        end = datetime.now(UTC) + timedelta(days=days)
        kms.apply(POLICY, f"{FLOOR}expires_at: {end:%Y-%m-%dT%H:%M:%SZ}\n")
        kms.examine().says("tcb-expiry", status, words)

    def test_one_that_was_written_by_hand(self, kms: Installation) -> None:
        kms.sql("UPDATE policy_changes SET author = 'nobody'")
        kms.examine().says("policy", "failed", "no authentic row")


class TestMachine:
    def test_few_open_files(self, kms: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
        self.limit(monkeypatch, resource.RLIMIT_NOFILE, 4096)
        kms.examine().says("open-files", "warning", "4096 are allowed")
        self.limit(monkeypatch, resource.RLIMIT_NOFILE, 512)
        kms.examine().says("open-files", "failed", "512 are allowed")

    def test_memory_that_cannot_be_locked(self, kms: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
        kms.use(KMS_LOCK_MEMORY="true")
        monkeypatch.setattr("kms.doctor.machine._has_ipc_lock", lambda: False)
        self.limit(monkeypatch, resource.RLIMIT_MEMLOCK, 65536)
        kms.examine().says("memory-lock", "failed", "65536 bytes")

    def test_swap(self, kms: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
        swaps = kms.folder / "swaps"
        monkeypatch.setattr("kms.doctor.machine._SWAPS", swaps)
        swaps.write_text("Filename Type Size Used Priority\n")
        kms.examine().says("memory-lock", "ok", "no swap")
        swaps.write_text("Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n")
        kms.examine().says("memory-lock", "warning", "may be written to it")

    def test_more_workers_than_cores(self, kms: Installation) -> None:
        kms.use(KMS_WORKERS="256")
        kms.examine().says("workers", "warning", "KMS_WORKERS=256")

    @pytest.mark.parametrize(("state", "status"), [(0, "ok"), (5, "warning"), (-1, "unknown")])
    def test_a_clock_that_nothing_keeps_right(
        self, kms: Installation, monkeypatch: pytest.MonkeyPatch, state: int, status: str
    ) -> None:
        class Libc:
            def adjtimex(self, _: object) -> int:
                return state

            def prctl(self, *_: int) -> int:
                return 0

        monkeypatch.setattr("kms.doctor.machine.ctypes.CDLL", lambda *_, **__: Libc())
        assert kms.examine()["clock-synchronised"]["status"] == status

    def limit(self, monkeypatch: pytest.MonkeyPatch, which: int, value: int) -> None:
        true = resource.getrlimit
        monkeypatch.setattr(
            "kms.doctor.machine.resource.getrlimit",
            lambda asked: (value, value) if asked == which else true(asked),
        )


class Service(BaseHTTPRequestHandler):
    """A key distribution service with a clock of its own."""

    ahead: ClassVar[timedelta]
    status: ClassVar[int]

    def do_GET(self) -> None:
        self.send_response_only(self.status)
        self.send_header("Date", format_datetime(datetime.now(UTC) + self.ahead, usegmt=True))
        self.send_header("Content-Length", "0")
        self.end_headers()

    @override
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def service() -> Iterator[Callable[..., str]]:
    """Make services, and give their URLs."""
    servers: list[HTTPServer] = []

    def serve(*, status: int = 200, ahead: timedelta = timedelta()) -> str:
        server = HTTPServer(("127.0.0.1", 0), type("Own", (Service,), {"status": status, "ahead": ahead}))
        servers.append(server)
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for each in servers:
        each.shutdown()
        each.server_close()


@pytest.mark.enable_socket
class TestServices:
    def gone(self) -> str:
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            return f"http://127.0.0.1:{probe.getsockname()[1]}"

    def test_one_that_answers(self, kms: Installation, service: Callable[..., str]) -> None:
        kms.use(KMS_KDS_URLS=service())
        found = kms.examine()
        found.says("kds", "ok", "status 200")
        found.says("clock", "ok", "within 5 seconds")

    @pytest.mark.parametrize(("status", "said"), [(429, "ok"), (404, "warning"), (503, "warning")])
    def test_one_that_has_nothing(
        self, kms: Installation, service: Callable[..., str], status: int, said: str
    ) -> None:
        kms.use(KMS_KDS_URLS=service(status=status))
        kms.examine().says("kds", said, f"status {status}")

    def test_one_that_is_gone(self, kms: Installation) -> None:
        kms.use(KMS_KDS_URLS=self.gone())
        found = kms.examine()
        found.says("kds", "failed", "ConnectError")
        assert found["clock"]["status"] == "unknown"

    def test_one_of_two_that_is_gone(self, kms: Installation, service: Callable[..., str]) -> None:
        kms.use(KMS_KDS_URLS=f"{self.gone()},{service()}")
        status, out = kms.run("doctor", "--json")
        statuses = [each["status"] for each in json.loads(out)["checks"] if each["name"] == "kds"]
        assert (status, statuses) == (0, ["warning", "ok"])

    @pytest.mark.parametrize(("seconds", "status"), [(20, "warning"), (-3600, "failed")])
    def test_a_clock_that_is_wrong(
        self, kms: Installation, service: Callable[..., str], seconds: int, status: str
    ) -> None:
        kms.use(KMS_KDS_URLS=service(ahead=timedelta(seconds=seconds)))
        kms.examine().says("clock", status, f"{seconds:+d} s")


class TestCollateral:
    @pytest.fixture
    def development(self, empty: Installation) -> tuple[Installation, Amd]:
        """A development installation, whose AMD is simulated."""
        now = datetime.now(UTC)
        amd = Amd(AmdHierarchy.generate(Product.MILAN, now=now - 30 * DAY, rsa_bits=2048), now)
        roots = empty.folder / "roots.pem"
        roots.write_bytes(amd.hierarchy.ark.pem)
        empty.use(KMS_DEVELOPMENT_ROOTS=str(roots))
        empty.apply(POLICY)
        return empty, amd

    @pytest.mark.parametrize(
        ("days", "status", "words"),
        [(1, "ok", "1 kept"), (-1, "warning", "past their next"), (-8, "failed", "too old")],
    )
    def test_how_old_lists_are(
        self, development: tuple[Installation, Amd], days: int, status: str, words: str
    ) -> None:
        installation, amd = development
        files = {
            "chain": amd.chain,
            "list": amd.crl(this_update=amd.now - 30 * DAY, next_update=amd.now + days * DAY),
        }
        folder = write(installation.folder / "files", files)
        assert installation.run("collateral", "import", str(folder))[0] == 0
        found = installation.examine()
        found.says("revocation-lists", status, words)
        found.says("certificates", "ok", "2 are kept")

    def test_development_mode_is_said(self, development: tuple[Installation, Amd]) -> None:
        found = development[0].examine()
        found.says("development-mode", "warning", "DEVELOPMENT MODE")
        found.says("database-mode", "ok", "development")

    def test_none_where_one_is_required(self, kms: Installation) -> None:
        kms.use(KMS_CRL="require")
        kms.examine().says("revocation-lists", "failed", "none is kept")

    def test_lists_that_nobody_asks_for(self, kms: Installation) -> None:
        kms.use(KMS_CRL="off")
        kms.examine().says("revocation-lists", "warning", "still taken")


@pytest.mark.parametrize(("part", "name"), [("machine", "machine"), ("seen_root", "state")])
def test_a_part_that_breaks_in_an_unforeseen_way_hides_no_other(
    kms: Installation, monkeypatch: pytest.MonkeyPatch, part: str, name: str
) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr(f"kms.doctor.examination.{part}", broken)
    found = kms.examine()
    assert found.failed == {name}
    assert "ZeroDivisionError" in found[name]["detail"]
    assert found["anchor"]["status"] == found["kds"]["status"] == "ok"
