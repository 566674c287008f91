"""ID blocks: the layout, what is signed, and what must not verify."""

import base64
import json
import sys
from collections.abc import Callable
from hashlib import sha384
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from kms.checks import failures
from kms.cli import run
from kms.identifiers import Measurement
from kms.measurement.errors import MeasurementError
from kms.measurement.id_block import (
    GuestId,
    IdBlock,
    decode_key,
    encode_key,
    key_digest,
    sign_id_block,
    verify_id_block,
)

DIGEST = Measurement(bytes(range(48)))
ID_KEY = ec.derive_private_key(0x1D, ec.SECP384R1())
AUTHOR_KEY = ec.derive_private_key(0xA0, ec.SECP384R1())
BLOCK = IdBlock(
    launch_digest=DIGEST,
    family_id=GuestId(b"\xfa" * 16),
    image_id=GuestId(b"\x1a" * 16),
    guest_svn=7,
    policy=0xB0000,
)
AUTH = sign_id_block(BLOCK, ID_KEY, AUTHOR_KEY)

# Launch digest and block that virtee/sev-snp-measure (tests/test_id_block.py) and virtee/sev
# (tests/id-block.rs) publish.
PUBLISHED = [
    (
        "B28FLQi9p6cAqipgjFyqawDrrSl7bWioWkWx5mmlWLZ+G5HShKMB/mPE+gdQRn7t",
        (
            "B28FLQi9p6cAqipgjFyqawDrrSl7bWioWkWx5mmlWLZ+G5HShKMB/mPE+gdQRn7t"
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABAAAAAAAAAAAAAwAAAAAA"
        ),
    ),
    (
        "oU1jg0HlZ0Yo/h4C++3r5eWrT68d1y2JZgaOYVu5nv0T0hSzXCMXFbOOJj3GBZdF",
        (
            "oU1jg0HlZ0Yo/h4C++3r5eWrT68d1y2JZgaOYVu5nv0T0hSzXCMXFbOOJj3GBZdF"
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABAAAAAAAAAAAAAwAAAAAA"
        ),
    ),
]


@pytest.mark.parametrize(("digest", "block"), PUBLISHED)
def test_published_blocks(digest: str, block: str) -> None:
    made = IdBlock(launch_digest=Measurement(base64.b64decode(digest)))
    assert base64.b64encode(made.encode()).decode() == block
    assert IdBlock.parse(base64.b64decode(block)) == made


def test_layout() -> None:
    encoded = BLOCK.encode()
    assert len(encoded) == 96
    assert encoded[:48] == DIGEST
    assert (encoded[0x30:0x40], encoded[0x40:0x50]) == (b"\xfa" * 16, b"\x1a" * 16)
    assert encoded[0x50:] == bytes.fromhex("01000000 07000000 00000b0000000000")
    assert len(AUTH) == 4096
    assert AUTH[:0x40] == bytes.fromhex("0100000001000000") + bytes(56)
    assert AUTH[0x240:0x644] == encode_key(ID_KEY.public_key())
    assert AUTH[0x880:0xC84] == encode_key(AUTHOR_KEY.public_key())
    assert not any(AUTH[0x644:0x680] + AUTH[0xC84:])
    numbers = ID_KEY.public_key().public_numbers()
    assert AUTH[0x240:0x244] == (2).to_bytes(4, "little")
    assert int.from_bytes(AUTH[0x244 : 0x244 + 72], "little") == numbers.x
    assert int.from_bytes(AUTH[0x28C : 0x28C + 72], "little") == numbers.y


@pytest.mark.parametrize("author", [None, AUTHOR_KEY], ids=["no author", "author"])
def test_signed_block_verifies_and_names_its_keys(author: ec.EllipticCurvePrivateKey | None) -> None:
    auth = sign_id_block(BLOCK, ID_KEY, author)
    assert auth == sign_id_block(BLOCK, ID_KEY, author)
    verdict = verify_id_block(BLOCK.encode(), auth)
    assert not failures(verdict.checks)
    assert verdict.block == BLOCK
    assert verdict.id_key_digest == sha384(auth[0x240:0x644]).digest() == key_digest(ID_KEY.public_key())
    assert verdict.author_key_digest == (author and key_digest(author.public_key()))
    assert len(verdict.checks) == (1 if author is None else 2)


