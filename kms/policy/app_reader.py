"""Reads `kind: app`, and what every kind has in common."""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Final, TypedDict, TypeVar

from kms.identifiers import AppId, ChipId, ComposeHash, OsImageHash
from kms.keys.dstack import ID_LENGTH
from kms.keys.names import DSTACK_KINDS, MAX_PATH_LENGTH, KeyKind, KeyPattern, Scope
from kms.measurement.images import Binding
from kms.policy import values
from kms.policy.documents import DSTACK, STRICT, Allowlist, AppDocument, TlsNames
from kms.policy.nodes import Node
from kms.policy.parser import Parser, Schema, Wrong, closest, pattern
from kms.policy.reader import Reader, Slot

# A name that never matches would be a rule that forbids nothing, so its form is checked.
_ADVISORY: Final = re.compile(r"AMD-SB-[0-9]{4,5}")
_DNS_NAME: Final = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(?:\.(?!-)[a-z0-9-]{1,63}(?<!-))*")
_MAX_TLS_DAYS: Final = 398  # CA/Browser Forum baseline requirements, section 6.3.2: what clients accept
# Meant as an id, of whatever length and however written.
_LONG_HEX: Final = re.compile(r"(?:0x|sha256:)?(?:[0-9a-fA-F]{16}|[0-9a-fA-F]{32,})")
_SEGMENT: Final = r"(?!\.{1,2}(?:[/@]|$))[a-z0-9._-]+"
_CUSTOM_KEY: Final = re.compile(
    rf"custom:(?=[^@]{{1,{MAX_PATH_LENGTH}}}(?:@|$))"
    rf"(?:{_SEGMENT}(?:/{_SEGMENT})*|(?:{_SEGMENT}/)*[a-z0-9._-]*\*)(?:@(?:{'|'.join(Scope)}))?"
)
_MAX_DNS_NAME: Final = 253  # RFC 1035, section 2.3.4, as text
_TLS: Final = "{names: [payments.internal], days: 7}"
_NOBODY: Final = "it allows nobody"

T = TypeVar("T")

compose_hash: Final = values.hex_of(ComposeHash, "a compose hash")
app_id: Final = values.hex_of(AppId, "an app id")
os_image_hash: Final = values.hex_of(OsImageHash, "an os_image_hash")


class Header(TypedDict):
    """What every document may carry, read."""

    name: str
    description: str | None
    owner: str | None


class HeaderSlots:
    """Reads name, description and owner; `expires_at` is apart, because one kind refuses it."""

    def __init__(self, reader: Reader) -> None:
        self._name: Slot[str] = reader.required("name", values.name)
        self._description: Slot[str | None] = reader.optional("description", values.text, None)
        self._owner: Slot[str | None] = reader.optional("owner", values.text, None)

    @property
    def values(self) -> Header:
        """The values. Raises `Unread`."""
        return {
            "name": self._name.value,
            "description": self._description.value,
            "owner": self._owner.value,
        }


def read_app(reader: Reader) -> AppDocument:
    """Read an app. Raises `Unread` after its findings were made."""
    header = HeaderSlots(reader)
    expires_at = reader.optional("expires_at", values.time, None)
    identity = reader.required("id", app_id)
    compose = reader.allowlist("compose", compose_hash, empty=_NOBODY)
    images = reader.listed("images", _image, empty=_NOBODY)
    chips = reader.allowlist("chips", _chip, empty=_NOBODY)
    tcb = reader.required("tcb", values.name, why="name a `kind: tcb`")
    guest = reader.optional("guest", values.name, STRICT)
    binding = reader.listed("binding", _binding, empty="no binding, no release")
    keys = reader.listed("keys", _key, empty="it releases no key")
    advisories = reader.listed_or("forbid_advisories", _advisory, ())
    epoch: Slot[int | None] = reader.optional("epoch", _epoch, None)
    tls: Slot[TlsNames | None] = reader.mapping_or("tls", _read_tls, None, example=_TLS)
    compat: Slot[str | None] = reader.optional("compat", _compat, None)
    reader.end()
    _check_tls(reader, keys.value, tls.value)
    _check_compat(reader, keys.value, compat.value, identity)
    listed_images, listed_chips = images.value, chips.value
    return AppDocument(
        **header.values,
        expires_at=expires_at.value,
        id=identity.value,
        compose=compose.value,
        images=_of(str, listed_images),
        image_hashes=_of(OsImageHash, listed_images),
        chips=_allowlist(_of(ChipId, listed_chips.items), listed_chips.anything),
        chip_sets=_of(str, listed_chips.items),
        tcb=tcb.value,
        guest=guest.value,
        binding=_of(Binding, binding.value),
        keys=keys.value,
        forbid_advisories=_of(str, advisories.value),
        epoch=epoch.value,
        tls=tls.value,
        compat=compat.value,
    )


