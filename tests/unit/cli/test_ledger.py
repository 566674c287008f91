"""``kms ledger``, before an office that only remembers: what is asked, said, written, and the exit status."""

import json
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import pytest

from kms.cli import run
from kms.cli.ledger_leaves import read_leaves
from kms.encoding import b64url
from kms.errors import NotFound
from kms.guest.errors import AnswerRejected
from kms.keys.identity import Identity
from kms.keys.signed import Signed
from kms.labels import RECEIPT
from kms.ledger.checkpoint import Checkpoint, CheckpointKey
from kms.ledger.merkle import inclusion_proof
from kms.ledger.proofs import InclusionProof
from kms.ledger.tiles import Edge, hashes_from_tiles
from kms.operators import Actor, Proof, Role
from tests.fake_office import FakeOffice

KEY = CheckpointKey(bytes(range(32)), "attested-kms/v1/ledger/0123456789abcdef")
IDENTITY = Identity.from_prf(b"\x11" * 64)
SIZE = 450
ACTOR = Actor(name="ada", role=Role.ADMIN, proof=Proof.COMMAND_LINE)


def release_id(index: int) -> str:
    return f"{index:032x}"


def entry(index: int) -> tuple[bytes, bytes]:
    content: dict[str, Any]
    if index % 3:
        content = {
            "kind": "decision",
            "release_id": release_id(index),
            "decided_at": "2026-11-21T12:00:00.000000Z",
            "outcome": "released",
            "code": None,
            "boot_info": {"app_id": "ab" * 20},
        }
    else:
        content = {
            "kind": "action",
            "action_id": release_id(index),
            "at": "2026-11-21T12:00:00.000000Z",
            "operator": "alice\u202e",
            "action": "policy-apply",
            "target": None,
            "outcome": "done",
        }
    return sha256(str(index).encode()).digest()[:16], json.dumps(content).encode()


