"""The trust file: whose signatures count, and how many are needed."""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from kms.encoding import b64url
from kms.errors import ConfigurationError
from kms.policy.history import Intent, PolicySignature, SignatureFormat
from kms.policy.sshsig import parse_armored
from kms.policy.trust import PolicyTrust, sign_statement, verify_policy_signature
from tests.unit.policy.test_sshsig import BOB, BY_SHA256, BY_SHA512, STATEMENT

ALICE, CAROL = (Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32) for seed in (1, 3))
STRANGER = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def line(key: bytes) -> str:
    return f"ed25519:{b64url(key)}"


FILE = f"""
[quorum]
widen = 2        # of the keys below
narrow = 1
[keys]
alice = "{line(public(ALICE))}"
bob = "{BOB}"
"carol@ops.example" = "{line(public(CAROL))}"
"""
TRUST = PolicyTrust.parse(FILE)

# Ed25519 points of small order: the eight, and six encodings more of some of them that decoders accept which
# do not insist on y < p, or on sign 0 where x = 0. C2SP/CCTV ed25519/README.md ("eight plus six alternative
# encodings"); the y of libsodium's list in `ge25519_has_small_order` (ed25519_ref10.c).
ORDER_8 = (
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
)
SMALL_ORDER = (
    "01" + "00" * 31,  # order 1
    "ec" + "ff" * 30 + "7f",  # order 2
    "00" * 32,  # order 4
    "00" * 31 + "80",
    *ORDER_8,
    "01" + "00" * 30 + "80",
    "ec" + "ff" * 31,
    "ee" + "ff" * 30 + "7f",
    "ee" + "ff" * 31,
    "ed" + "ff" * 30 + "7f",
    "ed" + "ff" * 31,
)


def test_it_says_who_and_how_many() -> None:
    assert set(TRUST.keys) == {"alice", "bob", "carol@ops.example"}
    assert (TRUST.needed(Intent.WIDEN), TRUST.needed(Intent.NARROW)) == (2, 1)
    assert TRUST.name_of(public(CAROL)) == "carol@ops.example"
    assert TRUST.name_of(public(STRANGER)) is None


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("[quorum]", "[quorun]", "unknown member `quorun`: did you mean `quorum`"),
        ("[keys]", "[key]", "unknown member `key`: did you mean `keys`"),
        ("[quorum]", "version = 1\n[quorum]", "unknown member `version`: known: quorum, keys"),
        ("narrow = 1", "narrow = 1\nnarow = 1", "unknown member `narow`: did you mean `narrow`"),
        ("narrow = 1", "", r"\[quorum\] needs `narrow`"),
        ("narrow = 1", "narrow = true", r"\[quorum\] needs `narrow`, a whole number"),
        ("narrow = 1", 'narrow = "1"', r"\[quorum\] needs `narrow`, a whole number"),
        ("narrow = 1", "narrow = 0", "`narrow` must be from 1 to the number of keys, 3; it is 0"),
        ("widen = 2", "widen = 4", "`widen` must be from 1 to the number of keys, 3; it is 4"),
        ("widen = 2", "widen = -1", "`widen` must be from 1"),
        ("narrow = 1", "narrow = 3", "`widen` must not be less than `narrow`"),
        ("alice =", '"" =', "name `` is not"),
        ("alice =", '"alice smith" =', "name `alice smith` is not"),
        ("alice =", f'"{"a" * 65}" =', "is not 1 to 64"),
        ("alice =", "alice.smith =", "must be a text in quotes"),
        ("alice =", "bob =", "not TOML"),
        ("ed25519:", "", "not the line of an OpenSSH public key file"),
        ("ed25519:", "ed25519:AAAA", "has 35 bytes; an Ed25519 public key has 32"),
        ("ed25519:", "ed25519:!", "not base64url"),
        ("ssh-ed25519 AAAAC3", "ssh-rsa AAAAC3", "another kind than ssh-ed25519"),
        ("ssh-ed25519 AAAAC3", "ssh-ed25519 AAAAC4", "`bob`: the SSH key"),
        (line(public(CAROL)), line(public(ALICE)), "`alice` and `carol@ops.example` have the same key"),
        (line(public(ALICE)), line(ALICE.private_bytes_raw())[:-1], "`alice`"),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_a_sentence(old: str, new: str, why: str) -> None:
    assert old in FILE
    with pytest.raises(ConfigurationError, match=why) as refused:
        PolicyTrust.parse(FILE.replace(old, new, 1))
    assert "KMS_POLICY_TRUST" in refused.value.remedy


