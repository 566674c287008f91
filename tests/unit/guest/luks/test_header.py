"""What is not known to be harmless is refused: headers that cryptsetup made, and hosts have changed."""

import copy
import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kms.guest.luks import DiskFailed, DiskRefused, read_header
from tests.unit.guest.luks.samples import (
    AREA,
    CHEAP,
    HEADER,
    MIB,
    add_token,
    blank,
    edited,
    key_of,
    make,
    metadata,
    needs_cryptsetup,
    put,
    run,
    seal,
    with_text,
)

pytestmark = needs_cryptsetup

Document = dict[str, Any]


def refused(disk: Path) -> str:
    with pytest.raises(DiskRefused) as caught:
        read_header(disk)
    assert re.fullmatch(r"[a-z0-9-]+", caught.value.reason)
    return caught.value.reason


class TestHonest:
    def test_a_volume_of_an_epoch(self, disk: Path, made: bytes) -> None:
        header = read_header(disk)
        assert header.epochs == (1,)
        assert header.slots == {0: 1} == header.slots_of("disk@app")
        assert header.slots_of("custom:db@app") == {}
        assert header.key_slots == {0}
        assert header.data_offset == AREA
        assert header.raw == header.image == made
        assert header.uuid in run("luksDump", str(disk)).decode()

    @pytest.mark.parametrize(
        "options",
        [
            ("--luks2-metadata-size", "64k"),
            ("--sector-size", "4096"),
            ("--sector-size", "512", "--hash", "sha512"),
            ("--pbkdf", "argon2id", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "32"),
            ("--pbkdf", "argon2i", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "32"),
        ],
        ids=" ".join,
    )
    def test_what_cryptsetup_makes_otherwise(self, tmp_path: Path, options: tuple[str, ...]) -> None:
        assert read_header(make(tmp_path / "disk", *options)).epochs == (1,)

    def test_cryptsetup_s_defaults(self, tmp_path: Path) -> None:
        """All but the derivation, which would take seconds."""
        disk = blank(tmp_path / "disk")
        run("luksFormat", "--batch-mode", *CHEAP, "--key-file", "-", str(disk), key=key_of(1))
        header = read_header(disk)
        assert (header.epochs, header.data_offset) == ((), 16 * MIB)

    def test_slots_and_tokens_of_others_stay(self, disk: Path, tmp_path: Path) -> None:
        new = tmp_path / "new"
        new.write_bytes(key_of(9))
        run("luksAddKey", *CHEAP, "--batch-mode", "--key-file", "-", str(disk), str(new), key=key_of(1))
        run("token", "add", "--key-description", "recovery", str(disk))
        header = read_header(disk)
        assert header.key_slots == {0, 1}
        assert header.slots == {0: 1}

    def test_a_volume_that_was_re_encrypted(self, disk: Path) -> None:
        """Segment, digest and key slot are new ones, and our token names the new slot."""
        offline = ("reencrypt", "--batch-mode", "--force-offline-reencrypt")
        run(*offline, *CHEAP, "--key-file", "-", str(disk), key=key_of(1))
        header = read_header(disk)
        assert header.epochs == (1,)
        assert set(header.slots) == header.key_slots != {0}

    def test_requirements_that_demand_nothing(self, disk: Path, made: bytes) -> None:
        put(disk, edited(made, lambda d: d["config"].update(requirements={"mandatory": []})))
        assert read_header(disk).epochs == (1,)

    def test_slots_and_tokens_with_the_last_numbers(self, disk: Path, made: bytes) -> None:
        def renumber(document: Document) -> None:
            for member in ("keyslots", "tokens"):
                document[member]["31"] = document[member].pop("0")
            document["tokens"]["31"]["keyslots"] = document["digests"]["0"]["keyslots"] = ["31"]

        put(disk, edited(made, renumber))
        assert read_header(disk).slots == {31: 1}
        run("open", "--test-passphrase", "--key-file", "-", str(disk), key=key_of(1))

    def test_a_removed_slot_leaves_a_token_that_names_none(self, disk: Path, tmp_path: Path) -> None:
        new = tmp_path / "new"
        new.write_bytes(key_of(2))
        run("luksAddKey", *CHEAP, "--batch-mode", "--key-file", "-", str(disk), str(new), key=key_of(1))
        add_token(disk, slot=1, epoch=2)
        run("luksKillSlot", "--batch-mode", str(disk), "0")
        assert read_header(disk).epochs == (2,)