def replaced(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


OTHER_KEY = encode_key(ec.derive_private_key(0xE, ec.SECP384R1()).public_key())
NOT_SIGNED: dict[str, tuple[bytes, bytes, set[str]]] = {
    "another digest": (replaced(BLOCK.encode(), 0, b"\xff"), AUTH, {"id-block-signature"}),
    "another svn": (replaced(BLOCK.encode(), 0x54, b"\x08"), AUTH, {"id-block-signature"}),
    "another policy": (replaced(BLOCK.encode(), 0x5A, b"\x03"), AUTH, {"id-block-signature"}),
    "another id key": (
        BLOCK.encode(),
        replaced(AUTH, 0x240, OTHER_KEY),
        {"id-block-signature", "id-key-signature"},
    ),
    "another author": (BLOCK.encode(), replaced(AUTH, 0x880, OTHER_KEY), {"id-key-signature"}),
    "no signature": (BLOCK.encode(), replaced(AUTH, 0x40, bytes(144)), {"id-block-signature"}),
    "r beyond the field": (BLOCK.encode(), replaced(AUTH, 0x40 + 71, b"\x01"), {"id-block-signature"}),
    "bytes after s": (BLOCK.encode(), replaced(AUTH, 0x40 + 144, b"\x01"), {"id-block-signature"}),
    "unsigned author key": (BLOCK.encode(), replaced(AUTH, 0x680, bytes(512)), {"id-key-signature"}),
}


@pytest.mark.parametrize(("block", "auth", "failed"), NOT_SIGNED.values(), ids=NOT_SIGNED)
def test_not_signed(block: bytes, auth: bytes, failed: set[str]) -> None:
    assert set(failures(verify_id_block(block, auth).checks)) == failed


MALFORMED: dict[str, tuple[bytes, bytes]] = {
    "short block": (BLOCK.encode()[:-1], AUTH),
    "long auth": (BLOCK.encode(), AUTH + b"\0"),
    "version 2": (replaced(BLOCK.encode(), 0x50, b"\x02"), AUTH),
    "policy without bit 17": (replaced(BLOCK.encode(), 0x5A, b"\x09"), AUTH),
    "policy above bit 25": (replaced(BLOCK.encode(), 0x5B, b"\x04"), AUTH),
    "id key algorithm": (BLOCK.encode(), replaced(AUTH, 0, b"\x02")),
    "author key algorithm": (BLOCK.encode(), replaced(AUTH, 4, b"\x00")),
    "reserved after the algorithms": (BLOCK.encode(), replaced(AUTH, 8, b"\x01")),
    "reserved after the id key": (BLOCK.encode(), replaced(AUTH, 0x644, b"\x01")),
    "reserved at the end": (BLOCK.encode(), replaced(AUTH, 0xFFF, b"\x01")),
    "curve": (BLOCK.encode(), replaced(AUTH, 0x240, b"\x01")),
    "not on the curve": (BLOCK.encode(), replaced(AUTH, 0x244, b"\x00")),
    "left-over of the key": (BLOCK.encode(), replaced(AUTH, 0x643, b"\x01")),
    "author key without a point": (BLOCK.encode(), replaced(AUTH, 0x880, bytes(1028))),
}


@pytest.mark.parametrize(("block", "auth"), MALFORMED.values(), ids=MALFORMED)
def test_malformed(block: bytes, auth: bytes) -> None:
    with pytest.raises(MeasurementError):
        verify_id_block(block, auth)


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 96 + 4095), bit=st.integers(0, 7))
def test_no_bit_can_be_changed(at: int, bit: int) -> None:
    data = bytearray(BLOCK.encode() + AUTH)
    data[at] ^= 1 << bit
    try:
        verdict = verify_id_block(bytes(data[:96]), bytes(data[96:]))
    except MeasurementError:
        return
    assert failures(verdict.checks)


@pytest.mark.parametrize(
    ("svn", "policy"), [(1 << 32, 0x30000), (-1, 0x30000), (0, 0), (0, -1), (0, 1 << 26)]
)
def test_impossible_blocks(svn: int, policy: int) -> None:
    with pytest.raises(MeasurementError):
        IdBlock(launch_digest=DIGEST, guest_svn=svn, policy=policy)