def test_a_table_that_is_not_there_is_asked_for() -> None:
    with pytest.raises(ConfigurationError, match=r"no table \[quorum\]$"):
        PolicyTrust.parse("")
    with pytest.raises(ConfigurationError, match="number of keys, 0"):
        PolicyTrust.parse("[quorum]\nwiden = 1\nnarrow = 1\n[keys]\n")


def test_the_values_of_a_file_are_never_repeated() -> None:
    secret = "-----BEGIN OPENSSH PRIVATE KEY----- b3BlbnNzaC1rZXk"
    with pytest.raises(ConfigurationError) as refused:
        PolicyTrust.parse(FILE.replace(BOB, secret))
    assert "b3BlbnNz" not in refused.value.detail


@pytest.mark.parametrize("numbers", [(0, 0), (4, 1), (1, 2), (2, 0)])
def test_no_way_of_making_one_gives_a_quorum_of_nobody(numbers: tuple[int, int]) -> None:
    with pytest.raises(ConfigurationError):
        PolicyTrust(TRUST.keys, *numbers)


@pytest.mark.parametrize("encoded", SMALL_ORDER)
def test_a_key_of_small_order_is_refused(encoded: str) -> None:
    with pytest.raises(ConfigurationError, match="`alice` is weak"):
        PolicyTrust.parse(FILE.replace(line(public(ALICE)), line(bytes.fromhex(encoded))))


def test_under_a_key_of_small_order_anybody_could_sign_anything() -> None:
    # Why they are refused: if A is the neutral element, S = 0 and R = A satisfy S·B = R + k·A of any message
    neutral = bytes.fromhex(SMALL_ORDER[0])
    Ed25519PublicKey.from_public_bytes(neutral).verify(neutral + bytes(32), b"whatever")
    assert verify_policy_signature(
        STATEMENT, PolicySignature(SignatureFormat.ED25519, neutral, neutral + bytes(32))
    )


@pytest.mark.parametrize(
    "encoded",
    [
        "02" + "00" * 31,  # y = 2: no point has it
        "f0" + "ff" * 30 + "7f",  # y = p + 3, another encoding of y = 3
    ],
)
def test_what_is_no_point_in_its_one_encoding_is_refused(encoded: str) -> None:
    with pytest.raises(ConfigurationError, match="`alice` is weak or no"):
        PolicyTrust.parse(FILE.replace(line(public(ALICE)), line(bytes.fromhex(encoded))))


class TestSigners:
    def test_both_formats_count_and_names_are_sorted(self) -> None:
        signatures = [
            sign_statement(STATEMENT, CAROL),
            parse_armored(BY_SHA512),
            sign_statement(STATEMENT, ALICE),
        ]
        assert TRUST.signers(STATEMENT, signatures) == ("alice", "bob", "carol@ops.example")

    def test_one_key_counts_once_in_whatever_form(self) -> None:
        both = [parse_armored(BY_SHA512), parse_armored(BY_SHA256), parse_armored(BY_SHA512)]
        assert TRUST.signers(STATEMENT, both) == ("bob",)

    def test_a_bad_signature_of_a_key_does_not_hide_a_good_one(self) -> None:
        good = sign_statement(STATEMENT, ALICE)
        assert TRUST.signers(STATEMENT, [replace(good, signature=bytes(64)), good]) == ("alice",)

    def test_strangers_do_not_count(self) -> None:
        theirs = sign_statement(STATEMENT, STRANGER)
        assert verify_policy_signature(STATEMENT, theirs)
        assert TRUST.signers(STATEMENT, [theirs]) == ()

    def test_a_strangers_signature_under_a_known_key_does_not_count(self) -> None:
        theirs = sign_statement(STATEMENT, STRANGER)
        assert TRUST.signers(STATEMENT, [replace(theirs, public_key=public(ALICE))]) == ()

    @pytest.mark.parametrize(
        "other",
        [
            replace(STATEMENT, revision="sha256:" + "23" * 32),
            replace(STATEMENT, sequence=8),
            replace(STATEMENT, previous=None),
            replace(STATEMENT, kms_identity=b"\x02" * 32),
            replace(STATEMENT, intent=Intent.WIDEN),
        ],
        ids=["revision", "sequence", "previous", "KMS", "intent"],
    )
    def test_a_signature_is_for_exactly_one_statement(self, other: object) -> None:
        assert isinstance(other, type(STATEMENT))
        for signature in (sign_statement(STATEMENT, ALICE), parse_armored(BY_SHA512)):
            assert TRUST.signers(other, [signature]) == ()

    @pytest.mark.parametrize("length", [0, 63, 65])
    def test_a_signature_of_another_length_is_none(self, length: int) -> None:
        short = PolicySignature(SignatureFormat.ED25519, public(ALICE), bytes(length))
        assert TRUST.signers(STATEMENT, [short]) == ()
