"""``kms policy keygen``, ``sign``, ``approve``, ``statement``, ``proposals``."""

import io
import json
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from kms.cli import run
from kms.cli.policy_keys import load_key
from kms.cli.policy_statements import Checked, NotSigned, _ask
from kms.errors import NotFound, PolicyRefused
from kms.policy.diff import Difference, Effect
from kms.policy.history import Intent, SignatureFormat
from kms.policy.statement import SSH_NAMESPACE, Statement
from kms.policy.trust import PolicyTrust, verify_policy_signature
from tests.fake_office import FakeOffice
from tests.unit.cli.policies import (
    CHIP_A,
    CHIP_B,
    IDENTITY,
    files,
    policy,
    proposal_answer,
    revision_answer,
)

Captured = pytest.CaptureFixture[str]
OLD, NEW = policy(CHIP_A), policy(CHIP_A, CHIP_B)
STATEMENT = Statement(
    revision=NEW.digest, sequence=5, previous=OLD.digest, kms_identity=IDENTITY, intent=Intent.WIDEN
)
SECRET = b"correct horse"


@pytest.fixture
def proposed(office: FakeOffice) -> FakeOffice:
    """An office where `NEW` is proposed after `OLD`, and which takes any signature as alice's."""
    known = {each.digest: revision_answer(each) for each in (OLD, NEW)}
    office.answers["revision"] = lambda revision: known[revision]
    office.answers["propose"] = proposal_answer(OLD, NEW)
    office.answers["proposal"] = proposal_answer(OLD, NEW)
    office.answers["sign"] = proposal_answer(OLD, NEW, signed_by=("alice",))
    return office


def write_key(path: Path, *, ssh: bool = False, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    key = Ed25519PrivateKey.generate()
    encryption = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    form = PrivateFormat.OpenSSH if ssh else PrivateFormat.PKCS8
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, form, encryption))
    return key