def _slot(document: Document) -> Any:
    return document["keyslots"]["0"]


def _segment(document: Document) -> Any:
    return document["segments"]["0"]


def _second(member: str) -> Callable[[Document], object]:
    return lambda document: document[member].update({"1": copy.deepcopy(document[member]["0"])})


def _token(**members: object) -> Callable[[Document], object]:
    token = {"type": "attested-kms", "keyslots": ["0"], "epoch": 1, "key": "disk@app"} | members
    return lambda document: document["tokens"].update({"0": token})


HOSTILE: dict[str, tuple[Callable[[Document], object], str]] = {
    "null cipher for the data": (
        lambda d: _segment(d).update(encryption="cipher_null-ecb"),
        "cipher-not-allowed",
    ),
    "null cipher in a key slot": (
        lambda d: _slot(d)["area"].update(encryption="cipher_null-ecb"),
        "cipher-not-allowed",
    ),
    "a weaker cipher": (lambda d: _segment(d).update(encryption="aes-cbc-plain64"), "cipher-not-allowed"),
    "a cipher that C reads as another": (
        lambda d: _segment(d).update(encryption="aes-xts-plain64\0"),
        "metadata-malformed",
    ),
    "linear segment": (lambda d: _segment(d).update(type="linear"), "segment-not-allowed"),
    "nothing but a linear segment": (
        lambda d: d.update(segments={"0": {"type": "linear", "offset": str(AREA), "size": "dynamic"}}),
        "segment-not-allowed",
    ),
    "two segments": (_second("segments"), "segment-not-allowed"),
    "no segment": (lambda d: d["segments"].clear(), "segment-not-allowed"),
    "segment 1 alone": (
        lambda d: d["segments"].update({"1": d["segments"].pop("0")}),
        "segment-not-allowed",
    ),
    "integrity": (
        lambda d: _segment(d).update(integrity={"type": "aead", "journal_encryption": "none"}),
        "segment-not-allowed",
    ),
    "segment flags": (lambda d: _segment(d).update(flags=["in-reencryption"]), "metadata-malformed"),
    "data on the header": (lambda d: _segment(d).update(offset="0"), "segment-not-allowed"),
    "data inside a sector": (lambda d: _segment(d).update(offset=str(AREA + 8)), "segment-not-allowed"),
    "data beyond the end": (lambda d: _segment(d).update(offset=str(1 << 40)), "device-too-small"),
    "a number with a sign": (lambda d: _segment(d).update(offset="-1"), "metadata-malformed"),
    "a number beyond 64 bits": (lambda d: _segment(d).update(offset="9" * 19), "metadata-malformed"),
    "a part of the device": (lambda d: _segment(d).update(size="1048576"), "segment-not-allowed"),
    "another first sector number": (lambda d: _segment(d).update(iv_tweak="1"), "segment-not-allowed"),
    "odd sectors": (lambda d: _segment(d).update(sector_size=1024), "segment-not-allowed"),
    "hardware encryption": (lambda d: _segment(d).update(type="hw-opal"), "segment-not-allowed"),
    "an unknown member": (lambda d: _segment(d).update(opal_segment_number=1), "metadata-malformed"),
    "an unknown top member": (lambda d: d.update(more={}), "metadata-malformed"),
    "no key slot": (
        lambda d: (d["keyslots"].clear(), d["digests"]["0"].update(keyslots=[])),
        "key-slot-not-allowed",
    ),
    "a slot of another type": (lambda d: _slot(d).update(type="reencrypt"), "key-slot-not-allowed"),
    "a short volume key": (lambda d: _slot(d).update(key_size=32), "key-slot-not-allowed"),
    "no volume key": (lambda d: _slot(d).update(key_size=0), "key-slot-not-allowed"),
    "few stripes": (lambda d: _slot(d)["af"].update(stripes=1), "key-slot-not-allowed"),
    "a weak hash": (lambda d: _slot(d)["af"].update(hash="md5"), "metadata-malformed"),
    "a slot in the header": (lambda d: _slot(d)["area"].update(offset="4096"), "key-slot-not-allowed"),
    "a slot in the data": (lambda d: _slot(d)["area"].update(offset=str(AREA)), "key-slot-not-allowed"),
    "a slot with half a key": (lambda d: _slot(d)["area"].update(size="4096"), "key-slot-not-allowed"),
    "a slot without area": (lambda d: _slot(d)["area"].update(type="none"), "key-slot-not-allowed"),
    "slots on each other": (
        lambda d: (_second("keyslots")(d), d["digests"]["0"].update(keyslots=["0", "1"])),
        "key-slot-not-allowed",
    ),
    "a key of the slot that is short": (lambda d: _slot(d)["area"].update(key_size=32), "cipher-not-allowed"),
    "giant memory": (
        lambda d: _slot(d)["kdf"].update(type="argon2id", time=4, memory=4194304, cpus=4),
        "kdf-not-allowed",
    ),
    "endless time": (
        lambda d: _slot(d)["kdf"].update(type="argon2id", time=1 << 31, memory=32, cpus=1),
        "kdf-not-allowed",
    ),
    "endless iterations": (lambda d: _slot(d)["kdf"].update(iterations=1 << 31), "kdf-not-allowed"),
    "no iterations": (lambda d: _slot(d)["kdf"].update(iterations=0), "kdf-not-allowed"),
    "another derivation": (lambda d: _slot(d)["kdf"].update(type="plain"), "kdf-not-allowed"),
    "no salt": (lambda d: _slot(d)["kdf"].update(salt=""), "metadata-malformed"),
    "a digest of nothing": (lambda d: d["digests"]["0"].update(segments=[]), "digest-not-allowed"),
    "a slot without digest": (lambda d: d["digests"]["0"].update(keyslots=[]), "digest-not-allowed"),
    "two digests": (_second("digests"), "digest-not-allowed"),
    "a short digest": (lambda d: d["digests"]["0"].update(digest="AAAA"), "metadata-malformed"),
    "an endless digest": (lambda d: d["digests"]["0"].update(iterations=1 << 31), "digest-not-allowed"),
    "a requirement": (
        lambda d: d["config"].update(requirements={"mandatory": ["online-reencrypt-v2"]}),
        "requirements",
    ),
    "a requirement of another form": (lambda d: d["config"].update(requirements=["a"]), "requirements"),
    "requirements of a new kind": (
        lambda d: d["config"].update(requirements={"mandatory": [], "optional": ["a"]}),
        "requirements",
    ),
    "discards": (lambda d: d["config"].update(flags=["allow-discards"]), "flags-not-allowed"),
    "another length": (lambda d: d["config"].update(json_size="4096"), "metadata-malformed"),
    "an endless key slots area": (
        lambda d: d["config"].update(keyslots_size=str(1 << 40)),
        "metadata-malformed",
    ),
    "a key slots area beyond the end": (
        lambda d: (d["config"].update(keyslots_size=str(32 * MIB)), _segment(d).update(offset=str(1 << 30))),
        "device-too-small",
    ),
    "a key slots area that costs memory": (
        lambda d: (
            d["config"].update(keyslots_size=str(32 * MIB + 4096)),
            _segment(d).update(offset=str(1 << 30)),
        ),
        "metadata-malformed",
    ),
    "a token without epoch": (_token(epoch=0), "metadata-malformed"),
    "two tokens of one slot": (
        lambda d: d["tokens"].update({"1": d["tokens"]["0"] | {"epoch": 2}}),
        "token-malformed",
    ),
    "a token of two slots": (_token(keyslots=["0", "1"]), "token-malformed"),
    "a token of no slot that is there": (_token(keyslots=["7"]), "token-malformed"),
    "a token with more": (_token(more=1), "metadata-malformed"),
    "a slot beyond cryptsetup's last one": (
        lambda d: (
            d["keyslots"].update({"32": d["keyslots"].pop("0")}),
            d["digests"]["0"].update(keyslots=["32"]),
            d["tokens"].clear(),
        ),
        "metadata-malformed",
    ),
    "a token beyond cryptsetup's last one": (
        lambda d: d["tokens"].update({"32": d["tokens"].pop("0")}),
        "metadata-malformed",
    ),
    "an object without number": (lambda d: d["tokens"].update({"00": {}}), "metadata-malformed"),
    "an object that is none": (lambda d: d["keyslots"].update({"1": []}), "metadata-malformed"),
}


