"""The URI of a root key in an HSM: RFC 7512, as far as a root key needs it, and never with a PIN in it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from urllib.parse import unquote

from kms.errors import ConfigurationError

_PATH: Final = ("token", "serial", "slot-id", "object")
_QUERY: Final = ("module-path", "pin-source")
_EXAMPLE: Final = (
    "pkcs11:token=kms;object=root?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/kms/pin"
)
# RFC 7512 section 2.3, beside the separators; everything else is percent-encoded.
_VALUE: Final = re.compile(r"(?:[A-Za-z0-9\-._~:\[\]@!$'()*+,=/?|&]|%[0-9A-Fa-f]{2})+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pkcs11Uri:
    """Where a root is: `module` is the vendor's library, `object` the CKA_LABEL of all its epochs' keys.

    The token is the one that agrees with all of `token` (its label), `serial` and `slot` that are not None;
    at least one is not. `pin_file` holds the user's PIN.
    """

    token: str | None
    serial: str | None
    slot: int | None
    object: str
    module: Path
    pin_file: Path

    @classmethod
    def parse(cls, rest: str) -> Self:
        """Read what follows ``pkcs11:``.

        Raises:
            ConfigurationError: it is not such a URI. The message repeats nothing of it: it may hold a PIN.

        """
        path, _, query = rest.partition("?")
        where = _attributes(path.split(";"), _PATH)
        how = _attributes(query.split("&"), _QUERY)
        for name in ("object", *_QUERY):
            if name not in where and name not in how:
                raise _refused(f"names no {name}")
        slot = where.get("slot-id")
        if where.keys() == {"object"}:
            raise _refused("names no token, serial or slot-id")
        if slot is not None and not re.fullmatch(r"0|[1-9][0-9]{0,19}", slot):
            raise _refused("has a slot-id that is no number")
        return cls(
            token=where.get("token"),
            serial=where.get("serial"),
            slot=None if slot is None else int(slot),
            object=where["object"],
            module=_absolute("module-path", how["module-path"]),
            pin_file=_absolute("pin-source", how["pin-source"].removeprefix("file:")),
        )


def _attributes(pairs: list[str], known: tuple[str, ...]) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if name == "pin-value":
            raise _refused(
                "holds a PIN, and URIs end up in logs", "Put the PIN into a file (0600): pin-source=file:PATH"
            )
        if name not in known:
            raise _refused(f"has something beside {', '.join(known)} where only they may be")
        if name in found:
            raise _refused(f"names its {name} twice")
        if not equals or not _VALUE.fullmatch(value):
            raise _refused(f"has a {name} that is empty, or with characters that must be percent-encoded")
        try:
            found[name] = unquote(value, errors="strict")
        except UnicodeDecodeError:
            raise _refused(f"has a {name} that is not UTF-8") from None
        if not found[name].isprintable():
            raise _refused(f"has a {name} with characters that cannot be printed")
    return found


def _absolute(name: str, value: str) -> Path:
    if not value.startswith("/"):
        raise _refused(f"has a {name} that is no absolute path")
    return Path(value)


def _refused(what: str, remedy: str = f"Write it like {_EXAMPLE}") -> ConfigurationError:
    return ConfigurationError(f"the PKCS#11 URI {what}", remedy=remedy)
