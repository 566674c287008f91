"""Judging the JSON metadata of a LUKS2 header: an allowlist of what an honest volume of ours can say.

Nothing authenticates a header, and the disk is the host's. A header that names the null cipher opens with
any key, and the guest writes its data in the clear (CVE-2025-59054 and CVE-2025-58356: "Vulnerabilities in
LUKS2 disk encryption for confidential VMs", Trail of Bits, October 2025); a `linear` segment is the plain
disk; a re-encryption that seems to be under way makes `cryptsetup` decrypt in place (CVE-2021-4122). So
what is not known to be harmless is refused: types, ciphers, flags, and members that nobody here knows.

LUKS2 On-Disk Format Specification 1.1.4; sections are named where they are checked.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NoReturn

from kms.encoding import from_base64
from kms.guest.luks.errors import DiskRefused
from kms.strict_json import Fields, JsonError, JsonValue, parse_object

CIPHER: Final = "aes-xts-plain64"
KEY_SIZE: Final = 64  # bytes, two AES-256 keys
TOKEN_TYPE: Final = "attested-kms"  # noqa: S105  # a token of LUKS2's, which is no secret

_ALIGNMENT: Final = 4096
# All of it is held in memory. Cryptsetup makes it 16 MiB long, where all key slots have room twice, but up to
# 128 MiB where it is told to begin the data far behind.
_MAX_KEY_SLOTS_AREA: Final = 32 << 20
_MAX_OBJECTS: Final = 32  # LUKS2_KEYSLOTS_MAX, LUKS2_TOKENS_MAX
_STRIPES: Final = 4000  # section 3.2.4
_HASHES: Final = {"sha256": 32, "sha512": 64}
_SECTOR_SIZES: Final = (512, 4096)
_SALT: Final = 32  # LUKS_SALTSIZE
# What key derivation may cost: what cryptsetup chooses on fast machines is below. The host can always keep
# a guest from starting; it need not be able to have it run out of memory.
_MAX_ITERATIONS: Final = 1 << 25
_MAX_MEMORY: Final = 1 << 20  # KiB
_MAX_TIME: Final = 100
_MAX_THREADS: Final = 4
# Speed and nothing else (section 3.5). Not `allow-discards`: it would show the host which sectors are free.
_HARMLESS_FLAGS: Final = frozenset(
    {"same-cpu-crypt", "submit-from-crypt-cpus", "no-read-workqueue", "no-write-workqueue"}
)
_MAX_NUMBER: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochToken:
    """Our token: key slot `slot` (None: removed since) holds the key `key` (``disk@app``) of `epoch`."""

    number: int
    slot: int | None
    epoch: int
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What a judged header says. `header_end` is where its key slots area ends; offsets are in bytes."""

    slots: frozenset[int]
    tokens: tuple[EpochToken, ...]
    header_end: int
    data_offset: int


def judge(json_area: bytes, *, header_size: int) -> Metadata:
    """Judge the JSON area of a header of `header_size` bytes.

    Raises:
        DiskRefused: it says something that is not allowed here.

    """
    fields = Fields(_parse(json_area), "header", _malformed)
    header_end = _judge_config(fields.object("config"), header_size)
    slots = _judge_slots(fields.members("keyslots"), range(2 * header_size, header_end))
    data_offset = _judge_segments(fields.members("segments"), header_end)
    _judge_digests(fields.members("digests"), slots)
    tokens = tuple(_tokens(fields.members("tokens"), slots))
    fields.end()
    named = [token.slot for token in tokens if token.slot is not None]
    if len(set(named)) != len(named):
        _refuse("token-malformed", "two tokens of ours name one key slot")
    return Metadata(slots=slots, tokens=tokens, header_end=header_end, data_offset=data_offset)


def _parse(json_area: bytes) -> JsonValue:
    # Section 2.2: a C string; the rest is zeros. Cryptsetup also cuts each text at an escaped zero, and would
    # read another cipher than we do.
    text, _, rest = json_area.partition(b"\0")
    if rest.strip(b"\0") or len(text) == len(json_area) or b"\\u0000" in text:
        raise _malformed("the LUKS2 metadata is no zero-terminated text")
    try:
        return parse_object(text)
    except JsonError as error:
        raise _malformed(f"the LUKS2 metadata is refused: {error}") from None


