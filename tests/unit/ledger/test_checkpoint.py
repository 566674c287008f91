"""Notes and checkpoints are those of C2SP: published ones verify, and what is not just so does not."""

from base64 import b64decode, b64encode

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kms.ledger.checkpoint import Checkpoint, CheckpointInvalid, CheckpointKey, open_checkpoint
from kms.ledger.merkle import EMPTY_ROOT, MAX_SIZE
from kms.ledger.signed_note import (
    MAX_NOTE_LENGTH,
    MAX_SIGNATURES,
    NoteInvalid,
    open_note,
    sign_note,
    to_base64,
    verifier_key,
)
from tests import ledger_verifier

# golang.org/x/mod sumdb/note, example_test.go: the key, and the note that it and EnochRoot signed.
NEUMANN_SIGNER = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
NEUMANN = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
SIGNED = TEXT + (
    "\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6Ryy"
    "BwJnAM=\n"
)
ENOCH = (
    "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1Rv"
    "Mc+QQ=\n"
)

ORIGIN = "attested-kms/v1/ledger/0123456789abcdef"
KEY = CheckpointKey(bytes(range(32)), ORIGIN)
CHECKPOINT = Checkpoint(origin=ORIGIN, size=70_000, root=bytes(range(32)))
NOTE = KEY.sign(CHECKPOINT)
LINE = NOTE.split("\n")[4]


def test_the_published_notes_verify() -> None:
    assert open_note(SIGNED, NEUMANN) == TEXT
    assert open_note(SIGNED + ENOCH, NEUMANN) == TEXT
    # https://c2sp.org/signed-note, "Example"
    assert (
        open_note(
            "This is an example message.\n\n— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAl"
            "TgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n",
            "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
        )
        == "This is an example message.\n"
    )


def test_signing_gives_the_published_note() -> None:
    seed = b64decode(NEUMANN_SIGNER.rpartition("+c74f20a3+")[2])[1:]
    key = Ed25519PrivateKey.from_private_bytes(seed)
    assert sign_note(TEXT, "PeterNeumann", key) == SIGNED
    assert verifier_key("PeterNeumann", key.public_key().public_bytes_raw()) == NEUMANN


def test_a_checkpoint_is_what_an_independent_verifier_reads() -> None:
    assert open_checkpoint(NOTE, KEY.verifier_key) == CHECKPOINT
    assert ledger_verifier.open_checkpoint(NOTE, KEY.verifier_key) == (ORIGIN, 70_000, bytes(range(32)))
    assert NOTE.startswith(f"{ORIGIN}\n70000\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n\n— {ORIGIN} ")


def test_cosignatures_of_others_are_passed_over() -> None:
    assert open_checkpoint(NOTE + ENOCH, KEY.verifier_key) == CHECKPOINT
    before = NOTE.replace(LINE, ENOCH + LINE)
    assert open_checkpoint(before, KEY.verifier_key) == CHECKPOINT
    # One by another key of the same name: only name and key id together say whose it is.
    other = CheckpointKey(bytes(32), ORIGIN).sign(CHECKPOINT).split("\n")[4]
    assert open_checkpoint(f"{NOTE}{other}\n", KEY.verifier_key) == CHECKPOINT
    assert open_checkpoint(NOTE + ENOCH * (MAX_SIGNATURES - 1), KEY.verifier_key) == CHECKPOINT


def broken(line: str) -> str:
    return NOTE.replace(LINE, line)


