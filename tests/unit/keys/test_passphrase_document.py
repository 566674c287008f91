"""A document under a passphrase: what the format says, and nothing that was changed is opened."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from kms.keys import passphrase_document
from kms.keys.passphrase_document import (
    NotOpened,
    PassphraseDocumentError,
    PassphraseTooShort,
    decrypt,
    is_encrypted,
)
from kms.keys.wiping import wipe

PASSPHRASE = b"correct horse battery"
FORM = "attested-kms/root-key-encrypted"
PLAINTEXT = b'{"secret": "canary"}'

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less memory than any file has, so that a derivation takes no time."""
    monkeypatch.setattr(passphrase_document, "_MEMORY", 64)


@pytest.fixture
def content() -> bytes:
    return encrypt(PLAINTEXT, PASSPHRASE)


def encrypt(plaintext: bytes, passphrase: bytes) -> bytes:
    return passphrase_document.encrypt(plaintext, passphrase, FORM, random=os.urandom)


def unbase64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def edited(content: bytes, edit: Edit) -> bytes:
    body = json.loads(content)
    edit(body)
    return json.dumps(body).encode()


def test_what_is_encrypted_is_decrypted(content: bytes) -> None:
    assert is_encrypted(content, FORM)
    assert b"canary" not in content
    assert decrypt(content, PASSPHRASE, FORM) == PLAINTEXT


def test_a_file_is_opened_by_what_the_documentation_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    body = json.loads(encrypt(PLAINTEXT, PASSPHRASE))
    assert list(body) == ["format", "version", "kdf", "nonce", "ciphertext"]
    assert (body["format"], body["version"]) == ("attested-kms/root-key-encrypted", 1)
    kdf = body["kdf"]
    # RFC 9106 section 4: 64 MiB, three passes, four lanes.
    assert {**kdf, "salt": None} == {
        "name": "argon2id",
        "memory_kib": 65536,
        "iterations": 3,
        "lanes": 4,
        "salt": None,
    }
    key = Argon2id(
        salt=unbase64(kdf["salt"]), length=32, iterations=3, lanes=4, memory_cost=kdf["memory_kib"]
    ).derive(PASSPHRASE)
    header = {name: body[name] for name in ("format", "kdf", "nonce", "version")}
    canonical = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    nonce, ciphertext = unbase64(body["nonce"]), unbase64(body["ciphertext"])
    assert (len(unbase64(kdf["salt"])), len(nonce)) == (16, 12)
    assert AESGCM(key).decrypt(nonce, ciphertext, canonical) == PLAINTEXT


def test_a_file_of_the_first_version_is_opened_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    content = b"""{
 "format": "attested-kms/root-key-encrypted",
 "version": 1,
 "kdf": {
  "name": "argon2id",
  "memory_kib": 65536,
  "iterations": 3,
  "lanes": 4,
  "salt": "A84hRfe_KL07LNzO_wvn9Q"
 },
 "nonce": "LriQGClPvw9mLP36",
 "ciphertext": "zqXSOIvUMWDEdFApbqnI2UMlpTOVwd6zyWPkFnJncnAMX4Vf"
}
"""
    assert decrypt(content, PASSPHRASE, FORM) == PLAINTEXT


def test_no_two_files_have_a_salt_or_a_nonce_in_common() -> None:
    bodies = [json.loads(encrypt(PLAINTEXT, PASSPHRASE)) for _ in range(20)]
    assert len({body["kdf"]["salt"] for body in bodies}) == len(bodies)
    assert len({body["nonce"] for body in bodies}) == len(bodies)
    assert len({body["ciphertext"] for body in bodies}) == len(bodies)


@pytest.mark.parametrize("passphrase", [b"", b"correct horse batterY", PASSPHRASE + b"\n", b"\0" * 21])
def test_another_passphrase_opens_nothing(content: bytes, passphrase: bytes) -> None:
    with pytest.raises(NotOpened):
        decrypt(content, passphrase, FORM)


def test_a_short_passphrase_encrypts_nothing() -> None:
    with pytest.raises(PassphraseTooShort):
        encrypt(PLAINTEXT, b"x" * 11)
    assert decrypt(encrypt(PLAINTEXT, b"x" * 12), b"x" * 12, FORM) == PLAINTEXT


