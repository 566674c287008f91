"""Following a ledger that a server shows: what continues, and every way in which it does not."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import httpx2
import pytest

from kms.cli import run
from kms.encoding import b64url
from kms.guest.errors import AnswerRejected, Refused, ServerUnreachable
from kms.guest.patience import Patience
from kms.guest.published_ledger import NotAppendOnly, PublishedLedger
from kms.guest.transport import Connection
from kms.keys.identity import Identity
from kms.ledger.checkpoint import Checkpoint, CheckpointInvalid, CheckpointKey, open_checkpoint
from kms.ledger.ledger_key import LedgerKey
from kms.ledger.tiles import DATA_LEVEL, Edge, TileName, entry_bundle

ORIGIN = "attested-kms/v1/ledger/0123456789abcdef"
KEY = CheckpointKey(bytes(range(32)), ORIGIN)
IDENTITY = Identity.from_prf(b"\x11" * 64)
SERVER = ["--server", "https://kms.test", "--key", KEY.verifier_key]


def digests(count: int, first: int = 0) -> list[bytes]:
    return [sha256(str(number).encode()).digest() for number in range(first, first + count)]


@dataclass
class Log:
    """A log as a server shows it; a test may show another's tiles, or nothing."""

    edge: Edge = field(default_factory=Edge.empty)
    tiles: dict[tuple[int, int], bytes] = field(default_factory=dict)
    key: CheckpointKey = KEY
    identity: Identity = IDENTITY
    asked: list[str] = field(default_factory=list)
    down: bool = False
    problem: bytes = b"{}"

    def grow(self, entries: list[bytes]) -> "Log":
        growth = self.edge.append(entries)
        self.edge = growth.edge
        self.tiles |= growth.tiles
        return self

    @property
    def note(self) -> str:
        return self.key.sign(Checkpoint(origin=self.key.origin, size=self.edge.size, root=self.edge.root()))

    @property
    def seen(self) -> Checkpoint:
        return open_checkpoint(self.note, self.key.verifier_key)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        content = b"" if self.down else self.answer(request.url.path)
        status = 502 if self.down else 404 if content is None else 200
        return httpx2.Response(status, stream=httpx2.ByteStream(content or self.problem))

    def answer(self, path: str) -> bytes | None:
        self.asked.append(path)
        if path == "/ledger/checkpoint":
            return self.note.encode()
        if path == "/v1/ledger":
            signed = LedgerKey.of(self.key).signed_by(self.identity).to_json()
            return json.dumps({"origin": "x", "key": "x", "size": 1, **signed}).encode()
        if path == "/v1/identity":
            return json.dumps({"previous": []}).encode()
        if not path.startswith("/ledger/tile/"):
            return None
        name = TileName.parse(path.removeprefix("/ledger/"))
        tile = self.tiles.get((name.level, name.number), b"")[: 32 * name.width]
        if len(tile) < 32 * name.width:
            return None
        return entry_bundle(tile) if name.level == DATA_LEVEL else tile


@contextmanager
def following(log: Log) -> Iterator[PublishedLedger]:
    transport = httpx2.MockTransport(log)
    with Connection("https://kms.test", ca_file=None, timeout=1.0, transport=transport) as connection:
        yield PublishedLedger(lambda: Patience(connection, deadline=0.1))


@pytest.mark.parametrize(("old", "new"), [(0, 0), (0, 1), (1, 1), (1, 300), (256, 257), (255, 70_000)])
def test_what_only_grew_continues(old: int, new: int) -> None:
    log = Log().grow(digests(old))
    seen = log.seen
    log.grow(digests(new - old, old))
    with following(log) as ledger:
        assert ledger.advance(seen, KEY.verifier_key) == (log.note, log.seen)
        assert len(log.asked) < 8


def test_one_that_was_cut_does_not() -> None:
    seen = Log().grow(digests(300)).seen
    with following(Log().grow(digests(299))) as ledger, pytest.raises(NotAppendOnly) as alarm:
        ledger.advance(seen, KEY.verifier_key)
    assert alarm.value.reason == "ledger-cut"