class TestHostile:
    @pytest.mark.parametrize(("edit", "reason"), HOSTILE.values(), ids=HOSTILE)
    def test_edits_with_right_checksums(
        self, disk: Path, made: bytes, edit: Callable[[Document], object], reason: str
    ) -> None:
        assert refused(put(disk, edited(made, edit))) == reason

    def test_cryptsetup_itself_opens_a_null_cipher(self, disk: Path, made: bytes) -> None:
        """The edit above is the known attack, and not something that cryptsetup 2.6 would stop."""
        put(disk, edited(made, HOSTILE["null cipher for the data"][0]))
        run("open", "--test-passphrase", "--key-file", "-", str(disk), key=key_of(1))

    def test_a_name_that_stands_twice(self, disk: Path, made: bytes) -> None:
        text = json.dumps(metadata(made)).replace(
            '"encryption": "aes-xts-plain64"',
            '"encryption": "cipher_null-ecb", "encryption": "aes-xts-plain64"',
        )
        assert refused(put(disk, with_text(made, text.encode()))) == "metadata-malformed"

    @pytest.mark.parametrize(
        "text", [b"", b"{}", b"[]", b"{" * 100, b'{"a": NaN}', b"\xff", b"{}\0{}", b" " * (HEADER - 4096)]
    )
    def test_no_metadata(self, disk: Path, made: bytes, text: bytes) -> None:
        assert refused(put(disk, with_text(made, text))) == "metadata-malformed"

    def test_a_re_encryption_that_was_begun(self, disk: Path) -> None:
        begin = ("reencrypt", "--init-only", "--batch-mode", "--resilience", "none", *CHEAP)
        run(*begin, "--key-file", "-", str(disk), key=key_of(1))
        with pytest.raises(DiskRefused, match="finish that with `cryptsetup reencrypt`") as caught:
            read_header(disk)
        assert caught.value.reason == "requirements"

    def test_luks1(self, tmp_path: Path) -> None:
        disk = blank(tmp_path / "disk")
        iterations = ("--pbkdf-force-iterations", "1000")
        run("luksFormat", "-q", "--type", "luks1", *iterations, "--key-file", "-", str(disk), key=key_of(1))
        assert refused(disk) == "luks1"

    @pytest.mark.parametrize("content", [b"", b"ext4", os.urandom(9 * MIB)], ids=["empty", "short", "random"])
    def test_no_header(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "disk").write_bytes(content)
        assert refused(tmp_path / "disk") == "not-luks"

    def test_a_sequence_number_that_is_about_to_begin_again(self, disk: Path, made: bytes) -> None:
        area = bytearray(made)
        for at in (0, HEADER):
            area[at + 16 : at + 24] = b"\xff" * 8
            seal(area, at)
        assert refused(put(disk, bytes(area))) == "metadata-malformed"

    @pytest.mark.parametrize("uuid", [b"../../x", b"\xff", b""])
    def test_a_uuid_that_is_none(self, disk: Path, made: bytes, uuid: bytes) -> None:
        area = bytearray(made)
        for at in (0, HEADER):
            area[at + 168 : at + 208] = uuid.ljust(40, b"\0")
            seal(area, at)
        assert refused(put(disk, bytes(area))) == "metadata-malformed"

    @pytest.mark.parametrize(
        ("at", "value"), [(6, b"\0\3"), (8, b"\xff" * 8), (256, b"\1" * 8), (72, b"md5\0")]
    )
    def test_a_binary_header_that_is_none_is_not_taken(
        self, disk: Path, made: bytes, at: int, value: bytes
    ) -> None:
        area = bytearray(made)
        area[at : at + len(value)] = value
        seal(area, 0)
        header = read_header(put(disk, bytes(area)))
        assert header.image[HEADER:] == made[HEADER:]  # the second copy is the one that counts

    def test_a_disk_that_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(DiskFailed):
            read_header(tmp_path / "missing")
        with pytest.raises(DiskFailed):
            read_header(tmp_path)

    def test_links_that_go_round(self, tmp_path: Path) -> None:
        (tmp_path / "a").symlink_to(tmp_path / "b")
        (tmp_path / "b").symlink_to(tmp_path / "a")
        with pytest.raises(DiskFailed) as caught:
            read_header(tmp_path / "a")
        assert caught.value.reason == "disk-unusable"


