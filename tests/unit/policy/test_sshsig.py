"""SSH signatures over a statement: what `ssh-keygen -Y sign` makes, and nothing else."""

import base64
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kms.errors import MalformedRequest
from kms.labels import POLICY_STATEMENT, frame, labelled
from kms.policy.history import Intent, PolicySignature, SignatureFormat
from kms.policy.sshsig import SshSignature, armored, parse_armored, public_key_of_line
from kms.policy.statement import SSH_NAMESPACE, Statement
from kms.policy.trust import sign_statement, verify_policy_signature

STATEMENT = Statement(
    revision="sha256:" + "22" * 32,
    sequence=7,
    previous="sha256:" + "11" * 32,
    kms_identity=b"\x01" * 32,
    intent=Intent.NARROW,
)

# Made by OpenSSH 9.2: `ssh-keygen -Y sign -n attested-kms/v1/policy -O hashalg=…` over `STATEMENT.canonical`.
BOB = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB/gJHlISAh3uQWLV/8o5JbIQAmGmRfVlJ7nqDVUgNDF bob@laptop"
BY_SHA256 = """\
-----BEGIN SSH SIGNATURE-----
U1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAgH+AkeUhICHe5BYtX/yjklshACY
aZF9WUnueoNVSA0MUAAAAWYXR0ZXN0ZWQta21zL3YxL3BvbGljeQAAAAAAAAAGc2hhMjU2
AAAAUwAAAAtzc2gtZWQyNTUxOQAAAECUAIoFLRkmQCfHcBcAs20OoR5YrzmgKWcnz0i+XR
QTQlOwKw3Exx02H6L7c+QDTdSWxKi/aEZXaCHX9FruKT8P
-----END SSH SIGNATURE-----
"""
BY_SHA512 = """\
-----BEGIN SSH SIGNATURE-----
U1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAgH+AkeUhICHe5BYtX/yjklshACY
aZF9WUnueoNVSA0MUAAAAWYXR0ZXN0ZWQta21zL3YxL3BvbGljeQAAAAAAAAAGc2hhNTEy
AAAAUwAAAAtzc2gtZWQyNTUxOQAAAECje8AxfseZ3q6wyfBb/Y9Qs64e6JqNlL33e1Uj3m
HrjdTeCFWfzUQDw48LPT4giAZyTOvWHHZEdgWOdCGEp2oF
-----END SSH SIGNATURE-----
"""
# `-n file`, what `ssh-keygen -Y sign` examples show.
FOR_FILES = """\
-----BEGIN SSH SIGNATURE-----
U1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAgH+AkeUhICHe5BYtX/yjklshACY
aZF9WUnueoNVSA0MUAAAAEZmlsZQAAAAAAAAAGc2hhNTEyAAAAUwAAAAtzc2gtZWQyNTUx
OQAAAECYKxvH84cqsf9RhTZyEH23G5LvT2OTuYYn1v/N2B6D5WxAbxxVXz+uc3aXcCONP0
TZYhj8ZV6eJv//iU+GUtgF
-----END SSH SIGNATURE-----
"""
# With a key of `ssh-keygen -t ecdsa`.
BY_ECDSA = """\
-----BEGIN SSH SIGNATURE-----
U1NIU0lHAAAAAQAAAGgAAAATZWNkc2Etc2hhMi1uaXN0cDI1NgAAAAhuaXN0cDI1NgAAAE
EE24xg3GZTXxfpfUrKAgtXadq3yhBCZz+GK9Osj39a0J70yAWu9Us1l0tZD4yxX01FZG0p
pwZoyAn9st71ZVcKdgAAABZhdHRlc3RlZC1rbXMvdjEvcG9saWN5AAAAAAAAAAZzaGE1MT
IAAABkAAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAABJAAAAIGiKpGiUfw4UHHBJQ7cLmhuY
agfdXialGOUKb4sYrAfbAAAAIQC+5srjkdxUOmU6PX2jPABT6qVqkSepZ754ArqVGyrHVQ
==
-----END SSH SIGNATURE-----
"""

KEY = Ed25519PrivateKey.from_private_bytes(b"\x09" * 32)
PUBLIC = KEY.public_key().public_bytes_raw()
NAMESPACE = SSH_NAMESPACE.encode()


def key_blob(kind: bytes = b"ssh-ed25519", key: bytes = PUBLIC) -> bytes:
    return frame(kind, key)


