"""The ledger of a real server, from outside and by its commands: followed, verified, proven; and forged."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kms.database.engine import SQLITE_FILE
from kms.encoding import from_base64
from kms.guest.client import KeyClient
from kms.keys.names import KeyRequest
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests import ledger_verifier
from tests.conformance.own_server import Server, refuse_to_start
from tests.e2e.rack import Rack
from tests.e2e.terminal import Terminal
from tests.servers.vault import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]

GUESTS = 6
DISK = [KeyRequest.parse("disk", "app")]


def fetch(server: Server, rack: Rack, number: int) -> dict[str, Any]:
    """Have a guest fetch its disk key, and give its receipt."""
    guest = rack.guest(number)
    client = KeyClient(server.url, ca_file=server.ca, identity=None, source=guest)
    receipt: Any = client.fetch(DISK, app_document=guest.document).receipt
    return dict(receipt)


def promised(receipt: Mapping[str, str]) -> dict[str, str]:
    return dict(json.loads(from_base64(receipt["payload"])))


class Kms(NamedTuple):
    """A data folder with releases in it, the settings of its server, and what guests were promised."""

    data: Path
    rack: Rack
    receipts: list[dict[str, Any]]

    def copy(self, folder: Path) -> "Kms":
        """Give the same again, to be spoilt. The anchor is in the data folder, too."""
        shutil.copytree(self.data, folder / "data")
        return self._replace(data=folder / "data")

    def server(self) -> Server:
        return Server(self.data, self.rack.settings)

    def terminal(self, **means: str) -> Terminal:
        settings = {**self.rack.settings, "KMS_DATA_DIR": str(self.data)}
        return Terminal(folder=self.data.parent, settings=settings, means=means)

    def verify(self, *, status: int) -> list[tuple[str, int | None]]:
        """Type `kms ledger verify`, and give what it names."""
        found = json.loads(self.terminal().type("kms ledger verify --json", status=status).output)
        assert found["sound"] == (status == 0)
        return [(each["kind"], each["index"]) for each in found["findings"]]

    def edit(self, statement: str, *values: object) -> None:
        """Write into the database as its owner can."""
        with closing(sqlite3.connect(self.data / SQLITE_FILE)) as connection, connection:
            assert connection.execute(statement, values).rowcount > 0, statement


def size_of(server: Server) -> int:
    with server.client().http as http:
        return int(http.get("/v1/ledger").json()["size"])


def sized(server: Server, at_least: int) -> Callable[[], bool]:
    return lambda: size_of(server) >= at_least


def watching(server: Server) -> str:
    return f"kms ledger watch --server {server.url} --ca {server.ca} --state state"


@pytest.fixture(scope="module")
def kms(
    tmp_path_factory: pytest.TempPathFactory, simulated_hierarchies: Mapping[Product, AmdHierarchy]
) -> Kms:
    folder = tmp_path_factory.mktemp("ledger")
    rack = Rack(folder, simulated_hierarchies[Product.MILAN], 2)
    made = Kms(folder / "data", rack, [])
    with made.server() as server:
        made.receipts.extend(fetch(server, rack, number) for number in range(GUESTS))
        wait_until(sized(server, GUESTS), within=10)
    return made


@pytest.fixture
def spoilt(kms: Kms, tmp_path: Path) -> Kms:
    return kms.copy(tmp_path)


def test_everything_over_http_holds_before_an_independent_verifier(kms: Kms, tmp_path: Path) -> None:
    mine = kms.copy(tmp_path)
    with mine.server() as server, server.client().http as http:
        terminal = mine.terminal()
        key = terminal.type("kms ledger key").output.strip()
        terminal.type("kms operator add eve --role auditor > token")
        (tmp_path / "token").chmod(0o600)
        auditor = {"authorization": f"Bearer {(tmp_path / 'token').read_text().strip()}"}
        note = http.get("/ledger/checkpoint").text
        _, size, root = ledger_verifier.open_checkpoint(note, key)
        answer = http.get(f"/v1/ledger/entries?limit={size}", headers=auditor).json()
        entries = [
            (from_base64(each["salt"]), from_base64(each["entry"])) for each in answer["entries"][:size]
        ]

        def tile(path: str) -> bytes:
            return bytes(http.get(f"/ledger/{path}").raise_for_status().content)

        assert ledger_verifier.verify_ledger(note, key, entries, tile) == size
        for receipt in mine.receipts:
            told = promised(receipt)
            proof = http.get(f"/v1/ledger/proofs/{told['release_id']}").json()
            assert proof["entry_sha256"] == told["entry_sha256"]
            path = [from_base64(each) for each in proof["inclusion"]]
            digest = bytes.fromhex(told["entry_sha256"])
            _, size, root = ledger_verifier.open_checkpoint(proof["checkpoint"], key)
            ledger_verifier.check_inclusion(digest, proof["index"], size, path, root)


def test_an_auditors_day(kms: Kms, tmp_path: Path) -> None:
    """Watch, prove, export, verify: typed on another machine, with no more than what an auditor has."""
    mine = kms.copy(tmp_path)
    receipt = tmp_path / "receipt.json"
    receipt.write_text(json.dumps(mine.receipts[0]))
    release_id = promised(mine.receipts[0])["release_id"]
    with mine.server() as server:
        here = mine.terminal()
        here.type("umask 077; kms ledger key > ledger.key; kms operator add eve --role auditor > token")
        with server.client().http as http:
            identity = http.get("/v1/identity").json()["identity"]
        away = Terminal(
            folder=tmp_path,
            settings={"KMS_DATA_DIR": str(tmp_path / "nothing")},
            means={"SERVER": f"--server {server.url} --ca {server.ca}", "IDENTITY": f"--identity={identity}"},
        )
        shown = away.type("kms ledger key SERVER IDENTITY").output
        assert shown == (tmp_path / "ledger.key").read_text()

        watch = "kms ledger watch SERVER --key @ledger.key --state state --once"
        assert "nothing is known of before" in away.type(watch).output
        shutil.copy(tmp_path / "state", tmp_path / "yesterday")
        before = ledger_verifier.open_checkpoint((tmp_path / "yesterday").read_text(), shown.strip())[1]
        fetch(server, mine.rack, 1)
        wait_until(sized(server, before + 1), within=10)
        assert "are as they were" in away.type(watch).output

        prove = f"kms ledger prove {release_id} --receipt receipt.json --key @ledger.key"
        proven = json.loads(away.type(f"{prove} SERVER --save proof.json --json").output)
        assert (proven["proven"], proven["entry_sha256"]) == (
            True,
            promised(mine.receipts[0])["entry_sha256"],
        )
        assert "receipt is kept" in away.type(f"{prove} --proof proof.json").output

        audit = "kms ledger verify SERVER --token-file token --key @ledger.key --checkpoint yesterday"
        assert "sound: " in away.type(audit).output
        away.type("kms ledger export SERVER --token-file token ledger.jsonl")
        offline = "kms ledger verify --export ledger.jsonl --key @ledger.key --checkpoint yesterday --json"
        assert json.loads(away.type(offline).output)["sound"]
        listed = json.loads(away.type("kms ledger list SERVER --token-file token --limit 3 --json").output)
        assert len(listed["entries"]) == 3
        item = json.loads(away.type(f"kms ledger show SERVER --token-file token {release_id} --json").output)
        assert item["content"]["outcome"] == "released"
    # The server has ended: a watch that looks once says so, and keeps what it has.
    state = (tmp_path / "state").read_text()
    away.type(f"{watch} --deadline 1", status=2)
    assert (tmp_path / "state").read_text() == state
    assert not (tmp_path / "nothing").exists()


class TestBackups:
    """An older copy of the database, put in the place of the newer one."""

    @pytest.fixture
    def older(self, kms: Kms, tmp_path: Path) -> tuple[Kms, Path]:
        """A KMS whose database is from before, and the checkpoint that an auditor has kept since."""
        mine = kms.copy(tmp_path)
        backup = tmp_path / "backup.db"
        shutil.copy(mine.data / SQLITE_FILE, backup)
        terminal = mine.terminal()
        with mine.server() as server:
            terminal.type("kms ledger key > ledger.key")
            before = size_of(server)
            fetch(server, mine.rack, 2)
            wait_until(sized(server, before + 1), within=10)
            terminal.type(f"{watching(server)} --key @ledger.key --once")
        for leftover in mine.data.glob(f"{SQLITE_FILE}*"):
            leftover.unlink()
        shutil.copy(backup, mine.data / SQLITE_FILE)
        return mine, tmp_path / "state"

    def test_it_is_refused_at_start_and_named(self, older: tuple[Kms, Path]) -> None:
        mine, _ = older
        assert "ledger" in refuse_to_start(mine.data, mine.rack.settings)
        assert ("not-append-only", None) in mine.verify(status=1)

    def test_accepting_it_is_an_entry_and_watchers_see_the_cut(self, older: tuple[Kms, Path]) -> None:
        mine, state = older
        terminal = mine.terminal()
        terminal.type("kms ledger accept-rollback --message ''", status=2)
        accepted = json.loads(
            terminal.type("kms ledger accept-rollback --message 'the disk is lost' --json").output
        )
        assert accepted["before"]["size"] > accepted["after"]["size"]
        with mine.server() as server:
            wait_until(sized(server, accepted["after"]["size"] + 1), within=10)
            actions = terminal.type("kms ledger list --kind action --limit 1 --json").output
            [item] = json.loads(actions)["entries"]
            entry = json.loads(from_base64(item["entry"]))
            assert entry["action"] == "ledger-accept-rollback"
            assert entry["details"]["message"] == "the disk is lost"
            seen = state.read_text()
            watch = f"{watching(server)} --key @ledger.key --once --json"
            alarm = json.loads(terminal.type(watch, status=1).output)
            assert alarm["error"]["code"] == "not-append-only"
            assert state.read_text() == seen
            assert state.with_name("state.conflict").read_text() != seen
        assert mine.verify(status=0) == []


class TestTampering:
    """What the owner of the database can do by hand, and what `kms ledger verify` says of it."""

    def test_nothing_was_done(self, spoilt: Kms) -> None:
        assert spoilt.verify(status=0) == []

    def index_of(self, kms: Kms, number: int) -> int:
        release_id = promised(kms.receipts[number])["release_id"]
        with closing(sqlite3.connect(kms.data / SQLITE_FILE)) as connection:
            query = "SELECT number FROM ledger_leaves JOIN entries USING (place) WHERE id = ?"
            return int(connection.execute(query, (release_id,)).fetchone()[0])

    def test_an_entry_is_edited(self, spoilt: Kms) -> None:
        index = self.index_of(spoilt, 2)
        spoilt.edit(
            "UPDATE entries SET entry = CAST(replace(CAST(entry AS TEXT), 'released', 'refuted') AS BLOB)"
            " WHERE place = (SELECT place FROM ledger_leaves WHERE number = ?)",
            index,
        )
        found = spoilt.verify(status=1)
        assert ("entry-changed", index) in found
        assert {at for _, at in found} == {index}

    def test_an_entry_is_removed(self, spoilt: Kms) -> None:
        index = self.index_of(spoilt, 2)
        spoilt.edit(
            "DELETE FROM entries WHERE place = (SELECT place FROM ledger_leaves WHERE number = ?)", index
        )
        assert ("entry-removed", index) in spoilt.verify(status=1)

    def test_two_entries_change_places(self, spoilt: Kms) -> None:
        one, other = self.index_of(spoilt, 1), self.index_of(spoilt, 4)
        for old, new in ((one, -1), (other, one), (-1, other)):
            spoilt.edit(
                "UPDATE entries SET place = coalesce((SELECT place FROM ledger_leaves WHERE number = ?), -1)"
                " WHERE place = coalesce((SELECT place FROM ledger_leaves WHERE number = ?), -1)",
                new,
                old,
            )
        found = spoilt.verify(status=1)
        assert {("entry-moved", one), ("entry-moved", other)} <= set(found)

    def test_an_entry_is_added(self, spoilt: Kms) -> None:
        spoilt.edit(
            "INSERT INTO entries SELECT (SELECT max(place) + 1 FROM entries), 'forged', kind, server, entry,"
            " salt, mac FROM entries WHERE place = 1"
        )
        assert ("entry-added", None) in spoilt.verify(status=1)

    def test_a_checkpoint_is_forged(self, spoilt: Kms) -> None:
        spoilt.edit(
            "UPDATE ledger_checkpoints SET note = replace(note, char(10) || size || char(10),"
            " char(10) || (size - 1) || char(10)) WHERE size = (SELECT max(size) FROM ledger_checkpoints)"
        )
        assert "checkpoint-forged" in {kind for kind, _ in spoilt.verify(status=1)}

    def test_a_tile_is_changed(self, spoilt: Kms) -> None:
        spoilt.edit("UPDATE ledger_tiles SET hashes = zeroblob(length(hashes)) WHERE level = 0")
        assert "tile-changed" in {kind for kind, _ in spoilt.verify(status=1)}

    def test_what_it_is_looked_up_by_is_changed(self, spoilt: Kms) -> None:
        index = self.index_of(spoilt, 2)
        spoilt.edit(
            "UPDATE decisions SET outcome = 'refused' WHERE id = ?",
            promised(spoilt.receipts[2])["release_id"],
        )
        assert spoilt.verify(status=1) == [("lookup-changed", index)]

    def test_a_changed_entry_is_named_from_far_away_too(self, spoilt: Kms) -> None:
        """By an auditor with a token: the server serves what is in its database."""
        terminal = spoilt.terminal()
        terminal.type("umask 077; kms ledger key > ledger.key; kms operator add eve --role auditor > token")
        with spoilt.server() as server:
            index = self.index_of(spoilt, 2)
            spoilt.edit(
                "UPDATE entries SET salt = zeroblob(16)"
                " WHERE place = (SELECT place FROM ledger_leaves WHERE number = ?)",
                index,
            )
            found = terminal.type(
                f"kms ledger verify --server {server.url} --ca {server.ca} --token-file token"
                " --key @ledger.key --json",
                status=1,
            )
        assert ("entry-changed", index) in {
            (each["kind"], each["index"]) for each in json.loads(found.output)["findings"]
        }


def test_checkpoint_of_another_key(kms: Kms, tmp_path: Path) -> None:
    """A server that signs with another key than the one that was pinned is no ledger of ours."""
    mine = kms.copy(tmp_path)
    with mine.server() as server:
        other = (
            "attested-kms/v1/ledger/0000000000000000+fa7cbf2e+AWMkTJOiiUGxWyYk2Hu8PmD8/nJtBAlnbpJKgTRGQkHT"
        )
        watch = f"{watching(server)} --key {other} --once --json"
        said = mine.terminal().type(watch, status=1)
    assert json.loads(said.output)["error"]["code"] == "checkpoint-invalid"
    assert not (tmp_path / "state").exists()