class TestCopies:
    def test_a_torn_first_copy(self, disk: Path, made: bytes) -> None:
        header = read_header(put(disk, bytes(512)))
        assert header.raw[512:] == made[512:]
        assert header.image[HEADER:] == made[HEADER:]
        assert metadata(header.image) == metadata(made)
        assert read_header(put(disk, header.image)).raw == header.image

    def test_a_torn_second_copy(self, disk: Path, made: bytes) -> None:
        area = bytearray(made)
        area[HEADER + 4200] ^= 1
        header = read_header(put(disk, bytes(area)))
        assert header.image[:HEADER] == made[:HEADER]
        assert metadata(header.image, HEADER) == metadata(made)

    def test_both_torn(self, disk: Path, made: bytes) -> None:
        area = bytearray(made)
        area[4200] ^= 1
        area[HEADER + 4200] ^= 1
        assert refused(put(disk, bytes(area))) == "header-damaged"

    @pytest.mark.parametrize("newer", [0, 1])
    def test_the_newer_one_counts_and_the_other_is_not_left_to_cryptsetup(
        self, disk: Path, made: bytes, newer: int
    ) -> None:
        """The host gives the older one another cipher: what is not judged must not be there to be taken."""
        document = metadata(made)
        _segment(document)["encryption"] = "cipher_null-ecb"
        area = bytearray(with_text(made, json.dumps(document).encode(), copies=[1 - newer]))
        at = newer * HEADER
        area[at + 16 : at + 24] = (1000).to_bytes(8, "big")
        seal(area, at)
        header = read_header(put(disk, bytes(area)))
        assert b"cipher_null" not in header.image
        # And the other way round.
        area[(HEADER - at) + 16 : (HEADER - at) + 24] = (1001).to_bytes(8, "big")
        seal(area, HEADER - at)
        assert refused(put(disk, bytes(area))) == "cipher-not-allowed"

    def test_equal_numbers_and_other_words(self, disk: Path, made: bytes) -> None:
        document = metadata(made)
        _segment(document)["encryption"] = "cipher_null-ecb"
        area = with_text(made, json.dumps(document).encode(), copies=[1])
        assert b"cipher_null" not in read_header(put(disk, area)).image