@pytest.mark.parametrize("new", [300, 301, 1000])
def test_one_that_was_forked_does_not(new: int) -> None:
    seen = Log().grow(digests(300)).seen
    other = Log().grow([*digests(7), bytes(32), *digests(new - 8, 8)])
    with following(other) as ledger, pytest.raises(NotAppendOnly) as alarm:
        ledger.advance(seen, KEY.verifier_key)
    assert (alarm.value.reason, alarm.value.note) == ("ledger-forked", other.note)


def test_tiles_of_another_log_prove_nothing() -> None:
    log = Log().grow(digests(300))
    seen = log.seen
    log.grow(digests(300, 300))
    log.tiles = Log().grow(digests(600, 1)).tiles
    with following(log) as ledger, pytest.raises(NotAppendOnly):
        ledger.advance(seen, KEY.verifier_key)


def test_tiles_that_are_not_there_prove_nothing() -> None:
    log = Log().grow(digests(300))
    seen = log.seen
    log.grow(digests(300, 300))
    log.tiles = {}
    with following(log) as ledger, pytest.raises(NotAppendOnly):
        ledger.advance(seen, KEY.verifier_key)


def test_another_key_signs_nothing_of_ours() -> None:
    log = Log(key=CheckpointKey(b"x" * 32, ORIGIN))
    with following(log) as ledger, pytest.raises(CheckpointInvalid):
        ledger.advance(None, KEY.verifier_key)


def test_a_bundle_is_read_as_digests() -> None:
    log = Log().grow(digests(300))
    with following(log) as ledger:
        assert ledger.tile(TileName(DATA_LEVEL, 1, 44)) == b"".join(digests(44, 256))
        with pytest.raises(Refused):
            ledger.tile(TileName(0, 1, 45))
        log.answer = lambda _: b"\x00\x21" + bytes(32)  # type: ignore[method-assign, assignment]
        with pytest.raises(AnswerRejected):
            ledger.tile(TileName(DATA_LEVEL, 0, 1))


def test_the_pinned_identity_vouches_for_the_key() -> None:
    with following(Log()) as ledger:
        assert ledger.key(IDENTITY.public_key) == LedgerKey.of(KEY)
        with pytest.raises(AnswerRejected):
            ledger.key(b"\x01" * 32)


def test_a_server_that_is_away_is_no_alarm() -> None:
    with following(Log(down=True)) as ledger, pytest.raises(ServerUnreachable):
        ledger.advance(None, KEY.verifier_key)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Log:
    """The log of the server that commands ask."""
    log = Log().grow(digests(300))

    def connect(url: str, **_: object) -> Connection:
        return Connection(url, ca_file=None, timeout=1.0, transport=httpx2.MockTransport(log))

    monkeypatch.setattr("kms.guest.transport.Connection", connect)
    monkeypatch.chdir(tmp_path)
    return log


