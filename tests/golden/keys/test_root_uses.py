"""What else the root is asked, and what is under those keys: `kms` against the committed vectors."""

import hmac
import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from typing_extensions import override

from kms.database.engine import open_engine, reading, sqlite_url
from kms.database.foreign_roots import ForeignRootStore
from kms.database.key_rows import KeyRows
from kms.database.migrate import migrate
from kms.database.schema import foreign_roots, metadata
from kms.keys import root_messages
from kms.keys.apps_ca import AppsCa
from kms.keys.check_value import check_value
from kms.keys.dstack import DstackRoots
from kms.keys.epochs import Epoch
from kms.keys.p256 import point_of
from kms.keys.root_messages import Mode
from kms.keys.row_seal import RowSeal
from kms.ledger.actions import OperatorAction
from kms.ledger.sealed_entry import EntrySeal
from kms.operators import Actor, Proof, Role
from kms.packaged import packaged_folder
from kms.rootkey.checked import CheckedRoot
from kms.rootkey.file import FileRootKey
from tests.golden.keys import second_p256
from tests.recording import recorder
from tests.roots import StoredValues
from tests.world import NOW

VECTORS = json.loads((Path(__file__).parent / "root_uses.json").read_text())
ROOTS = {int(epoch): bytes.fromhex(root) for epoch, root in VECTORS["roots"].items()}
CASES: dict[str, dict[str, Any]] = {case["use"]: case for case in VECTORS["cases"]}


def prf(message: bytes) -> bytes:
    return hmac.digest(ROOTS[1], message, "sha512")


def expected(use: str) -> bytes:
    return bytes.fromhex(CASES[use]["expect"])


class Unmarked(FileRootKey):
    """As a key in Vault or an HSM, which does not say what it was made for."""

    @property
    @override
    def marked(self) -> bool:
        return False


def test_every_use_has_a_test() -> None:
    assert set(CASES) == {
        "apps-ca",
        "rows-key",
        "row",
        "entries-key",
        "ledger-seed",
        "entry",
        "foreign-key",
        "foreign-row",
        "unmarked-check-value",
        "unmarked-challenge-key",
    }


def test_the_apps_ca() -> None:
    ca = AppsCa.from_prf(prf(root_messages.apps_ca_message()))
    scalar = int.from_bytes(expected("apps-ca"), "big")
    assert point_of(ca.certificate.public_key()) == second_p256.point(scalar)


def test_the_keys_of_rows() -> None:
    assert prf(root_messages.rows_message())[:32] == expected("rows-key")
    assert prf(root_messages.foreign_message())[:32] == expected("foreign-key")


def test_the_keys_of_the_ledger() -> None:
    entries = prf(root_messages.entries_message())
    assert entries[:32] == expected("entries-key")
    assert prf(root_messages.ledger_message())[:32] == expected("ledger-seed")
    kind, entry_id, server, salt, entry = (bytes.fromhex(each) for each in CASES["entry"]["fields"])
    sealed = EntrySeal(entries).seal(
        kind=kind.decode(), id=entry_id.decode(), server=server.decode(), salt=salt, entry=entry
    )
    assert sealed.mac == expected("entry")


def test_the_mac_of_a_row() -> None:
    number, made_at, made_by, active_from, _, _ = CASES["row"]["columns"]
    epoch = Epoch(
        number=int(number),
        made_at=datetime.fromisoformat(made_at),
        made_by=made_by,
        active_from=datetime.fromisoformat(active_from),
    )
    row = KeyRows(RowSeal(prf(root_messages.rows_message()))).of_epoch(epoch)
    assert row["mac"] == expected("row")


def test_the_page_names_every_column_that_a_mac_is_over() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "keys.md").read_text()
    section = page[page.index("## Rows of the database") : page.index("## Where the root lives")]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE)
    named = {table: columns.split(", ") for table, columns in rows}
    for table in metadata.sorted_tables:
        if table.name == "entries":  # its MAC has a key of its own, and a page: docs/reference/ledger.md
            continue
        columns = [each.name for each in table.c if each.name not in {"mac", "last_used_at"}]
        if table.name.startswith("policy_"):
            columns.sort()
        assert named.get(table.name) == (columns if "mac" in table.c else None), table.name


async def test_imported_roots_in_the_database(tmp_path: Path) -> None:
    case = CASES["foreign-row"]
    ca, k256 = (bytes.fromhex(each) for each in case["roots"])
    engine = open_engine(sqlite_url(tmp_path))
    try:
        await migrate(engine, packaged_folder("migrations"))
        nonce = bytes.fromhex(case["nonce"])
        store = ForeignRootStore(
            engine,
            lambda: NOW,
            expected("foreign-key"),
            recorder=recorder(),
            randomness=lambda length: nonce.ljust(length, b"\0"),
        )
        action = OperatorAction(
            action_id="1" * 32,
            at=NOW,
            actor=Actor(name="root", role=Role.ADMIN, proof=Proof.COMMAND_LINE),
            action="keys-import-dstack",
            target="dstack",
            outcome="done",
            details={},
        )
        await store.import_dstack(DstackRoots(ca=ca, k256=k256), action=action, replace=False)
        async with reading(engine) as connection:
            sealed = (await connection.execute(select(foreign_roots.c.sealed))).scalar_one()
    finally:
        await engine.dispose()
    assert sealed == expected("foreign-row")


async def test_what_a_development_server_asks_of_a_root_without_a_mark() -> None:
    stored = StoredValues()
    root = CheckedRoot(Unmarked.of(ROOTS), stored, mode=Mode.DEVELOPMENT, random=bytes)
    await root.verify_all()
    case = CASES["unmarked-check-value"]
    assert await root.ensure(case["epoch"]) == expected("unmarked-check-value")
    assert await root.prf(1, root_messages.challenge_message()) == expected("unmarked-challenge-key")


@pytest.mark.parametrize("mode", [Mode.DEVELOPMENT, Mode.PRODUCTION])
async def test_a_root_with_a_mark_is_asked_the_same_in_both_modes(mode: Mode) -> None:
    root = CheckedRoot(FileRootKey.of(ROOTS), StoredValues(), mode=mode, random=bytes)
    await root.verify_all()
    message = root_messages.check_message(mode, 2)
    assert await root.ensure(2) == check_value(hmac.digest(ROOTS[2], message, "sha512"))
    assert await root.prf(1, root_messages.challenge_message()) == prf(root_messages.challenge_message())
