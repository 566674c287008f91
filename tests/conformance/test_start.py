"""What the server must not start with, and what it says then."""

import json
import shutil
import socket
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conftest import Settings
from tests.conformance.own_client import Client
from tests.conformance.own_fleet import Fleet
from tests.conformance.own_server import Server, refuse_to_start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def used(settings: Settings, fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a server that released a key and was stopped."""
    data_dir = tmp_path_factory.mktemp("used") / "data"
    with Server(data_dir, settings) as server:
        client = server.client()
        try:
            client.disk_key(fleet.guest())
        finally:
            client.close()
    return data_dir


@pytest.fixture
def data_dir(used: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to be damaged."""
    copied = tmp_path / "data"
    shutil.copytree(used, copied)
    return copied


def test_the_undamaged_copy_starts(data_dir: Path, settings: Settings, fleet: Fleet) -> None:
    """The premise of the tests below."""
    with Server(data_dir, settings) as server:
        client: Client = server.client()
        try:
            assert len(client.disk_key(fleet.guest())) == 32
        finally:
            client.close()


def _members(value: Any) -> list[tuple[Any, Any]]:
    pairs: Any = value.items() if isinstance(value, dict) else enumerate(value)
    found: list[tuple[Any, Any]] = []
    for key, member in pairs:
        found.append((value, key))
        if isinstance(member, dict | list):
            found += _members(member)
    return found


def test_a_root_key_with_another_byte(data_dir: Path, settings: Settings) -> None:
    """The file stays readable, so that only the key-check value can tell; a wrong root gives wrong keys."""
    path = data_dir / "root-key.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    members = [(owner, key) for owner, key in _members(document) if isinstance(owner[key], str)]
    owner, key = max(members, key=lambda member: len(member[0][member[1]]))
    text = owner[key]
    middle = len(text) // 2
    owner[key] = text[:middle] + ("1" if text[middle] != "1" else "2") + text[middle + 1 :]
    path.write_text(json.dumps(document), encoding="utf-8")
    message = refuse_to_start(data_dir, settings).lower()
    assert "root" in message
    assert text[:middle].lower() not in message, "the message shows the secret"


@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_a_root_key_that_cannot_be_read(data_dir: Path, settings: Settings, damage: str) -> None:
    """Field lesson 30: elsewhere, a missing file meant new keys for everybody."""
    path = data_dir / "root-key.json"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:40] if damage == "cut" else b"")
    assert "root" in refuse_to_start(data_dir, settings).lower()
    assert damage != "gone" or not path.exists(), "no new root was made"


def test_an_unknown_setting(settings: Settings, tmp_path: Path) -> None:
    """Field lesson 25."""
    config = tmp_path / "kms.toml"
    config.write_text('rate_limt = "10/s"\n', encoding="utf-8")
    message = refuse_to_start(tmp_path / "data", {**settings, "KMS_CONFIG": str(config)}).lower()
    assert "rate_limt" in message
    assert "rate_limit" in message


@pytest.mark.parametrize("text", ["kind: [", "kind: app\nkind: app\n", "kind: application\nname: x\n"])
def test_a_broken_policy(settings: Settings, tmp_path: Path, text: str) -> None:
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "broken.yaml").write_text(text, encoding="utf-8")
    message = refuse_to_start(tmp_path / "data", {**settings, "KMS_POLICY_DIR": str(policies)})
    assert "broken.yaml" in message


def test_a_policy_folder_that_is_not_there(settings: Settings, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    message = refuse_to_start(tmp_path / "data", {**settings, "KMS_POLICY_DIR": str(nowhere)})
    assert str(nowhere) in message


def test_development_roots_that_are_none(settings: Settings, tmp_path: Path) -> None:
    roots = tmp_path / "roots.pem"
    roots.write_text("no certificate", encoding="utf-8")
    message = refuse_to_start(tmp_path / "data", {**settings, "KMS_DEVELOPMENT_ROOTS": str(roots)})
    assert "roots.pem" in message


def test_a_port_that_is_taken(settings: Settings, tmp_path: Path) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        message = refuse_to_start(tmp_path / "data", {**settings, "KMS_LISTEN": listen})
    assert listen.rpartition(":")[2] in message


def test_a_database_newer_than_the_code(data_dir: Path, settings: Settings) -> None:
    with closing(sqlite3.connect(data_dir / "kms.sqlite3")) as database:
        database.execute("update alembic_version set version_num = 'ffffffffffff'")
        database.commit()
    assert "database" in refuse_to_start(data_dir, settings).lower()


def test_a_development_folder_in_production(data_dir: Path, settings: Settings) -> None:
    """Field lesson 38: neither mode slips into the other."""
    production = {name: value for name, value in settings.items() if name != "KMS_DEVELOPMENT_ROOTS"}
    assert "development" in refuse_to_start(data_dir, production).lower()


def test_a_production_folder_in_development(settings: Settings, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    production = {name: value for name, value in settings.items() if name != "KMS_DEVELOPMENT_ROOTS"}
    with Server(data_dir, production) as server:
        client = server.client()
        try:
            identity = client.http.get("/v1/identity")
        finally:
            client.close()
    assert identity.json()["development"] is False
    assert "KMS-Development" not in identity.headers
    assert "development" in refuse_to_start(data_dir, settings).lower()
