"""Backups of the root: what the format says, and nothing that was changed is opened."""

import base64
import json
import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kms.keys import backup as module
from kms.keys.backup import Backup, BackupRejected
from kms.keys.dstack import DstackRoots
from kms.keys.epochs import Epoch, EpochTable
from kms.keys.hand_over import MAX_HAND_OVERS
from kms.keys.key_history import KeyHistory
from kms.keys.recovery_key import RecoveryKey, RecoveryRecipient
from kms.keys.root_copy import Description, RootCopy
from kms.keys.root_messages import MAX_EPOCHS, Mode
from kms.keys.wiping import wipe

NOW = datetime(2026, 11, 22, 12, 0, 0, 654321, tzinfo=UTC)
SECRETS = {1: b"canary-one" + b"1" * 22, 2: b"canary-two" + b"2" * 22}
DSTACK = DstackRoots(ca=b"\x01" * 32, k256=b"\x02" * 32)
ROOT = RootCopy(mode=Mode.PRODUCTION, secrets=SECRETS, dstack=DSTACK)
FIRST = Epoch(
    number=1,
    made_at=NOW,
    made_by="canary-ada",
    active_from=datetime(1970, 1, 1, tzinfo=UTC),
    retired_at=NOW + timedelta(days=1),
    retired_by="canary-bea",
)
SECOND = Epoch(number=2, made_at=NOW, made_by="canary-ada", active_from=NOW + timedelta(hours=1))
HISTORY = KeyHistory.of(EpochTable((FIRST, SECOND)), [NOW, NOW + timedelta(days=2)])
ONE_EPOCH = KeyHistory.of(EpochTable((FIRST,)), [])
ALICE, BOB, CAROL = (RecoveryKey(bytes([seed]) * 96) for seed in (1, 2, 3))

Edit = Callable[[dict[str, Any]], object]


def recipient(name: str, key: RecoveryKey) -> RecoveryRecipient:
    return RecoveryRecipient(name, key.public_key)


def sealed(root: RootCopy = ROOT, history: KeyHistory = HISTORY) -> Backup:
    recipients = [recipient("alice", ALICE), recipient("bob", BOB)]
    return Backup.seal(root, recipients, history=history, now=NOW, random=os.urandom)


@pytest.fixture(scope="module")
def file() -> bytes:
    return sealed().to_json()


def edited(file: bytes, edit: Edit) -> bytes:
    body = json.loads(file)
    edit(body)
    return json.dumps(body).encode()


def reason(file: bytes, key: RecoveryKey = ALICE) -> str:
    with pytest.raises(BackupRejected) as rejected:
        Backup.parse(file).open(key)
    assert "canary" not in rejected.value.detail
    assert rejected.value.reason is not None
    return rejected.value.reason


def unbase64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def flipped(text: str) -> str:
    """Change one bit of base64url or of hex, and nothing else."""
    if set(text) <= set("0123456789abcdef"):
        return ("1" if text[0] == "0" else "0") + text[1:]
    return ("B" if text[0] == "A" else "A") + text[1:]


@pytest.mark.parametrize("key", [ALICE, BOB], ids=["alice", "bob"])
def test_each_recipient_alone_opens_it(file: bytes, key: RecoveryKey) -> None:
    assert Backup.parse(file).open(key) == ROOT


def test_a_root_without_imported_roots_and_with_many_epochs() -> None:
    root = RootCopy(mode=Mode.DEVELOPMENT, secrets={epoch: os.urandom(32) for epoch in range(1, 301)})
    assert Backup.parse(sealed(root).to_json()).open(BOB) == root


def test_the_longest_one_is_read() -> None:
    """What a root key file may hold, to as many as may be listed: no backup is made that cannot be read."""
    root = RootCopy(
        mode=Mode.PRODUCTION,
        secrets={each: bytes([1]) * 32 for each in range(1, MAX_EPOCHS + 1)},
        dstack=DSTACK,
    )
    recipients = [
        recipient("r" * 60 + str(each), RecoveryKey.generate()) for each in range(module.MAX_RECIPIENTS)
    ]
    epochs = tuple(
        Epoch(
            number=each, made_at=NOW, made_by="a" * 256, active_from=NOW, retired_at=NOW, retired_by="a" * 256
        )
        for each in root.secrets
    )
    history = KeyHistory.of(EpochTable(epochs), [NOW] * MAX_HAND_OVERS)
    file = Backup.seal(root, recipients, history=history, now=NOW, random=os.urandom).to_json()
    assert len(file) <= module.MAX_FILE
    assert len(Backup.parse(file).description.check_values) == MAX_EPOCHS