def blob(
    *,
    magic: bytes = b"SSHSIG",
    version: int = 1,
    key: bytes | None = None,
    namespace: bytes = NAMESPACE,
    reserved: bytes = b"",
    hash_name: bytes = b"sha512",
    inner: bytes | None = None,
    after: bytes = b"",
) -> bytes:
    """Give a signature of PROTOCOL.sshsig by its fields; all but what is changed is right."""
    inner = frame(b"ssh-ed25519", b"\x05" * 64) if inner is None else inner
    key = key_blob() if key is None else key
    return magic + version.to_bytes(4, "big") + frame(key, namespace, reserved, hash_name, inner) + after


def in_armor(data: bytes) -> str:
    text = base64.b64encode(data).decode()
    return f"-----BEGIN SSH SIGNATURE-----\n{text}\n-----END SSH SIGNATURE-----\n"


@pytest.mark.parametrize("text", [BY_SHA256, BY_SHA512], ids=["sha256", "sha512"])
def test_what_ssh_keygen_signed_verifies_for_its_key_and_statement_only(text: str) -> None:
    signature = parse_armored(text)
    assert (signature.format, signature.public_key) == (SignatureFormat.SSHSIG, public_key_of_line(BOB))
    assert verify_policy_signature(STATEMENT, signature)
    other = Statement(
        revision=STATEMENT.revision,
        sequence=8,
        previous=STATEMENT.previous,
        kms_identity=STATEMENT.kms_identity,
        intent=STATEMENT.intent,
    )
    assert not verify_policy_signature(other, signature)


@pytest.mark.parametrize("text", [BY_SHA256, BY_SHA512], ids=["sha256", "sha512"])
def test_a_signature_is_written_as_ssh_keygen_wrote_it(text: str) -> None:
    assert armored(parse_armored(text)) == text


def test_every_flipped_bit_of_a_real_signature_is_noticed() -> None:
    whole = parse_armored(BY_SHA512).signature
    for position in range(len(whole) * 8):
        data = bytearray(whole)
        data[position // 8] ^= 1 << position % 8
        flipped = PolicySignature(SignatureFormat.SSHSIG, public_key_of_line(BOB), bytes(data))
        assert not verify_policy_signature(STATEMENT, flipped), position


def test_line_ends_of_windows_and_blank_ends_do_no_harm() -> None:
    assert parse_armored(BY_SHA512.replace("\n", "\r\n") + "\n\n") == parse_armored(BY_SHA512)


def test_a_signature_for_another_namespace_is_refused_and_told_the_right_one() -> None:
    with pytest.raises(MalformedRequest, match="-n attested-kms/v1/policy"):
        parse_armored(FOR_FILES)


def test_another_kind_of_key_is_refused() -> None:
    with pytest.raises(MalformedRequest, match="another kind than ssh-ed25519"):
        parse_armored(BY_ECDSA)


def test_a_key_on_a_hardware_token_is_refused_with_the_reason() -> None:
    # OpenSSH PROTOCOL.u2f: the key has an application beside the point, the signature flags and a counter.
    token = frame(b"sk-ssh-ed25519@openssh.com", PUBLIC, b"ssh:")
    with pytest.raises(MalformedRequest, match="hardware token"):
        parse_armored(in_armor(blob(key=token)))
    line = f"sk-ssh-ed25519@openssh.com {base64.b64encode(token).decode()} me"
    with pytest.raises(MalformedRequest, match="hardware token"):
        public_key_of_line(line)


def test_the_fields_of_this_test_are_a_signature() -> None:
    assert SshSignature.parse(blob()).public_key == PUBLIC


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "ends too early"),
        (b"SSHSIG", "ends too early"),
        (blob(magic=b"SSHSIQ"), "begin with SSHSIG"),
        (blob(version=0), "version 0"),
        (blob(version=2), "version 2"),
        (blob(key=key_blob(key=PUBLIC[:31])), "31 bytes"),
        (blob(key=key_blob() + b"\x00"), "1 bytes too many"),
        (blob(key=key_blob(b"ssh-ed25519-cert-v01@openssh.com")), "another kind"),
        (blob(key=b""), "ends too early"),
        (blob(namespace=b""), "another namespace"),
        (blob(namespace=NAMESPACE + b"\x00"), "another namespace"),
        (blob(reserved=b"x"), "reserved"),
        (blob(hash_name=b"sha1"), "sha256 or sha512"),
        (blob(hash_name=b"SHA512"), "sha256 or sha512"),
        (blob(inner=frame(b"ssh-ed25519", b"\x05" * 63)), "63 bytes"),
        (blob(inner=frame(b"ssh-ed25519", b"\x05" * 64, b"")), "4 bytes too many"),
        (blob(inner=frame(b"ssh-rsa", b"\x05" * 64)), "another kind"),
        (blob(after=b"\x00"), "1 bytes too many"),
        (blob()[:-1], "ends too early"),
        (b"SSHSIG\x00\x00\x00\x01\xff\xff\xff\xff", "ends too early"),
    ],
)
def test_what_is_not_exactly_a_signature_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(MalformedRequest, match=why):
        SshSignature.parse(data)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n" + BY_SHA512,
        BY_SHA512 + BY_SHA512,
        BY_SHA512.replace("END", "FIN"),
        BY_SHA512.replace("U1NI", "U1N\u0131"),
        BY_SHA512.replace("U1NI", "U1 NI"),
        BY_SHA512.replace("oF\n", "oF=\n"),
        "-----BEGIN SSH SIGNATURE-----\n-----END SSH SIGNATURE-----\n",
        "-----BEGIN SSH SIGNATURE-----\n" + "A" * 5000 + "\n-----END SSH SIGNATURE-----\n",
    ],
)
def test_what_is_not_one_armored_signature_is_refused(text: str) -> None:
    with pytest.raises(MalformedRequest):
        parse_armored(text)