@dataclass
class Ledger:
    """A ledger of `SIZE` entries, as an office answers."""

    gone: set[int] = field(default_factory=set)
    edited: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.growth = Edge.empty().append([sha256(b"".join(entry(index))).digest() for index in range(SIZE)])
        self.note = KEY.sign(Checkpoint(origin=KEY.origin, size=SIZE, root=self.growth.root))

    def item(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = {"index": index, "place": index + 1}
        if index in self.gone:
            return item | dict.fromkeys(("id", "kind", "server", "salt", "entry"))
        salt, content = entry(index)
        if index in self.edited:
            content = content.replace(b"12:00", b"12:01")
        kind = json.loads(content)["kind"]
        parts = {"id": release_id(index), "kind": kind, "server": "kms-1"}
        return item | parts | {"salt": b64url(salt), "entry": b64url(content)}

    def entries(self, *, start: int, limit: int, kind: str | None) -> dict[str, Any]:
        end = min(start + limit, SIZE)
        items = [self.item(index) for index in range(start, end)]
        return {
            "entries": [each for each in items if kind in {None, each["kind"]}],
            "next": end if end < SIZE else None,
        }

    def entry(self, *, which: int | str) -> dict[str, Any]:
        index = which if isinstance(which, int) else int(which, 16)
        if index >= SIZE:
            raise NotFound("nothing")
        return self.item(index)

    def proof(self, *, release_id: str) -> dict[str, Any]:
        index = int(release_id, 16)
        if index >= SIZE:
            raise NotFound("waits", reason="not-in-a-checkpoint-yet" if index == SIZE else None)
        hashes = hashes_from_tiles(lambda level, number: self.growth.tiles[level, number])
        digest = sha256(b"".join(entry(index))).digest()
        proof = InclusionProof(
            release_id=release_id,
            digest=digest,
            index=index,
            size=SIZE,
            hashes=inclusion_proof(index, SIZE, hashes),
            checkpoint=self.note,
        )
        return dict(proof.to_json())


@pytest.fixture
def ledger(office: FakeOffice, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    made = Ledger()
    office.answers["entries"] = made.entries
    office.answers["entry"] = made.entry
    office.answers["proof"] = made.proof
    office.answers["statement"] = lambda: {"origin": KEY.origin, "key": KEY.verifier_key, "size": SIZE}

    async def checkpoint(_: object, __: object) -> str:
        return made.note

    monkeypatch.setattr(FakeOffice, "checkpoint", checkpoint)
    return made


def kms(*argv: str) -> int:
    return run(["ledger", *argv])


def receipt(index: int, **changes: str) -> Path:
    """Write a receipt as a guest keeps it."""
    salt, content = entry(index)
    promise = {
        "decided_at": "2026-11-21T12:00:00.000000Z",
        "entry_sha256": sha256(salt + content).hexdigest(),
        "release_id": release_id(index),
        "salt": b64url(salt),
        **changes,
    }
    path = Path("receipt.json")
    path.write_text(json.dumps(Signed.by(IDENTITY, RECEIPT, json.dumps(promise).encode()).to_json()))
    return path


class TestList:
    def test_the_newest_come_first(self, ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
        assert kms("list", "--limit", "3") == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == ["449", "448", "447"]
        assert f"released app {'ab' * 20}" in lines[0]
        assert "alice\\u202e: policy-apply: done" in lines[2]

    @pytest.mark.parametrize(
        ("argv", "indexes"),
        [
            (["--limit", "500"], [*range(SIZE - 1, -1, -1)]),
            (["--limit", "2", "--kind", "action"], [447, 444]),
            (["--from", "7", "--limit", "3"], [7, 8, 9]),
            (["--from", "440", "--limit", "500", "--kind", "action"], [441, 444, 447]),
            (["--from", "450"], []),
        ],
    )
    def test_what_was_asked_for(
        self, ledger: Ledger, capsys: pytest.CaptureFixture[str], argv: list[str], indexes: list[int]
    ) -> None:
        assert kms("list", *argv, "--json") == 0
        assert [each["index"] for each in json.loads(capsys.readouterr().out)["entries"]] == indexes

    def test_one_that_is_gone_is_said(self, ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
        ledger.gone = {449}
        assert kms("list", "--limit", "1") == 0
        assert capsys.readouterr().out == "449  not in the record any more\n"


class TestShow:
    @pytest.mark.parametrize("which", ["448", release_id(448)])
    def test_it_is_whole(self, ledger: Ledger, capsys: pytest.CaptureFixture[str], which: str) -> None:
        assert kms("show", which, "--json") == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown == {**ledger.item(448), "content": json.loads(entry(448)[1])}
        assert kms("show", which) == 0
        assert '"outcome": "released"' in capsys.readouterr().out

    def test_what_is_not_there(self, ledger: Ledger) -> None:
        assert kms("show", "450") == 2
        assert kms("show", "-1") == 2
        assert kms("show", "x") == 2


class TestExport:
    def test_it_verifies_without_an_office(self, ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
        assert kms("export", "ledger.jsonl") == 0
        assert Path("ledger.jsonl").stat().st_mode & 0o777 == 0o600
        capsys.readouterr()
        Path("before").write_text(ledger.note)
        verify = ["verify", "--export", "ledger.jsonl", "--key", KEY.verifier_key, "--checkpoint", "before"]
        assert kms(*verify, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["sound"], found["checkpoint"]["size"]) == (True, SIZE)

    def test_an_edited_one_does_not(self, ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
        ledger.edited = {7}
        assert kms("export", "ledger.jsonl", "--json") == 0
        capsys.readouterr()
        assert kms("verify", "--export", "ledger.jsonl", "--key", KEY.verifier_key) == 1
        assert "root-mismatch" in capsys.readouterr().out

    def test_what_is_there_is_not_overwritten(self, ledger: Ledger) -> None:
        Path("ledger.jsonl").write_text("mine")
        assert kms("export", "ledger.jsonl") == 2
        assert Path("ledger.jsonl").read_text() == "mine"

    def test_one_with_a_hole_is_not_left_behind(
        self, ledger: Ledger, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ledger.gone = {300}
        assert kms("export", "ledger.jsonl") == 2
        assert "entry 300 is not in the record" in capsys.readouterr().err
        assert not Path("ledger.jsonl").exists()

    @pytest.mark.parametrize(
        "argv",
        [
            ["--export", "nothing", "--key", KEY.verifier_key],
            ["--export", "ledger.jsonl"],
            ["--export", "ledger.jsonl", "--key", KEY.verifier_key, "--checkpoint", "nothing"],
        ],
    )
    def test_what_cannot_be_verified(self, ledger: Ledger, argv: list[str]) -> None:
        assert kms("export", "ledger.jsonl") == 0
        assert kms("verify", *argv) == 2

    def test_another_ledgers_checkpoint_is_none_of_this_one(self, ledger: Ledger) -> None:
        assert kms("export", "ledger.jsonl") == 0
        other = CheckpointKey(b"x" * 32, KEY.origin)
        Path("before").write_text(
            other.sign(Checkpoint(origin=KEY.origin, size=SIZE, root=ledger.growth.root))
        )
        argv = ["--export", "ledger.jsonl", "--key", KEY.verifier_key, "--checkpoint", "before"]
        assert kms("verify", *argv) == 2


class TestProve:
    def test_a_receipt_is_kept(self, ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
        promise = ["--receipt", str(receipt(448))]
        assert kms("prove", release_id(448), *promise, "--save", "proof.json") == 0
        assert "the receipt is kept" in capsys.readouterr().out
        saved = ["--proof", "proof.json", "--key", KEY.verifier_key]
        assert kms("prove", release_id(448), *promise, *saved, "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["proven"], told["index"], told["size"]) == (True, 448, SIZE)
        assert told["receipt"]["identity"] == b64url(IDENTITY.public_key)

    @pytest.mark.parametrize(
        "changes",
        [{"entry_sha256": "00" * 32}, {"release_id": release_id(7)}, {"salt": b64url(bytes(16))}],
    )
    def test_another_promise_is_not(
        self, ledger: Ledger, capsys: pytest.CaptureFixture[str], changes: dict[str, str]
    ) -> None:
        argv = [release_id(448), "--receipt", str(receipt(448, **changes)), "--save", "proof.json", "--json"]
        assert kms("prove", *argv) == 1
        assert json.loads(capsys.readouterr().out)["error"]["reason"] == "receipt-differs"
        assert not Path("proof.json").exists()

    def test_an_entry_that_was_edited_is_noticed(
        self, ledger: Ledger, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ledger.edited = {448}
        assert kms("prove", release_id(448)) == 1
        assert "another entry than the ledger has" in capsys.readouterr().err

    def test_one_that_is_gone_from_the_record_is_noticed(
        self, ledger: Ledger, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ledger.gone = {448}
        assert kms("prove", release_id(448), "--receipt", str(receipt(448)), "--json") == 1
        assert json.loads(capsys.readouterr().out)["error"]["reason"] == "entry-removed"

    def test_a_forged_checkpoint_proves_nothing(
        self, ledger: Ledger, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = CheckpointKey(b"x" * 32, KEY.origin)
        ledger.note = other.sign(Checkpoint(origin=KEY.origin, size=SIZE, root=ledger.growth.root))
        assert kms("prove", release_id(448), "--json") == 1
        assert json.loads(capsys.readouterr().out)["error"]["reason"] == "checkpoint-invalid"

    @pytest.mark.parametrize(
        ("index", "promised", "status"), [(SIZE, False, 1), (SIZE + 1, False, 2), (SIZE + 1, True, 1)]
    )
    def test_what_is_not_in_it(self, ledger: Ledger, index: int, promised: bool, status: int) -> None:
        more = ["--receipt", str(receipt(index))] if promised else []
        assert kms("prove", release_id(index), *more) == status

    @pytest.mark.parametrize(
        "argv",
        [
            ["x"],
            [release_id(1), "--proof", "proof.json"],
            [release_id(1), "--server", "https://kms"],
            [release_id(1), "--receipt", "nothing"],
        ],
    )
    def test_wrong_use(self, ledger: Ledger, argv: list[str]) -> None:
        assert kms("prove", *argv) == 2


def test_the_key_is_alone_on_standard_output(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    assert kms("key") == 0
    assert capsys.readouterr().out == f"{KEY.verifier_key}\n"


@pytest.mark.parametrize("indexes", [[0, 0], [1, 0], [SIZE]])
async def test_pages_out_of_their_order_are_rejected(indexes: list[int]) -> None:
    class Liar:
        @property
        def ledger(self) -> "Liar":
            return self

        async def entries(self, *_: object, **__: object) -> dict[str, Any]:
            return {"entries": [Ledger().item(0) | {"index": each} for each in indexes], "next": None}

    with pytest.raises(AnswerRejected, match="out of its turn"):
        await read_leaves(cast("Any", Liar()), ACTOR, 0, limit=10)