def test_nothing_of_the_root_can_be_read_in_it(file: bytes) -> None:
    text = file.decode()
    for secret in (*SECRETS.values(), DSTACK.ca, DSTACK.k256):
        for shown in (
            secret.hex(),
            base64.urlsafe_b64encode(secret).decode().rstrip("="),
            repr(secret)[2:-1],
        ):
            assert shown not in text
    assert "canary" not in text + repr(ROOT) + repr(Backup.parse(file)) + repr(ALICE)


def test_it_says_what_a_lost_database_knew_of_its_epochs(file: bytes) -> None:
    history = Backup.parse(file).description.history
    assert history == HISTORY
    first, second = history.epochs.epochs
    assert (first.active_from, first.retired_at) == (
        FIRST.active_from,
        datetime(2026, 11, 23, 12, tzinfo=UTC),
    )
    assert (second.active_from, second.retired_at) == (datetime(2026, 11, 22, 13, tzinfo=UTC), None)
    assert {first.made_by, first.retired_by, second.made_by} == {"restored"}
    assert len(history.later_generations) == 2


def test_an_epoch_that_was_never_adopted_is_in_it_as_that() -> None:
    backup = Backup.parse(sealed(history=ONE_EPOCH).to_json())
    assert [each["adopted"] is None for each in json.loads(backup.to_json())["epochs"]] == [False, True]
    assert backup.open(ALICE) == ROOT
    assert [each.number for each in backup.description.history.epochs.epochs] == [1]


def test_it_is_opened_by_what_the_documentation_says(file: bytes) -> None:
    body = json.loads(file)
    assert (body["format"], body["version"]) == ("attested-kms/root-backup", 1)
    assert (body["mode"], body["created_at"]) == ("production", "2026-11-22T12:00:00Z")
    ciphertext = unbase64(body.pop("ciphertext"))
    enclosed = [unbase64(each.pop("sealed")) for each in body["recipients"]]
    header = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    context = b"attested-kms/v1/backup\x00" + sha256(header).digest()
    private = bytes([2]) * 96
    bob = hpke.MLKEM768X25519PrivateKey(
        MLKEM768PrivateKey.from_seed_bytes(private[:64]), X25519PrivateKey.from_private_bytes(private[64:])
    )
    suite = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    content_key = suite.decrypt(enclosed[1], bob, context)
    plaintext = AESGCM(content_key).decrypt(unbase64(body["nonce"]), ciphertext, context)
    assert plaintext == SECRETS[1] + SECRETS[2] + DSTACK.ca + DSTACK.k256
    assert [each["public_key_sha256"] for each in body["recipients"]] == [
        sha256(key.public_key).hexdigest() for key in (ALICE, BOB)
    ]


def test_a_backup_of_the_first_version_is_opened_for_ever() -> None:
    assert Backup.parse(FIRST_VERSION).open(RecoveryKey(bytes(range(96)))) == RootCopy(
        mode=Mode.PRODUCTION, secrets={1: bytes(range(32))}
    )


def test_no_two_backups_have_a_content_key_or_nonce_in_common() -> None:
    backups = [sealed() for _ in range(5)]
    assert len({each.nonce for each in backups}) == len({each.ciphertext for each in backups}) == 5


def test_somebody_else_is_told_whose_it_is(file: bytes) -> None:
    with pytest.raises(BackupRejected, match="alice, bob") as rejected:
        Backup.parse(file).open(CAROL)
    assert rejected.value.reason == "backup-not-for-key"


