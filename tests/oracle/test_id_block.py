"""``kms measure id-block create`` beside sev-snp-measure's ``snp-create-id-block``, byte for byte."""

import base64
import random
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from sevsnpmeasure import id_block as oracle

from kms.checks import failures
from kms.cli import measure
from kms.measurement.errors import MeasurementError
from kms.measurement.id_block import ID_AUTH_LENGTH, verify_id_block

SIGNATURES = ((0x40, 512), (0x680, 512))


def write_keys(folder: Path, seed: int) -> list[str]:
    rng = random.Random(seed)
    flags = []
    for flag in ("--idkey", "--authorkey"):
        key = ec.derive_private_key(rng.getrandbits(380) + 1, ec.SECP384R1())
        path = folder / f"{flag[2:]}.pem"
        form = rng.choice([PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
        path.write_bytes(key.private_bytes(Encoding.PEM, form, NoEncryption()))
        flags += [flag, str(path)]
    return flags


def ours(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert measure.main(["id-block", "create", *argv]) == 0
    return capsys.readouterr().out


def theirs(argv: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "argv", ["snp-create-id-block", *argv])
    assert oracle.main() == 0
    return capsys.readouterr().out


def structures(line: str) -> tuple[bytes, bytes]:
    block, auth = line.removeprefix("id-block=").split(",id-auth=")
    return base64.b64decode(block, validate=True), base64.b64decode(auth, validate=True)


def without_signatures(auth: bytes) -> bytes:
    for at, length in SIGNATURES:
        auth = auth[:at] + bytes(length) + auth[at + length :]
    return auth


@pytest.mark.parametrize("seed", range(20))
def test_same_but_for_the_signatures(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ECDSA signatures differ from run to run: each side's are checked instead."""
    measurement = random.Random(seed).randbytes(48)
    encoded = base64.b64encode(measurement).decode()
    argv = ["--measurement", encoded, *write_keys(tmp_path, seed)]
    our_lines = ours(argv, capsys).splitlines()
    their_lines = theirs(argv, capsys, monkeypatch).splitlines()
    assert our_lines[1:] == their_lines[1:]
    our_block, our_auth = structures(our_lines[0])
    their_block, their_auth = structures(their_lines[0])
    assert our_block == their_block
    assert len(our_auth) == len(their_auth) == ID_AUTH_LENGTH
    assert without_signatures(our_auth) == without_signatures(their_auth)
    for auth in (our_auth, their_auth):
        verdict = verify_id_block(our_block, auth)
        assert not failures(verdict.checks)
        assert our_lines[1].endswith(base64.b64encode(verdict.id_key_digest).decode())
        assert verdict.author_key_digest is not None
        assert our_lines[2].endswith(base64.b64encode(verdict.author_key_digest).decode())


@pytest.mark.parametrize(
    "measurement", [base64.b64encode(bytes(49)).decode(), "*" + base64.b64encode(bytes(48)).decode()]
)
def test_refusals(
    measurement: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--measurement", measurement, *write_keys(tmp_path, 0)]
    assert theirs(argv, capsys, monkeypatch)
    with pytest.raises(MeasurementError):
        ours(argv, capsys)