class TestKeys:
    def test_a_new_key_is_its_owners_alone_and_its_line_is_the_trust_files(
        self, office: FakeOffice, tmp_path: Path, capsys: Captured
    ) -> None:
        assert run(["policy", "keygen", "alice.pem"]) == 0
        line = capsys.readouterr().out
        assert (tmp_path / "alice.pem").stat().st_mode & 0o777 == 0o600
        trust = PolicyTrust.parse(f"[quorum]\nwiden = 1\nnarrow = 1\n[keys]\n{line}")
        assert trust.keys == {"alice": load_key(Path("alice.pem")).public_key().public_bytes_raw()}

    def test_a_name_that_toml_would_split_is_quoted(self, office: FakeOffice, capsys: Captured) -> None:
        assert run(["policy", "keygen", "k.pem", "--name", "alice@ops.example"]) == 0
        assert list(tomllib.loads(capsys.readouterr().out)) == ["alice@ops.example"]

    @pytest.mark.parametrize("name", ["a b", "ålice", '"', "x" * 65])
    def test_a_name_that_no_trust_file_has(self, office: FakeOffice, name: str) -> None:
        assert run(["policy", "keygen", "k.pem", "--name", name]) == 2
        assert not Path("k.pem").exists()

    def test_lesson_31_a_key_is_never_overwritten(self, office: FakeOffice) -> None:
        Path("alice.pem").write_text("precious")
        assert run(["policy", "keygen", "alice.pem"]) == 2
        assert Path("alice.pem").read_text() == "precious"

    def test_a_passphrase_is_asked_for_twice(
        self, office: FakeOffice, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("kms.cli.policy_keys.getpass", lambda _: SECRET.decode())
        assert run(["policy", "keygen", "alice.pem", "--passphrase"]) == 0
        assert b"ENCRYPTED" in Path("alice.pem").read_bytes()
        assert load_key(Path("alice.pem"))
        answers = iter(["one", "another"])
        monkeypatch.setattr("kms.cli.policy_keys.getpass", lambda _: next(answers))
        assert run(["policy", "keygen", "bob.pem", "--passphrase"]) == 2
        assert not Path("bob.pem").exists()

    @pytest.mark.parametrize("ssh", [False, True], ids=["pkcs8", "openssh"])
    @pytest.mark.parametrize("passphrase", [None, SECRET], ids=["plain", "encrypted"])
    def test_keys_that_people_have(
        self,
        office: FakeOffice,
        monkeypatch: pytest.MonkeyPatch,
        ssh: bool,
        passphrase: bytes | None,
    ) -> None:
        key = write_key(Path("k"), ssh=ssh, passphrase=passphrase)
        monkeypatch.setattr("kms.cli.policy_keys.getpass", lambda _: SECRET.decode())
        assert load_key(Path("k")).private_bytes_raw() == key.private_bytes_raw()

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
    def test_lesson_31_a_key_that_others_can_read_is_not_used(
        self, proposed: FakeOffice, capsys: Captured, mode: int
    ) -> None:
        write_key(Path("k"))
        Path("k").chmod(mode)
        assert run(["policy", "approve", NEW.digest, "--key", "k"]) == 2
        assert "chmod 600 k" in capsys.readouterr().err
        assert proposed.calls == []

    def test_a_wrong_passphrase(
        self, proposed: FakeOffice, monkeypatch: pytest.MonkeyPatch, capsys: Captured
    ) -> None:
        write_key(Path("k"), passphrase=SECRET)
        monkeypatch.setattr("kms.cli.policy_keys.getpass", lambda _: "battery staple")
        assert run(["policy", "approve", NEW.digest, "--key", "k"]) == 2
        said = capsys.readouterr().err
        assert "another passphrase" in said
        assert "battery" not in said

    def test_no_terminal_to_ask_on_is_said(
        self, proposed: FakeOffice, monkeypatch: pytest.MonkeyPatch, capsys: Captured
    ) -> None:
        def no_terminal(_: str) -> str:
            raise EOFError

        write_key(Path("k"), passphrase=SECRET)
        monkeypatch.setattr("kms.cli.policy_keys.getpass", no_terminal)
        assert run(["policy", "approve", NEW.digest, "--key", "k"]) == 2
        assert "ssh-keygen -Y sign" in capsys.readouterr().err

    def test_another_kind_of_key(self, proposed: FakeOffice, capsys: Captured) -> None:
        pem = generate_private_key(SECP256R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
        Path("k").touch(mode=0o600)
        Path("k").write_bytes(pem)
        assert run(["policy", "approve", NEW.digest, "--key", "k"]) == 2
        assert "not an Ed25519 key" in capsys.readouterr().err

    @pytest.mark.parametrize("content", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\n"])
    def test_no_key(self, proposed: FakeOffice, content: bytes) -> None:
        Path("k").touch(mode=0o600)
        Path("k").write_bytes(content)
        assert run(["policy", "approve", NEW.digest, "--key", "k"]) == 2


class TestSigning:
    def test_a_folder_is_proposed_and_signed(self, proposed: FakeOffice, capsys: Captured) -> None:
        write_key(Path("k"))
        Path("policies").mkdir()
        for name, content in files(CHIP_A, CHIP_B).items():
            (Path("policies") / name).write_bytes(content)
        assert run(["policy", "sign", "policies", "--key", "k", "--message", "more"]) == 0
        assert proposed.asked("propose") == [
            {"new": files(CHIP_A, CHIP_B), "message": "more", "lift_revocations": False}
        ]
        (sent,) = proposed.asked("sign")
        assert sent["revision"] == NEW.digest
        assert verify_policy_signature(STATEMENT, sent["signature"])
        said = capsys.readouterr().out
        assert "+ widens " in said
        assert "1 of 2 signed (alice)" in said

    def test_a_broken_folder_is_neither_proposed_nor_signed(
        self, proposed: FakeOffice, capsys: Captured
    ) -> None:
        write_key(Path("k"))
        Path("policies").mkdir()
        (Path("policies") / "chips.yaml").write_text("kind: chips\nname: rack\nchips: [12]\n")
        assert run(["policy", "sign", "policies", "--key", "k"]) == 1
        assert "chips.yaml:3:" in capsys.readouterr().err
        assert proposed.calls == []

    def test_a_colleagues_proposal_is_approved_from_its_documents(
        self, proposed: FakeOffice, capsys: Captured
    ) -> None:
        write_key(Path("k"))
        assert run(["policy", "approve", NEW.digest, "--key", "k"]) == 0
        (sent,) = proposed.asked("sign")
        assert verify_policy_signature(STATEMENT, sent["signature"])
        assert f"{CHIP_B[:4]}" in capsys.readouterr().out

    def test_not_a_proposal_whose_documents_are_others(self, proposed: FakeOffice) -> None:
        """The server shows one policy and asks for a signature over another."""
        write_key(Path("k"))
        shown = revision_answer(NEW)
        proposed.answers["revision"] = {**shown, "revision": OLD.digest}
        assert run(["policy", "approve", OLD.digest, "--key", "k"]) == 2
        assert proposed.asked("sign") == []

    def test_nobody_proposed_it(self, proposed: FakeOffice, capsys: Captured) -> None:
        proposed.answers["proposal"] = NotFound("nobody proposed this revision")
        write_key(Path("k"))
        assert run(["policy", "approve", NEW.digest, "--key", "k", "--json"]) == 2
        assert json.loads(capsys.readouterr().out)["error"]["code"] == "not-found"

    @pytest.mark.parametrize("part", [NEW.digest[:20], NEW.digest.removeprefix("sha256:")])
    def test_what_is_signed_is_named_whole(self, proposed: FakeOffice, part: str) -> None:
        """Whoever answers would choose which proposal begins so: 12 digits can be made to fit."""
        write_key(Path("k"))
        assert run(["policy", "approve", part, "--key", "k"]) == 2
        assert run(["policy", "statement", part]) == 2
        assert proposed.calls == []

    def test_the_statement_is_printed_to_the_byte(
        self, proposed: FakeOffice, capfdbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        assert run(["policy", "statement", NEW.digest]) == 0
        captured = capfdbinary.readouterr()
        assert captured.out == STATEMENT.canonical
        assert b"+ widens " in captured.err

    def test_what_is_in_force_is_signed_anew(self, proposed: FakeOffice, capsys: Captured) -> None:
        """After a key left the trust file. It asks for as many signatures as if it widened."""
        proposed.answers["proposal"] = proposal_answer(NEW, NEW, intent=Intent.WIDEN)
        write_key(Path("k"))
        assert run(["policy", "approve", NEW.digest, "--key", "k"]) == 0
        assert len(proposed.asked("sign")) == 1
        assert capsys.readouterr().out.startswith("no difference\nchange 5 of KMS ")

    def test_a_statement_that_the_documents_do_not_bear_out_is_not_printed(
        self, proposed: FakeOffice, capfdbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        proposed.answers["proposal"] = proposal_answer(OLD, NEW, intent=Intent.NARROW)
        assert run(["policy", "statement", NEW.digest]) == 1
        assert capfdbinary.readouterr().out == b""

    @pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="OpenSSH is not installed")
    def test_what_ssh_keygen_signs_is_sent_as_it_is(
        self, proposed: FakeOffice, capfdbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "carol"], check=True)
        assert run(["policy", "statement", NEW.digest]) == 0
        Path("statement").write_bytes(capfdbinary.readouterr().out)
        sign = ["ssh-keygen", "-q", "-Y", "sign", "-f", "carol", "-n", SSH_NAMESPACE, "statement"]
        subprocess.run(sign, check=True, stderr=subprocess.DEVNULL)
        assert run(["policy", "approve", NEW.digest, "--ssh-signature", "statement.sig"]) == 0
        (sent,) = proposed.asked("sign")
        assert sent["signature"].format is SignatureFormat.SSHSIG
        assert verify_policy_signature(STATEMENT, sent["signature"])

    def test_a_signature_that_was_made_is_not_checked_for_what_it_was_made_over(
        self, proposed: FakeOffice
    ) -> None:
        """`--identity` would promise that it was."""
        argv = ["policy", "approve", NEW.digest, "--ssh-signature", "statement.sig", "--identity", "x"]
        assert run(argv) == 2
        assert proposed.calls == []

    def test_what_is_no_ssh_signature(self, proposed: FakeOffice) -> None:
        Path("statement.sig").write_text("nonsense")
        assert run(["policy", "approve", NEW.digest, "--ssh-signature", "statement.sig"]) == 2
        assert proposed.calls == []


class TestProposals:
    def test_each_says_what_it_needs_and_what_it_changes(
        self, proposed: FakeOffice, capsys: Captured
    ) -> None:
        ready = proposal_answer(OLD, NEW, signed_by=("alice", "bob"))
        proposed.answers["proposals"] = {"proposals": [ready]}
        assert run(["policy", "proposals"]) == 0
        said = capsys.readouterr().out
        assert said.startswith("waiting: 1\n")
        assert f"ready to apply: {NEW.digest}" in said
        assert "2 of 2 signed (alice, bob)" in said
        assert f"kms policy apply {NEW.digest}" in said
        assert "+ widens " in said

    def test_what_was_overtaken_is_apart_in_a_line(self, proposed: FakeOffice, capsys: Captured) -> None:
        overtaken = proposal_answer(None, OLD, stale=True, diff=None, signed_by=("alice", "bob"))
        proposed.answers["proposals"] = {"proposals": [overtaken, proposal_answer(OLD, NEW)]}
        assert run(["policy", "proposals"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[:2] == ["waiting: 1", f"waits for signatures: {NEW.digest}"]
        assert lines[-1] == f"overtaken by another change, propose it again: {OLD.digest}"
        assert len([line for line in lines if OLD.digest in line]) == 1

    def test_one_without_its_documents(self, proposed: FakeOffice, capsys: Captured) -> None:
        proposed.answers["proposals"] = {"proposals": [proposal_answer(OLD, NEW, diff=None)]}
        assert run(["policy", "proposals"]) == 0
        assert "its documents are not stored any more" in capsys.readouterr().out

    def test_none(self, proposed: FakeOffice, capsys: Captured) -> None:
        proposed.answers["proposals"] = {"proposals": []}
        assert run(["policy", "proposals"]) == 0
        assert capsys.readouterr().out == "waiting: nothing\n"


class TestWithoutATrustFile:
    """Nobody asks for signatures, so the server takes none: nobody shall think that one counted."""

    @pytest.mark.parametrize("command", ["approve", "sign"])
    def test_it_is_said(self, proposed: FakeOffice, capsys: Captured, command: str) -> None:
        write_key(Path("k"))
        Path("policies").mkdir()
        (Path("policies") / "chips.yaml").write_bytes(files(CHIP_A, CHIP_B)["chips.yaml"])
        proposed.answers["sign"] = PolicyRefused("this KMS has no trust file", reason="no-trust-file")
        what = NEW.digest if command == "approve" else "policies"
        assert run(["policy", command, what, "--key", "k"]) == 1
        assert capsys.readouterr().err == "kms policy: policy-invalid: this KMS has no trust file\n"


class Terminal(io.StringIO):
    """What somebody types at a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("typed", "signed"), [("y\n", True), ("no\n", False), ("", False)])
def test_on_a_terminal_what_is_signed_is_shown_and_asked_for_first(
    typed: str, signed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    statement = Statement(
        revision="sha256:" + "ab" * 32, sequence=7, previous=None, kms_identity=bytes(32), intent=Intent.WIDEN
    )
    checked = Checked(statement, (Difference("app payments", "chips", Effect.WIDENS, "any chip"),))
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    if signed:
        _ask(checked)
    else:
        with pytest.raises(NotSigned):
            _ask(checked)
    shown = terminal.getvalue()
    assert "any chip" in shown
    assert shown.endswith("sign this? [y/N] ")