CHANGES: dict[str, Edit] = {
    "mode": lambda d: d.update(mode="development"),
    "created_at": lambda d: d.update(created_at="2026-11-22T12:00:01Z"),
    "identity": lambda d: d.update(identity=flipped(d["identity"])),
    "first check value": lambda d: d["epochs"][0].update(check_value=flipped(d["epochs"][0]["check_value"])),
    "last check value": lambda d: d["epochs"][1].update(check_value=flipped(d["epochs"][1]["check_value"])),
    "a retirement gone": lambda d: d["epochs"][0]["adopted"].update(retired_at=None),
    "a retirement more": lambda d: d["epochs"][1]["adopted"].update(retired_at="2026-11-22T12:00:00Z"),
    "an earlier start": lambda d: d["epochs"][1]["adopted"].update(active_from="2026-11-22T12:00:00Z"),
    "an epoch that waits again": lambda d: d["epochs"][1].update(adopted=None),
    "a generation less": lambda d: d["later_generations"].pop(),
    "a generation more": lambda d: d["later_generations"].append("2026-11-22T12:00:00Z"),
    "dstack's CA": lambda d: d["dstack"].update(ca_spki_sha256=flipped(d["dstack"]["ca_spki_sha256"])),
    "dstack's k256": lambda d: d["dstack"].update(k256_public_key=flipped(d["dstack"]["k256_public_key"])),
    "a name": lambda d: d["recipients"][1].update(name="carol"),
    "another's fingerprint": lambda d: d["recipients"][1].update(
        public_key_sha256=flipped(d["recipients"][1]["public_key_sha256"])
    ),
    "a recipient removed": lambda d: d["recipients"].pop(),
    "a recipient twice": lambda d: d["recipients"].append(deepcopy(d["recipients"][1])),
    "recipients in another order": lambda d: d["recipients"].reverse(),
    "nonce": lambda d: d.update(nonce=flipped(d["nonce"])),
    "ciphertext": lambda d: d.update(ciphertext=flipped(d["ciphertext"])),
    "what is sealed": lambda d: d["recipients"][0].update(sealed=flipped(d["recipients"][0]["sealed"])),
    "what is sealed to another": lambda d: d["recipients"][0].update(sealed=d["recipients"][1]["sealed"]),
}


@pytest.mark.parametrize("edit", CHANGES.values(), ids=CHANGES)
def test_whatever_was_changed_nothing_is_opened(file: bytes, edit: Edit) -> None:
    assert reason(edited(file, edit)) == "cannot-open"


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for name, each in children:
        yield from leaves(each, (*path, name))
    if not isinstance(value, dict | list):
        yield path


def test_no_member_can_be_changed_whatever_the_format_will_have(file: bytes) -> None:
    paths = list(leaves(json.loads(file)))
    assert len(paths) == 27
    for path in paths:
        body = json.loads(file)
        place = body
        for name in path[:-1]:
            place = place[name]
        value = place[path[-1]]
        place[path[-1]] = flipped(value) if isinstance(value, str) else 1 if value is None else value + 1
        if path == ("recipients", 1, "sealed"):
            continue  # Bob's; the next test
        with pytest.raises(BackupRejected):
            Backup.parse(json.dumps(body).encode()).open(ALICE)


def test_damage_to_what_another_was_sealed_keeps_nobody_out(file: bytes) -> None:
    damaged = edited(file, lambda d: d["recipients"][1].update(sealed=flipped(d["recipients"][1]["sealed"])))
    assert Backup.parse(damaged).open(ALICE) == ROOT
    assert reason(damaged, BOB) == "cannot-open"


def test_parts_of_two_backups_make_none(file: bytes) -> None:
    other = json.loads(sealed(RootCopy(mode=Mode.PRODUCTION, secrets=SECRETS, dstack=None)).to_json())
    same = json.loads(sealed().to_json())
    assert reason(edited(file, lambda d: d.update(recipients=same["recipients"]))) == "cannot-open"
    assert reason(edited(file, lambda d: d.update(recipients=other["recipients"]))) == "cannot-open"
    assert reason(edited(file, lambda d: d.update(ciphertext=same["ciphertext"]))) == "cannot-open"