class TestChance:
    """Whatever stands there, it is read or refused, and nothing else happens."""

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(seed=st.integers(0, 2**32), flips=st.integers(1, 40), sealed=st.booleans())
    def test_flipped_bytes(self, disk: Path, made: bytes, seed: int, flips: int, *, sealed: bool) -> None:
        chance = random.Random(seed)
        area = bytearray(made)
        end = 4096 + made[4096:HEADER].index(b"\0")
        for at in (0, HEADER):
            for _ in range(flips):
                area[at + chance.choice([chance.randrange(512), chance.randrange(4096, end)])] = (
                    chance.randrange(256)
                )
            if sealed:
                seal(area, at)
        put(disk, bytes(area))
        try:
            header = read_header(disk)
        except DiskRefused:
            return
        assert b"cipher_null" not in header.image

    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_other_values(self, disk: Path, made: bytes, data: st.DataObject) -> None:
        """Any member of the metadata becomes any value."""
        document = metadata(made)
        place: Any = document
        while True:
            names = list(place) if isinstance(place, dict) else list(range(len(place)))
            name = data.draw(st.sampled_from(names))
            if not (isinstance(place[name], dict | list) and place[name] and data.draw(st.booleans())):
                break
            place = place[name]
        scalars = (
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30)
        )
        place[name] = data.draw(scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(), scalars))
        text = json.dumps(document).encode()
        if len(text) >= HEADER - 4096:
            return
        try:
            read_header(put(disk, with_text(made, text)))
        except DiskRefused:
            return
        assert _segment(document)["encryption"] == "aes-xts-plain64"