def _judge_config(config: Fields, header_size: int) -> int:
    """Judge section 3.5, and give where the key slots area ends."""
    if _number(config, "json_size") != header_size - _ALIGNMENT:
        config.fail("`json_size` is not that of the binary header")
    area = _number(config, "keyslots_size")
    if not 0 < area <= _MAX_KEY_SLOTS_AREA or area % _ALIGNMENT:
        config.fail(f"`keyslots_size` is not within {_MAX_KEY_SLOTS_AREA >> 20} MiB")
    # The specification has an array here; cryptsetup writes {"mandatory": [...]}.
    if config.has("requirements") and config.take("requirements") not in ([], {}, {"mandatory": []}):
        _refuse(
            "requirements",
            "the header demands a feature that is not opened here; if the volume was being re-encrypted,"
            " finish that with `cryptsetup reencrypt`",
        )
    if config.has("flags") and not _HARMLESS_FLAGS.issuperset(config.texts("flags", at_most=_MAX_OBJECTS)):
        _refuse("flags-not-allowed", "the header has a flag that is not known to be harmless")
    config.end()
    return 2 * header_size + area


def _judge_slots(keyslots: dict[str, JsonValue], area: range) -> frozenset[int]:
    """Judge section 3.2: each slot for itself, then that none lies on another."""
    slots: set[int] = set()
    taken: list[range] = []
    for number, slot in _numbered(keyslots, "keyslots"):
        taken.append(_judge_slot(slot, area))
        slots.add(number)
    if not slots:
        _refuse("key-slot-not-allowed", "the header has no key slot")
    taken.sort(key=lambda each: each.start)
    if any(after.start < before.stop for before, after in pairwise(taken)):
        _refuse("key-slot-not-allowed", "key slots overlap")
    return frozenset(slots)


def _judge_slot(slot: Fields, key_slots_area: range) -> range:
    if (slot.text("type"), slot.integer("key_size")) != ("luks2", KEY_SIZE):
        _refuse("key-slot-not-allowed", f"a key slot is not of type luks2 with a key of {KEY_SIZE} bytes")
    if slot.has("priority"):
        slot.integer("priority", maximum=2)
    splitter = slot.object("af")
    if (splitter.text("type"), splitter.integer("stripes")) != ("luks1", _STRIPES):
        _refuse("key-slot-not-allowed", f"a key slot's splitter is not luks1 with {_STRIPES} stripes")
    _hash(splitter)
    splitter.end()
    area = slot.object("area")
    if area.text("type") != "raw":
        _refuse("key-slot-not-allowed", "a key slot's area is not raw")
    if (area.text("encryption"), area.integer("key_size")) != (CIPHER, KEY_SIZE):
        _refuse(
            "cipher-not-allowed", f"a key slot is not encrypted with {CIPHER} and {KEY_SIZE} bytes of key"
        )
    start, size = _number(area, "offset"), _number(area, "size")
    area.end()
    place = range(start, start + size)
    if start % _ALIGNMENT or size < KEY_SIZE * _STRIPES or not _within(place, key_slots_area):
        _refuse("key-slot-not-allowed", "a key slot lies outside the key slots area")
    _judge_derivation(slot.object("kdf"))
    slot.end()
    return place


def _judge_derivation(kdf: Fields) -> None:
    """Judge section 3.2.5. A cheap one is fine for our keys, which are 256 random bits."""
    kind = kdf.text("type")
    _bytes(kdf, "salt", _SALT)
    if kind == "pbkdf2":
        _hash(kdf)
        costs = {"iterations": _MAX_ITERATIONS}
    elif kind in {"argon2i", "argon2id"}:
        costs = {"time": _MAX_TIME, "memory": _MAX_MEMORY, "cpus": _MAX_THREADS}
    else:
        _refuse("kdf-not-allowed", "a key derivation that is not pbkdf2, argon2i or argon2id")
    if not all(1 <= kdf.integer(name) <= maximum for name, maximum in costs.items()):
        _refuse("kdf-not-allowed", "a key derivation that costs more than any honest one")
    kdf.end()