MALFORMED: dict[str, Edit] = {
    "another format": lambda d: d.update(format="attested-kms/root-key"),
    "later version": lambda d: d.update(version=2),
    "unknown mode": lambda d: d.update(mode="canary"),
    "no time": lambda d: d.update(created_at="yesterday"),
    "short identity": lambda d: d.update(identity="AAAA"),
    "no epochs": lambda d: d.update(epochs=[]),
    "an epoch twice": lambda d: d["epochs"][1].update(epoch=1),
    "a gap": lambda d: d["epochs"][1].update(epoch=3),
    "without the first": lambda d: d["epochs"].pop(0),
    "without the last": lambda d: d["epochs"].pop(),
    "epochs in another order": lambda d: d["epochs"].reverse(),
    "short check value": lambda d: d["epochs"][0].update(check_value="AAAA"),
    "no word of adoption": lambda d: d["epochs"][0].pop("adopted"),
    "nothing adopted": lambda d: [each.update(adopted=None) for each in d["epochs"]],
    "adopted after one that was not": lambda d: d["epochs"][0].update(adopted=None),
    "no start": lambda d: d["epochs"][0]["adopted"].pop("active_from"),
    "no word of retirement": lambda d: d["epochs"][0]["adopted"].pop("retired_at"),
    "a start that is no time": lambda d: d["epochs"][0]["adopted"].update(active_from="canary"),
    "more of an adoption": lambda d: d["epochs"][0]["adopted"].update(made_by="canary"),
    "no word of generations": lambda d: d.pop("later_generations"),
    "too many generations": lambda d: d.update(later_generations=["2026-11-22T12:00:00Z"] * 101),
    "a generation that is no time": lambda d: d.update(later_generations=["canary"]),
    "more of an epoch": lambda d: d["epochs"][0].update(secret="canary"),
    "no word of dstack": lambda d: d.pop("dstack"),
    "dstack gone": lambda d: d.update(dstack=None),
    "short dstack": lambda d: d["dstack"].update(k256_public_key="00"),
    "nobody": lambda d: d.update(recipients=[]),
    "too many": lambda d: d.update(recipients=d["recipients"] * 33),
    "short sealed": lambda d: d["recipients"][0].update(sealed="AAAA"),
    "long name": lambda d: d["recipients"][0].update(name="a" * 65),
    "more of a recipient": lambda d: d["recipients"][0].update(canary=1),
    "short nonce": lambda d: d.update(nonce="AAAA"),
    "short ciphertext": lambda d: d.update(ciphertext=d["ciphertext"][:-4]),
    "no ciphertext": lambda d: d.pop("ciphertext"),
    "unknown member": lambda d: d.update(canary=1),
    "null": lambda d: d.update(recipients=None),
}