def test_no_flipped_bit_of_what_is_encrypted_is_accepted(content: bytes) -> None:
    ciphertext = unbase64(json.loads(content)["ciphertext"])
    for bit in range(0, len(ciphertext) * 8, 7):
        flipped = bytearray(ciphertext)
        flipped[bit // 8] ^= 1 << bit % 8
        text = base64.urlsafe_b64encode(flipped).decode().rstrip("=")
        damaged = json.loads(content) | {"ciphertext": text}
        with pytest.raises(NotOpened):
            decrypt(json.dumps(damaged).encode(), PASSPHRASE, FORM)


IN_BOUNDS: dict[str, Edit] = {
    "more memory": lambda d: d["kdf"].update(memory_kib=65),
    "more passes": lambda d: d["kdf"].update(iterations=4),
    "more lanes": lambda d: d["kdf"].update(lanes=5),
    "another salt": lambda d: d["kdf"].update(salt="A" * 22),
    "another nonce": lambda d: d.update(nonce="A" * 16),
    "only the tag": lambda d: d.update(ciphertext="A" * 22),
}


@pytest.mark.parametrize("edit", IN_BOUNDS.values(), ids=IN_BOUNDS.keys())
def test_a_changed_header_opens_nothing(content: bytes, edit: Edit) -> None:
    with pytest.raises(NotOpened):
        decrypt(edited(content, edit), PASSPHRASE, FORM)


def test_the_header_is_authenticated_even_where_the_key_does_not_depend_on_it(content: bytes) -> None:
    # A document of another format, with the same key and nonce, must not pass for this one.
    another = edited(content, lambda d: d.update(format="attested-kms/another"))
    with pytest.raises(NotOpened):
        decrypt(another, PASSPHRASE, "attested-kms/another")


OUT_OF_BOUNDS: dict[str, Edit] = {
    "gigabytes": lambda d: d["kdf"].update(memory_kib=1 << 22),
    "just too much memory": lambda d: d["kdf"].update(memory_kib=(256 << 10) + 1),
    "hours": lambda d: d["kdf"].update(iterations=1 << 31),
    "just too many passes": lambda d: d["kdf"].update(iterations=11),
    "a thousand lanes": lambda d: d["kdf"].update(lanes=1000),
    "no memory": lambda d: d["kdf"].update(memory_kib=0),
    "one pass": lambda d: d["kdf"].update(iterations=1),
    "one lane": lambda d: d["kdf"].update(lanes=1),
    "negative": lambda d: d["kdf"].update(memory_kib=-1),
    "a fraction": lambda d: d["kdf"].update(iterations=3.0),
    "another function": lambda d: d["kdf"].update(name="canary"),
    "short salt": lambda d: d["kdf"].update(salt="AAAA"),
    "long salt": lambda d: d["kdf"].update(salt="A" * 23),
    "no salt": lambda d: d["kdf"].pop("salt"),
    "unknown parameter": lambda d: d["kdf"].update(canary=1),
    "short nonce": lambda d: d.update(nonce="AAAA"),
    "no nonce": lambda d: d.pop("nonce"),
    "short ciphertext": lambda d: d.update(ciphertext="A" * 20),
    "no ciphertext": lambda d: d.pop("ciphertext"),
    "later version": lambda d: d.update(version=2),
    "another format": lambda d: d.update(format="attested-kms/root-key"),
    "unknown member": lambda d: d.update(canary=1),
    "kdf of another type": lambda d: d.update(kdf="canary"),
}


@pytest.mark.parametrize("edit", OUT_OF_BOUNDS.values(), ids=OUT_OF_BOUNDS.keys())
def test_what_is_out_of_bounds_is_refused_before_a_key_is_derived(
    content: bytes, edit: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passphrase_document, "Argon2id", None)
    with pytest.raises(PassphraseDocumentError) as refused:
        decrypt(edited(content, edit), PASSPHRASE, FORM)
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"canary", b"[]", b"{}", b'{"format": "attested-kms/root-key"}'])
def test_other_texts_do_not_claim_to_be_encrypted(content: bytes) -> None:
    assert not is_encrypted(content, FORM)
    with pytest.raises(PassphraseDocumentError):
        decrypt(content, PASSPHRASE, FORM)


def test_the_derived_key_is_overwritten(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    wiped = []

    def recorded(buffer: bytearray) -> None:
        before = bytes(buffer)
        wipe(buffer)
        wiped.append((before, buffer))

    monkeypatch.setattr(passphrase_document, "wipe", recorded)
    decrypt(content, PASSPHRASE, FORM)
    kdf = json.loads(content)["kdf"]
    key = Argon2id(
        salt=unbase64(kdf["salt"]), length=32, iterations=3, lanes=4, memory_cost=kdf["memory_kib"]
    ).derive(PASSPHRASE)
    assert wiped == [(key, bytearray(32))]


def test_many_that_open_at_once_do_not_wait_for_each_other_for_ever() -> None:
    """OpenSSL's pool of threads is one for the process: derivations that share it can lock each other."""
    code = (
        "import os\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from kms.keys.passphrase_document import encrypt\n"
        "with ThreadPoolExecutor(6) as pool:\n"
        "    one = lambda _: encrypt(b'x', b'correct horse battery', 'form', random=os.urandom)\n"
        "    texts = list(pool.map(one, range(6)))\n"
        "print(len(texts))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "6\n"