def test_the_key_that_is_named_must_be_the_key_inside() -> None:
    # Whoever stores Bob's signature under Alice's key must not make Alice a signer.
    signature = parse_armored(BY_SHA512)
    renamed = PolicySignature(SignatureFormat.SSHSIG, PUBLIC, signature.signature)
    assert not verify_policy_signature(STATEMENT, renamed)


def test_a_plain_signature_is_no_ssh_signature_nor_the_other_way_round() -> None:
    plain = sign_statement(STATEMENT, KEY)
    as_ssh = PolicySignature(
        SignatureFormat.SSHSIG, PUBLIC, blob(inner=frame(b"ssh-ed25519", plain.signature))
    )
    assert verify_policy_signature(STATEMENT, plain)
    assert not verify_policy_signature(STATEMENT, as_ssh)
    inner = SshSignature.parse(parse_armored(BY_SHA512).signature)
    as_plain = PolicySignature(SignatureFormat.ED25519, inner.public_key, inner.signature)
    assert not verify_policy_signature(STATEMENT, as_plain)
    # What an SSH agent signs begins with SSHSIG or a length; the plain form begins with the label.
    assert not labelled(POLICY_STATEMENT, STATEMENT.canonical).startswith((b"SSHSIG", b"\x00"))


class TestPublicKeyLine:
    def test_a_line_with_and_without_a_comment(self) -> None:
        assert public_key_of_line(BOB) == public_key_of_line(BOB.rsplit(" ", 1)[0] + "\n")
        assert public_key_of_line(BOB + " and more words") == public_key_of_line(BOB)

    @pytest.mark.parametrize(
        "line",
        [
            "",
            "ssh-ed25519",
            "ssh-ed25519 !!!!",
            "ssh-ed25519 " + base64.b64encode(key_blob(b"ssh-rsa")).decode(),
            "ssh-rsa " + base64.b64encode(key_blob()).decode(),
            "ssh-ed25519 " + base64.b64encode(key_blob() + b"x").decode(),
            'command="x" ' + BOB,
            BOB + "\n" + BOB,
            "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNz\n-----END OPENSSH PRIVATE KEY-----",
            BOB + "x" * 5000,
        ],
    )
    def test_anything_else_is_refused(self, line: str) -> None:
        with pytest.raises(MalformedRequest):
            public_key_of_line(line)


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
@pytest.mark.parametrize("hash_name", ["sha256", "sha512"])
def test_the_ssh_keygen_of_this_machine_signs_what_we_verify(tmp_path: Path, hash_name: str) -> None:
    def ssh_keygen(*arguments: str) -> None:
        subprocess.run(["ssh-keygen", "-q", *arguments], check=True, stdin=subprocess.DEVNULL)

    key, statement = tmp_path / "key", tmp_path / "statement"
    statement.write_bytes(STATEMENT.canonical)
    ssh_keygen("-t", "ed25519", "-N", "", "-C", "a comment", "-f", str(key))
    ssh_keygen(
        "-Y", "sign", "-n", SSH_NAMESPACE, "-O", f"hashalg={hash_name}", "-f", str(key), str(statement)
    )
    signature = parse_armored((tmp_path / "statement.sig").read_text())
    assert signature.public_key == public_key_of_line((tmp_path / "key.pub").read_text())
    assert verify_policy_signature(STATEMENT, signature)