@pytest.mark.parametrize("edit", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_backup_is_refused_without_a_key(file: bytes, edit: Edit) -> None:
    with pytest.raises(BackupRejected) as rejected:
        Backup.parse(edited(file, edit))
    assert rejected.value.reason == "backup-malformed"
    assert "canary" not in rejected.value.detail


@pytest.mark.parametrize("kept", [0, 1, 100, 1000, -2])
def test_a_truncated_file_is_refused(file: bytes, kept: int) -> None:
    assert reason(file[:kept]) == "backup-malformed"


def test_who_seals_something_else_than_is_said_is_found_out(
    file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody can seal to a public key, also a root under the description of another one."""
    described = Backup.parse(file).description

    def other(*_: object) -> Description:
        return described

    monkeypatch.setattr(RootCopy, "described", other)
    forged = sealed(RootCopy(mode=Mode.PRODUCTION, secrets={1: b"x" * 32, 2: b"y" * 32}, dstack=DSTACK))
    monkeypatch.undo()
    assert reason(forged.to_json()) == "backup-inconsistent"


@pytest.mark.parametrize(
    "recipients",
    [
        [],
        [recipient("alice", ALICE), recipient("bob", ALICE)],
        [recipient("a", ALICE)] * 65,
    ],
    ids=["nobody", "the same key twice", "too many"],
)
def test_to_whom_it_is_never_sealed(recipients: list[RecoveryRecipient]) -> None:
    with pytest.raises(ValueError, match="different recipients"):
        Backup.seal(ROOT, recipients, history=HISTORY, now=NOW, random=os.urandom)


@pytest.mark.parametrize(
    "secrets",
    [{}, {2: b"2" * 32}, {1: b"1" * 32, 3: b"3" * 32}, {1: b"1" * 31}, {1: bytes(32)}],
    ids=["no epoch", "no first epoch", "a gap", "short", "all zero"],
)
def test_what_is_no_root_is_never_sealed(secrets: dict[int, bytes]) -> None:
    with pytest.raises(ValueError, match="epoch"):
        RootCopy(mode=Mode.PRODUCTION, secrets=secrets)


def test_the_secrets_are_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    wiped: list[tuple[bytes, bytearray]] = []

    def recorded(buffer: bytearray) -> None:
        before = bytes(buffer)
        wipe(buffer)
        wiped.append((before, buffer))

    monkeypatch.setattr(module, "wipe", recorded)
    sealed().open(ALICE)
    joined = SECRETS[1] + SECRETS[2] + DSTACK.ca + DSTACK.k256
    assert [before for before, _ in wiped].count(joined) == 2
    assert len(wiped) == 4
    assert not any(any(buffer) for _, buffer in wiped)


FIRST_VERSION = b"""{
 "format": "attested-kms/root-backup",
 "version": 1,
 "mode": "production",
 "created_at": "2026-11-22T00:00:00Z",
 "identity": "BwRZ5IWysEvHHDWPJ1Ey0MVacwtC_rGVcMVnyJfFyd8",
 "later_generations": [],
 "epochs": [
  {
   "epoch": 1,
   "check_value": "-UcaFz8H8ag3kQCrvj1Lb_zTCn4xUMSlQrTatwsr_L4",
   "adopted": {
    "made_at": "2026-01-02T03:04:05Z",
    "active_from": "1970-01-01T00:00:00Z",
    "retired_at": null
   }
  }
 ],
 "dstack": null,
 "recipients": [
  {
   "name": "alice",
   "public_key_sha256": "d99e4496af749b54ee4a2d270c8057450624ecc5dc0866295ffc504a26134ad4",
   "sealed": "62MJILMabILRvXKHYnXrPcMN0__urt3w6A8T1AmXr2t_jczMLI\
zgQMuQBvz1-zocVXUe-fN3Mq174B4WVpDWlOr3MYH6g8d0GZknBPqayNgkKTTwhqJY773_uMHaE80FlqMycG3LTzVvrqj-t\
Pe_LoZk3eWLLA8YfQBjIarvvPGcrNI-cyqes1Iw85M7APqgcbpGlFrZLYT1g7r-j2sO7s74cuLPvBFe7w_aXyK96GJSq8oy\
P-JFCec--AShDNsdhGEU0804JACHVaK90QzdzSVznJ3KbxvW5CJGL0Nl_5NZlOMGG0Z8BuN4vC2ZJmJw06DUPdx0UK62o6w\
JU6EOJ_RKZWTRIscsPjAXerjh2wVQbU6xG2ZG5tGMaw71S-o_6vbWRrG7MAWZWPvll6HTAPgsSYEweklQ2GGOhPBQmHZNSF\
WlqBjRnF71xnRZG51sINlJHRZq8sOMcqw8Vlp_iS_iP8QNccOd22_5SeMMkgdeqIW7MFYqmCbdNFiqME0CASeN_QwaLHnx5\
my9SwY_M12heAHBIlE4n_0n7mPf0Tz5AijHbSA3X3cOyspR9Zjea7FaL-sPmToPBuAiC5lv0QUrhlaP3SKEk6KXMrQeys8a\
8Q-Le29nmM8KDkXiwtKLyAArLWXCp718vlRmwkIyKcjK13Xq3OMvYMyJcRNtf1yg2gvu0igke_kSen4vYfxz8qI81h0mtHv\
jS6FvO8swNZ1W8z3tZbBeaq2PpDXmbSEZPXxy1Ts6oXyKPA8NKF_GqrsSkGDQP-rmgnga1KN9w40mlvM5qbGph5ZdLjhOIL\
t_rKhHDig_ve2aufX2Eyi73-tO0aJ5SmT896V5myoCjQ84ddVu8SB55m5uIsNXuy8KX7Pei04xUxSr61uv2ReV-msWaY2RD\
SFFmdklf7GpXYjko0eYmAaBmbYyGbhQ5Y3w7anfh8b4XYVfa0rEf2sOJ1-u4OPFePmwECEQZHsVaRFKPv6yBLXrldL2IRTb\
QHPx8TJ_C_73snSWEMHK6hUHw8_G6G3tp55RdNT3GTitrObsrM6NRbRoKcD1hgEKvCybwxOFDZh7EBYHE_VwEGgX0FAJ_kt\
H-bhdG5xcApiYG5WUSx5EwahsCKSvLanrZgLxhCCuugB6VletWEBWZz2kFE8MQXVdQ42Z_bELVgKkUQNLRSABpXRIHP2HLL\
zJjcFwvvBGOCRWBIkWMLjiUXS8wFkVxe1IwcIhTgYdb5pYHDIHl7B2uRtmLPORKu4isqgf28St87b_tUgaMANMLsRPq-F2_\
eAQQBJpgWVKaDRiMqCMIjllHK78vWlmz6cyYtcrawdj5nG5AuGc9pO8O0Jm9sJzut165p9icPPI5vWbYgrHXNq10Sdp8NuW\
3YjxRoXZrpjvM9p8V2U21NwBPFfc3nFT_Vxd0hA16qZRzPIBigDd4_EgCvHafxLqWoFS94ELLeZByi17VR9J9X38cqu5vZG\
DtK-OIRk1hWJwSTlsI40C5rlkmxyg44mjvkqOAWU4SUy8lDGV8if65dDgnYLh5ElwKTTjzZXibr8tgBpYkQ"
  }
 ],
 "nonce": "JotDhM0EJ5r1u5S3",
 "ciphertext": "bf05wKj4PbVRs7HA4a7tN2wfQWn8RyEm3Gj1S0zsmWJLq2sS5XLXBxJfcyDvbpES"
}
"""