@pytest.mark.parametrize(
    "note",
    [
        "",
        "\n\n",
        NOTE[:-1],
        NOTE + "\n",
        NOTE + LINE,
        f"{NOTE}{LINE}\n",  # the signature twice
        NOTE.replace("\n\n", "\n"),
        NOTE.replace("\n\n", "\n\n\n"),
        NOTE.replace("70000", "70001"),
        NOTE.replace("70000", "70\t00"),
        NOTE.replace("\n", "\r\n"),
        NOTE.replace(ORIGIN, ORIGIN + "\x7f"),
        NOTE + "\ud800",
        NOTE + ENOCH * MAX_SIGNATURES,
        NOTE + ENOCH * (MAX_NOTE_LENGTH // len(ENOCH)),
        broken(LINE.replace("—", "-")),
        broken(LINE.replace("— ", "—")),
        broken(LINE + " "),
        broken(LINE.replace(ORIGIN, ORIGIN + "/x")),
        broken(LINE[:-1]),
        broken(LINE[:-4]),
        broken(LINE.rstrip("=")),
        broken(f"— {ORIGIN} "),
        broken(f"— {ORIGIN} {to_base64(b64decode(LINE.split()[2])[:4])}"),
        broken(f"— {ORIGIN} {to_base64(b64decode(LINE.split()[2])[:67])}"),
        NOTE + "—  AAAAAAA=\n",
        NOTE + "— other+name AAAAAAA=\n",
        NOTE + "— other name AAAAAAA=\n",
        NOTE + "— other AAAAAAA\n",
        NOTE + "— other AAAAAAB=\n",  # bits that no byte has
    ],
    ids=lambda note: note[-40:],
)
def test_a_note_that_is_not_just_so_is_refused(note: str) -> None:
    with pytest.raises(CheckpointInvalid):
        open_checkpoint(note, KEY.verifier_key)


def test_any_bit_of_a_signature_counts() -> None:
    name, encoded = LINE.split(" ")[1:]
    raw = b64decode(encoded)
    for position in range(len(raw)):
        flipped = bytearray(raw)
        flipped[position] ^= 1
        with pytest.raises(CheckpointInvalid):
            open_checkpoint(broken(f"— {name} {b64encode(flipped).decode()}"), KEY.verifier_key)


@pytest.mark.parametrize(
    "text",
    [
        f"{ORIGIN}\n1\n",
        f"{ORIGIN}\n01\n{to_base64(bytes(32))}\n",
        f"{ORIGIN}\n+1\n{to_base64(bytes(32))}\n",
        f"{ORIGIN}\n-1\n{to_base64(bytes(32))}\n",
        f"{ORIGIN}\n\u0661\n{to_base64(bytes(32))}\n",
        f"{ORIGIN}\n{MAX_SIZE + 1}\n{to_base64(bytes(32))}\n",
        f"{ORIGIN}\n1\n{to_base64(bytes(31))}\n",
        f"{ORIGIN}\n1\n{to_base64(bytes(32))[:-1]}\n",
        f"{ORIGIN}\n0\n{to_base64(bytes(32))}\n",
        f"{ORIGIN}\n1\n{to_base64(bytes(32))}\nextension\n",
        f"{ORIGIN}\n1\n{to_base64(bytes(32))}\n\n",
        f"{ORIGIN}x\n1\n{to_base64(bytes(32))}\n",
        f"\n1\n{to_base64(bytes(32))}\n",
    ],
)
def test_a_signed_text_that_is_no_checkpoint_of_the_log_is_refused(text: str) -> None:
    note = sign_note(text, ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
    assert open_note(note, KEY.verifier_key) == text
    with pytest.raises(CheckpointInvalid):
        open_checkpoint(note, KEY.verifier_key)


def test_every_mangled_verifier_key_is_refused() -> None:
    # As sumdb/note's own test does: every part of it, and every character changed.
    key = NEUMANN
    parts = {key[start:end] for start in range(len(key)) for end in range(start, len(key) + 1)} - {key}
    changed = {key[:at] + chr(ord(key[at]) + 1) + key[at + 1 :] for at in range(len(key))}
    for mangled in parts | changed:
        with pytest.raises(NoteInvalid):
            open_note(SIGNED, mangled)
    for mangled in (
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
    ):
        with pytest.raises(NoteInvalid):
            open_note(SIGNED, mangled)


def test_a_key_signs_only_for_its_log_and_keeps_its_seed_to_itself() -> None:
    with pytest.raises(ValueError, match="origin"):
        KEY.sign(Checkpoint(origin="other", size=0, root=EMPTY_ROOT))
    for origin in ("", "a b", "a+b", "a\nb", "a\u2003b", "a\x00"):
        with pytest.raises(ValueError, match="origin"):
            CheckpointKey(bytes(32), origin)
        with pytest.raises(ValueError, match="origin"):
            Checkpoint(origin=origin, size=1, root=bytes(32))
    with pytest.raises(ValueError, match="32"):
        CheckpointKey(bytes(31), ORIGIN)
    with pytest.raises(ValueError, match="leaves"):
        Checkpoint(origin=ORIGIN, size=-1, root=bytes(32))
    for text in ("", "no newline", "tab\t\n", "\ud800\n"):
        with pytest.raises(ValueError, match="note"):
            sign_note(text, ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes(32)))
    assert repr(KEY) == f"CheckpointKey({KEY.verifier_key})"