def name_or(identity: Parser[T]) -> Parser[T | str]:
    """Make a parser of either an id, where the text is long hex, or the name of a document."""

    def read(node: Node) -> T | str:
        if _LONG_HEX.fullmatch(values.read_text(node)):
            return identity.read(node)
        return values.name.read(node)

    # A name in the schema is what lint takes for one.
    no_name: Schema = {"type": "string", "pattern": f"^(?:{_LONG_HEX.pattern})$"}
    return Parser(read, {"anyOf": [identity.schema, {**values.name.schema, "not": no_name}]})


def _of(kind: type[T], listed: Iterable[object]) -> frozenset[T]:
    return _one_copy(frozenset(each for each in listed if isinstance(each, kind)), kind.__name__)


# Ten thousand apps list the same few names and keys, so they share them.
@lru_cache(maxsize=1 << 12)
def _one_copy(values: frozenset[T], _: str) -> frozenset[T]:
    return values


@lru_cache(maxsize=1 << 12)
def _allowlist(items: frozenset[ChipId], anything: bool) -> Allowlist[ChipId]:
    return Allowlist(items, anything)


@lru_cache(maxsize=1 << 12)
def _key_pattern(text: str) -> KeyPattern:
    return KeyPattern.parse(text)


def _read_key(node: Node) -> KeyPattern:
    text = values.read_text(node)
    try:
        return _key_pattern(text)
    except ValueError as error:
        name = text.partition("@")[0]
        kind = name if name.startswith(f"{DSTACK}:") else name.partition(":")[0]
        hint = "" if kind in _KEY_KINDS else f"; {closest(kind, _KEY_KINDS)}"
        if "*" in text.partition("@")[0][:-1]:
            hint = "; `*` stands only at the end"
        raise Wrong(node, f"`{text}`: {error}{hint}") from None


_KEY_KINDS: Final = tuple(kind.value for kind in KeyKind)


def _plain_keys() -> Iterator[str]:
    """Give every key that has no path, with every scope that it may have."""
    for kind in KeyKind:
        for scope in ("", *(f"@{scope}" for scope in Scope)):
            with suppress(ValueError):
                KeyPattern.parse(f"{kind}{scope}")
                yield f"{kind}{scope}"


def _read_advisory(node: Node) -> str:
    text = values.read_text(node)
    if not _ADVISORY.fullmatch(text):
        raise Wrong(node, f"`{text}` is not the name of an AMD bulletin, as in AMD-SB-3015")
    return text


def _read_compat(node: Node) -> str:
    text = values.read_text(node)
    if text != DSTACK:
        raise Wrong(node, f"`{text}` is unknown: the only compatibility is `{DSTACK}`")
    return text


def _read_dns_name(node: Node) -> str:
    text = values.read_text(node)
    if len(text) > _MAX_DNS_NAME or not _DNS_NAME.fullmatch(text):
        raise Wrong(node, f"`{text}` is not a DNS name in lowercase, without wildcard")
    return text


_image: Final = name_or(os_image_hash)
_chip: Final = name_or(values.chip_id)
_binding: Final = values.one_of(Binding, "a binding")
_key: Final = Parser(_read_key, {"anyOf": [{"enum": [*_plain_keys()]}, pattern(_CUSTOM_KEY)]})
_advisory: Final = Parser(_read_advisory, pattern(_ADVISORY))
_epoch: Final = values.integer(1, 2**31 - 1, "an epoch")
_compat: Final = Parser(_read_compat, {"const": DSTACK})
_dns_name: Final = Parser(_read_dns_name, {**pattern(_DNS_NAME), "maxLength": _MAX_DNS_NAME})
_days: Final = values.integer(1, _MAX_TLS_DAYS, "the life of a certificate in days")


def _read_tls(reader: Reader) -> TlsNames:
    names = reader.listed("names", _dns_name, empty="there is nothing to certify")
    days = reader.required("days", _days)
    reader.end()
    return TlsNames(names=names.value, days=days.value)


def _check_tls(reader: Reader, keys: tuple[KeyPattern, ...], tls: TlsNames | None) -> None:
    wanted = any(pattern.kind is KeyKind.TLS for pattern in keys)
    if wanted and tls is None:
        reader.notes.error(reader.place("keys"), f"key `tls` needs the member `tls: {_TLS}`")
    if tls is not None and not wanted:
        reader.notes.warning(reader.place("tls"), "`tls` does nothing: `keys` does not list key `tls`")


def _check_compat(
    reader: Reader, keys: tuple[KeyPattern, ...], compat: str | None, identity: Slot[AppId]
) -> None:
    wanted = next((pattern for pattern in keys if pattern.kind in DSTACK_KINDS), None)
    if wanted is not None and compat is None:
        reader.notes.error(reader.place("keys"), f"key `{wanted}` needs the member `compat: {DSTACK}`")
    if wanted is None and compat is not None:
        reader.notes.warning(reader.place("compat"), "`compat` does nothing: `keys` lists no key of dstack")
    if compat is not None and len(identity.value) != ID_LENGTH:
        reader.notes.error(
            reader.place("id"), f"with `compat: {DSTACK}` an app id has {ID_LENGTH} bytes, as those of dstack"
        )
