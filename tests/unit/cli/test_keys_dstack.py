"""``kms keys import-dstack``, on a data folder of its own."""

import asyncio
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurve, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from kms.cli import run
from kms.keys.dstack import DstackRoots
from kms.settings import load_settings
from kms.wiring import open_key_stores

SCALAR = 0xF57527CEA4AB7FFB49AF99B158CDC0E3EC06398F528349EA236B7D2AFE19CEC1
CA = SCALAR.to_bytes(32, "big")
K256, OTHER_K256 = b"\x01" * 32, b"\x02" * 32
# tests/golden/keys/dstack.json
FINGERPRINT = "5df9d433e05d122dc5d6b8afa7d0ca808318234846a998e2c39380d2e0ee03ab"
K256_PUBLIC = "031b84c5567b126440995d3ed5aaba0565d71e1834604819ff9c17f5e9d5dd078f"


def p256(curve: EllipticCurve | None = None) -> EllipticCurvePrivateKey:
    return ec.derive_private_key(SCALAR, curve or ec.SECP256R1())


def pem(
    key: Any,
    form: PrivateFormat = PrivateFormat.PKCS8,
    encryption: KeySerializationEncryption | None = None,
) -> bytes:
    made: bytes = key.private_bytes(Encoding.PEM, form, encryption or NoEncryption())
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of a dstack KMS, and settings that name a data folder in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KMS_DATA_DIR", str(tmp_path / "data"))
    write("root-ca.key", pem(p256()))
    write("root-k256.key", K256)
    return tmp_path


def write(name: str, content: bytes, mode: int = 0o600) -> None:
    Path(name).write_bytes(content)
    Path(name).chmod(mode)


def bring(*options: str) -> int:
    files = ["--ca-key", "root-ca.key", "--k256-key", "root-k256.key"]
    return run(["keys", "import-dstack", *files, *options])


def kept() -> DstackRoots | None:
    async def read() -> DstackRoots | None:
        async with open_key_stores(load_settings(None)[0]) as stores:
            return await stores.foreign.dstack()

    return asyncio.run(read())


def actions(folder: Path) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(folder / "data" / "kms.sqlite3")) as connection:
        rows = connection.execute("select entry from entries where kind = 'action' order by id").fetchall()
    return [entry for (each,) in rows if (entry := json.loads(each))["action"] == "keys-import-dstack"]


def test_the_roots_are_kept_and_their_public_keys_shown(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bring() == 0
    said = capsys.readouterr()
    assert FINGERPRINT in said.out
    assert K256_PUBLIC in said.out
    for secret in (CA, K256):
        assert secret.hex() not in said.out + said.err
    assert kept() == DstackRoots(ca=CA, k256=K256)


def test_who_did_it_is_recorded_without_a_secret(folder: Path) -> None:
    assert bring() == 0
    (action,) = actions(folder)
    assert (action["role"], action["proof"], action["outcome"]) == ("admin", "command-line", "done")
    assert action["details"] == {
        "ca_spki_sha256": FINGERPRINT,
        "k256_public_key": K256_PUBLIC,
        "replace": False,
    }


def test_for_programs_the_answer_is_one_document(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = {"ca_spki_sha256": FINGERPRINT, "k256_public_key": K256_PUBLIC}
    for imported in (True, False):
        assert bring("--json") == 0
        assert json.loads(capsys.readouterr().out) == {"imported": imported, **shown}


def test_the_same_again_changes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bring() == bring() == bring("--replace") == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert len(actions(folder)) == 1


def test_others_take_their_place_only_when_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bring() == 0
    write("root-k256.key", OTHER_K256)
    capsys.readouterr()
    assert bring("--json") == 1
    assert json.loads(capsys.readouterr().out)["error"]["reason"] == "dstack-roots-differ"
    assert kept() == DstackRoots(ca=CA, k256=K256)
    assert bring("--replace") == 0
    assert kept() == DstackRoots(ca=CA, k256=OTHER_K256)
    assert [each["details"]["replace"] for each in actions(folder)] == [False, True]


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_both_forms_of_a_ca_key_are_read(folder: Path, form: PrivateFormat) -> None:
    write("root-ca.key", pem(p256(), form))
    assert bring() == 0
    assert kept() == DstackRoots(ca=CA, k256=K256)


Content = Callable[[], bytes]
WRONG: dict[str, tuple[str, Content, str]] = {
    "no PEM": ("root-ca.key", lambda: CA, "no private key in PEM"),
    "empty": ("root-ca.key", lambda: b"", "no private key in PEM"),
    "another curve": ("root-ca.key", lambda: pem(p256(ec.SECP256K1())), "not a key of P-256"),
    "another algorithm": (
        "root-ca.key",
        lambda: pem(ed25519.Ed25519PrivateKey.from_private_bytes(CA)),
        "not a key of P-256",
    ),
    "encrypted": (
        "root-ca.key",
        lambda: pem(p256(), encryption=BestAvailableEncryption(b"secret")),
        "encrypted",
    ),
    "k256 as hex": ("root-k256.key", lambda: K256.hex().encode(), "not a private key of secp256k1"),
    "k256 with a line end": ("root-k256.key", lambda: K256 + b"\n", "not a private key of secp256k1"),
    "k256 out of range": ("root-k256.key", lambda: b"\xff" * 32, "not a private key of secp256k1"),
    "k256 zero": ("root-k256.key", lambda: bytes(32), "not a private key of secp256k1"),
    "the two exchanged": ("root-k256.key", lambda: pem(p256()), "not a private key of secp256k1"),
}


@pytest.mark.parametrize(("name", "content", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_named_and_nothing_is_opened(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, content: Content, said: str
) -> None:
    write(name, content())
    assert bring() == 2
    error = capsys.readouterr().err
    assert f"{name}: {said}" in error
    assert CA.hex() not in error
    assert not (folder / "data").exists()


@pytest.mark.parametrize("name", ["root-ca.key", "root-k256.key"])
def test_a_file_that_others_can_read_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    Path(name).chmod(0o644)
    assert bring() == 2
    assert f"chmod 600 {name}" in capsys.readouterr().err
    assert not (folder / "data").exists()


@pytest.mark.parametrize("missing", ["root-ca.key", "root-k256.key"])
def test_a_file_that_is_not_there_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    Path(missing).unlink()
    assert bring() == 2
    assert missing in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--server", "https://kms:8443"], ["--token-file", "token"]])
def test_there_is_no_way_over_the_network(folder: Path, options: list[str]) -> None:
    assert bring(*options) == 2