def _judge_segments(segments: dict[str, JsonValue], header_end: int) -> int:
    """Judge section 3.3, and give where the data begins."""
    found = list(_numbered(segments, "segments"))
    if len(found) != 1:
        _refuse("segment-not-allowed", "the header has not exactly one segment")
    [(number, segment)] = found
    if (number, segment.text("type")) != (0, "crypt"):
        _refuse(
            "segment-not-allowed", "the segment is not number 0 and of type crypt: data would be in the clear"
        )
    if segment.has("integrity"):
        _refuse("segment-not-allowed", "the segment has integrity tags, which are not opened here")
    if segment.text("encryption") != CIPHER:
        _refuse("cipher-not-allowed", f"the data is not encrypted with {CIPHER}: it might be in the clear")
    if (segment.text("size"), _number(segment, "iv_tweak")) != ("dynamic", 0):
        _refuse("segment-not-allowed", "the segment is not the whole device from its first sector number")
    sector_size = segment.integer("sector_size")
    if sector_size not in _SECTOR_SIZES:
        _refuse("segment-not-allowed", "the segment's sectors have neither 512 nor 4096 bytes")
    offset = _number(segment, "offset")
    if offset < header_end or offset % sector_size:
        _refuse("segment-not-allowed", "the data would lie on the header")
    segment.end()
    return offset


def _judge_digests(digests: dict[str, JsonValue], slots: frozenset[int]) -> None:
    """Judge section 3.4: one digest, of the one volume key, which all key slots hold."""
    found = [digest for _, digest in _numbered(digests, "digests")]
    if len(found) != 1:
        _refuse("digest-not-allowed", "the header has not exactly one digest")
    digest = found[0]
    if digest.text("type") != "pbkdf2" or not 1 <= digest.integer("iterations") <= _MAX_ITERATIONS:
        _refuse("digest-not-allowed", "the digest is not pbkdf2, or costs more than any honest one")
    length = _hash(digest)
    _bytes(digest, "salt", _SALT)
    _bytes(digest, "digest", length)
    if _names(digest, "segments") != {0} or _names(digest, "keyslots") != slots:
        _refuse("digest-not-allowed", "the digest is not that of the segment and of all key slots")
    digest.end()


def _tokens(tokens: dict[str, JsonValue], slots: frozenset[int]) -> Iterator[EpochToken]:
    """Give our tokens (section 3.6). Others are left alone; they are never used (`Cryptsetup.open`)."""
    for number, token in _numbered(tokens, "tokens"):
        if token.text("type") != TOKEN_TYPE:
            continue
        named = _names(token, "keyslots")
        if len(named) > 1 or not named <= slots:
            _refuse("token-malformed", "a token of ours names key slots that it cannot mean")
        epoch, key = token.integer("epoch", minimum=1), token.text("key", at_most=256)
        token.end()
        yield EpochToken(number=number, slot=next(iter(named), None), epoch=epoch, key=key)


def _numbered(objects: dict[str, JsonValue], what: str) -> Iterator[tuple[int, Fields]]:
    """Give the objects of a top-level member with their numbers, which are their names."""
    for name, value in objects.items():
        number = _decimal(name)
        if number >= _MAX_OBJECTS:
            raise _malformed(f"the LUKS2 metadata has too many {what}")
        yield number, Fields(value, f"{what}.{number}", _malformed)


def _names(fields: Fields, name: str) -> set[int]:
    """Read an array of numbers that are names, each once."""
    texts = fields.texts(name, at_most=_MAX_OBJECTS)
    numbers = {_decimal(text) for text in texts}
    if len(numbers) != len(texts):
        fields.fail(f"`{name}` repeats a number")
    return numbers


def _number(fields: Fields, name: str) -> int:
    """Read a ``string-uint64`` (section 3)."""
    return _decimal(fields.text(name, at_most=20))


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20) or (text != "0" and text.startswith("0")):
        raise _malformed("a number of the LUKS2 metadata is not decimal")
    number = int(text)
    if number > _MAX_NUMBER:
        raise _malformed("a number of the LUKS2 metadata is out of bounds")
    return number


def _hash(fields: Fields) -> int:
    """Read the name of a hash, and give its length."""
    length = _HASHES.get(fields.text("hash"))
    if length is None:
        fields.fail("`hash` is neither sha256 nor sha512")
    return length


def _bytes(fields: Fields, name: str, length: int) -> None:
    if len(fields.convert(name, fields.text(name, at_most=128), from_base64)) != length:
        fields.fail(f"`{name}` does not have {length} bytes")


def _within(place: range, area: range) -> bool:
    return area.start <= place.start and place.stop <= area.stop


def _malformed(message: str) -> DiskRefused:
    return DiskRefused(message, reason="metadata-malformed")


def _refuse(reason: str, detail: str) -> NoReturn:
    raise DiskRefused(detail, reason=reason)