def test_other_curves() -> None:
    wrong = ec.derive_private_key(1, ec.SECP256R1())
    with pytest.raises(MeasurementError, match="P-384"):
        sign_id_block(BLOCK, wrong)
    with pytest.raises(MeasurementError, match="P-384"):
        sign_id_block(BLOCK, ID_KEY, wrong)
    assert encode_key(decode_key(OTHER_KEY)) == OTHER_KEY


Kms = Callable[..., tuple[int, str]]


@pytest.fixture
def kms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kms:
    monkeypatch.chdir(tmp_path)

    def save(name: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, encoding: Encoding) -> None:
        form: KeySerializationEncryption = NoEncryption()
        Path(name).write_bytes(key.private_bytes(encoding, PrivateFormat.PKCS8, form))

    save("id.pem", ID_KEY, Encoding.PEM)
    save("author.der", AUTHOR_KEY, Encoding.DER)
    save("p256.pem", ec.derive_private_key(1, ec.SECP256R1()), Encoding.PEM)
    save("rsa.pem", rsa.generate_private_key(65537, 2048), Encoding.PEM)
    encrypted = ID_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    Path("encrypted.pem").write_bytes(encrypted)
    Path("public.txt").write_text("no key")

    def call(*argv: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["kms", "measure", "id-block", *argv])
        try:
            status = run(["measure", "id-block", *argv])
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        return status, capsys.readouterr().out

    return call


CREATE = ("create", "--measurement", DIGEST.hex(), "--id-key", "id.pem", "--author-key", "author.der")


def test_command_makes_what_it_verifies(kms: Kms) -> None:
    status, out = kms(*CREATE, "--family-id", "fa" * 16, "--guest-svn", "7", "--policy", "0xb0000", "--json")
    assert status == 0
    made = json.loads(out)
    assert (made["family_id"], made["guest_svn"], made["policy"]) == ("fa" * 16, 7, "0xb0000")
    given = ("verify", "--id-block", made["id_block"], "--id-auth", made["id_auth"])
    expected = (
        "--measurement", DIGEST.hex(),
        "--id-key-digest", key_digest(ID_KEY.public_key()).hex(),
        "--author-key-digest", key_digest(AUTHOR_KEY.public_key()).hex(),
    )  # fmt: skip
    assert kms(*given, *expected)[0] == 0
    status, out = kms(*given, *expected, "--json")
    assert (status, json.loads(out)["verified"]) == (0, True)
    for at in (1, 3, 5):
        wrong = list(expected)
        wrong[at] = "00" * 48
        status, out = kms(*given, *wrong, "--json")
        assert (status, json.loads(out)["verified"]) == (1, False)
        assert [check["passed"] for check in json.loads(out)["checks"]].count(False) == 1
    Path("block.bin").write_bytes(base64.b64decode(made["id_block"]))
    Path("auth.txt").write_text(made["id_auth"] + "\n")
    assert kms("verify", "--id-block", "@block.bin", "--id-auth", "@auth.txt", *expected)[0] == 0


def test_same_measurement_in_hex_and_base64(kms: Kms) -> None:
    encoded = base64.b64encode(DIGEST).decode()
    assert kms(*CREATE) == kms("create", "--measurement", encoded, *CREATE[3:])


@pytest.mark.parametrize(
    "argv",
    [
        ("create", "--measurement", "00" * 47, *CREATE[3:]),
        ("create", "--measurement", base64.b64encode(bytes(49)).decode(), *CREATE[3:]),
        (*CREATE[:3], "--id-key", "p256.pem"),
        (*CREATE[:3], "--id-key", "rsa.pem"),
        (*CREATE[:3], "--id-key", "encrypted.pem"),
        (*CREATE[:3], "--id-key", "public.txt"),
        (*CREATE[:3], "--id-key", "nothing-here"),
        (*CREATE[:3],),
        (*CREATE, "--family-id", "00"),
        (*CREATE, "--policy", "0"),
        (*CREATE, "--guest-svn", str(1 << 32)),
        ("verify", "--id-block", "AAAA", "--id-auth", "AAAA"),
        ("verify", "--id-block", "!", "--id-auth", "AAAA"),
        ("verify", "--id-block", "@nothing-here", "--id-auth", "AAAA"),
        (),
    ],
    ids=" ".join,
)
def test_wrong_use(kms: Kms, argv: tuple[str, ...]) -> None:
    assert kms(*argv) == (2, "")
    status, out = kms(*argv, "--json")
    assert status == 2
    assert json.loads(out)["error"]["detail"]