@pytest.mark.parametrize(("reasons", "status"), [([], 2), (["not-in-a-checkpoint-yet"], 1)])
def test_what_has_no_proof(
    log: Log, reasons: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    log.problem = json.dumps({"code": "not-found", "reasons": reasons}).encode()
    assert run(["ledger", "prove", "0" * 32, *SERVER, "--json"]) == status
    assert json.loads(capsys.readouterr().out)["error"]["reasons"] == reasons
    assert log.asked == [f"/v1/ledger/proofs/{'0' * 32}"]


class TestWatch:
    """`kms ledger watch` before such a server."""

    def watch(self, *more: str) -> int:
        return run(["ledger", "watch", *SERVER, "--state", "state", "--deadline", "0.1", *more])

    def test_the_state_is_the_checkpoint(self, log: Log, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.watch("--once") == 0
        assert Path("state").read_text() == log.note
        log.grow(digests(1, 300))
        assert self.watch("--once", "--json") == 0
        said = capsys.readouterr().out
        told = json.loads(said[said.index("{") :])
        assert (told["seen"]["size"], told["checkpoint"]["size"]) == (300, 301)
        assert Path("state").read_text() == log.note

    def test_an_alarm_keeps_both(self, log: Log, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.watch("--once") == 0
        before = log.note
        log.edge, log.tiles = Edge.empty(), {}
        log.grow(digests(400, 1))
        assert self.watch("--once") == 1
        assert "ALARM: ledger-forked" in capsys.readouterr().err
        assert Path("state").read_text() == before
        assert Path("state.conflict").read_text() == log.note

    def test_a_ledger_without_any_checkpoint_was_cut(
        self, log: Log, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.watch("--once") == 0
        before = log.note
        log.problem = json.dumps({"code": "not-found", "reasons": ["not-in-a-checkpoint-yet"]}).encode()
        log.answer = lambda _: None  # type: ignore[method-assign, assignment]
        assert self.watch() == 1
        assert "ALARM: ledger-cut" in capsys.readouterr().err
        assert Path("state").read_text() == before
        assert not Path("state.conflict").exists()

    def test_it_goes_on_after_an_outage_and_ends_with_an_alarm(
        self, log: Log, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        moments = [self._break, self._mend, self._cut]
        monkeypatch.setattr("kms.cli.ledger_watch.time.sleep", lambda _: moments.pop(0)(log))
        assert self.watch() == 1
        said = capsys.readouterr()
        assert "no answer within" in said.err
        assert "301 entries" in said.out
        assert "ALARM: ledger-cut" in said.err
        assert moments == []

    def _break(self, log: Log) -> None:
        log.down = True

    def _mend(self, log: Log) -> None:
        log.down = False
        log.grow(digests(1, 300))

    def _cut(self, log: Log) -> None:
        log.edge = Edge.empty()

    @pytest.mark.parametrize("once", [True, False])
    def test_a_malformed_answer_is_an_alarm_at_once(
        self, log: Log, once: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.watch("--once") == 0
        before = log.note
        self._fork_and_answer(log, lambda _: b"x" * 31)
        if once:
            assert self.watch("--once") == 1
        else:
            monkeypatch.setattr("kms.cli.ledger_watch.time.sleep", lambda _: self._cut(log))
            assert self.watch() == 1
            assert "ALARM: answer-malformed" in capsys.readouterr().err
        assert Path("state").read_text() == before

    def test_checkpoints_that_are_never_proven_become_an_alarm(
        self, log: Log, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("kms.cli.ledger_watch._MOST_UNSHOWN", 3)
        assert self.watch("--once") == 0
        before = log.note
        self._fork_and_answer(log, self._busy)
        assert self.watch("--once") == 2
        alarms: list[int] = []

        def look_at_what_was_said(_: float) -> None:
            alarms.append(capsys.readouterr().err.count("ALARM: not-shown, 3 times"))
            if len(alarms) == 3:
                self._cut(log)

        monkeypatch.setattr("kms.cli.ledger_watch.time.sleep", look_at_what_was_said)
        assert self.watch() == 1
        assert alarms == [0, 0, 1]
        assert Path("state").read_text() == before

    def _fork_and_answer(self, log: Log, tile: Callable[[str], bytes]) -> None:
        """Show another log of more entries, and something else where tiles are asked for."""
        log.edge, log.tiles = Edge.empty(), {}
        log.grow(digests(400, 1))
        answer = log.answer
        log.answer = lambda path: tile(path) if "/tile/" in path else answer(path)  # type: ignore[method-assign]

    def _busy(self, _: str) -> bytes:
        raise httpx2.ConnectError("nobody there")

    def test_once_without_a_server_is_no_verdict(self, log: Log) -> None:
        log.down = True
        assert self.watch("--once") == 2
        assert not Path("state").exists()

    def test_a_forged_checkpoint_ends_it(self, log: Log, capsys: pytest.CaptureFixture[str]) -> None:
        log.key = CheckpointKey(b"x" * 32, ORIGIN)
        assert self.watch("--once", "--json") == 1
        assert json.loads(capsys.readouterr().out)["error"]["code"] == "checkpoint-invalid"

    def test_a_state_that_is_none_is_not_replaced(self, log: Log) -> None:
        Path("state").write_text("nothing\n")
        assert self.watch("--once") == 2
        assert Path("state").read_text() == "nothing\n"

    @pytest.mark.parametrize(
        "argv",
        [
            ["--json"],
            ["--key", "x", "--once"],
            ["--identity", b64url(IDENTITY.public_key), "--once"],
            ["--interval", "0"],
        ],
    )
    def test_wrong_use(self, log: Log, argv: list[str]) -> None:
        assert self.watch(*argv) == 2
        assert log.asked == []
