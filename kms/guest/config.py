"""What a guest's image says of its KMS: the file /etc/attested-kms/guest.toml, baked into what is measured.

The pin comes from this file or the measured command line, and never from what the host hands over, as the
app document: an impostor's pin in it would make the impostor's keys the right ones.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from kms.encoding import from_base64
from kms.errors import ConfigurationError
from kms.guest import toml_tables as toml
from kms.guest.credentials import credential_name
from kms.guest.hardware import EvidenceOptions, Interface
from kms.guest.kernel_command_line import parameters, proc_cmdline
from kms.guest.key_words import parse_key
from kms.identifiers import AppId, ComposeHash
from kms.keys.identity import PUBLIC_KEY_LENGTH
from kms.keys.names import Algorithm, KeyName, KeyRequest, Scope
from kms.keys.sealing import Suite
from kms.measurement.images import LaunchHint
from kms.policy.question import AppClaim
from kms.strict_json import Fields, JsonValue, compact_json

DEFAULT_CONFIG: Final = Path("/etc/attested-kms/guest.toml")
DEFAULT_VOLUME_KEY: Final = "disk"
_MAX_CONFIG: Final = 64 << 10  # bytes
_MAX_PIN_FILE: Final = 256
_SERVER, _IDENTITY = "kms.server", "kms.identity"
# The characters that libdevmapper leaves as they are (libdm-common.c). No option of a program, and no hidden
# name; /dev/mapper/control is libdevmapper's own.
_VOLUME_NAME: Final = re.compile(r"(?!control$)[A-Za-z0-9_#][A-Za-z0-9#+.:=@_-]{0,126}")
_MAX_SERVED: Final = 256
_MAX_PRIVLEVEL: Final = 3  # VMPL 0 to 3

_KEYS: Final = (
    *("server", "ca", "identity", "trust_any_kms_identity", "deadline", "app_document", "workload"),
    *("workload_copy", "app_id", "compose_hash", "suite", "command_line", "evidence", "launch", "volumes"),
    "serve",
)
_VOLUME_KEYS: Final = ("device", "key", "format", "rotate")
_EVIDENCE_KEYS: Final = ("interface", "tsm", "device", "privlevel")
_SERVED_KEYS: Final = ("key", "scope", "uids", "gids", "credential")


class Format(StrEnum):
    """Whether a device that holds nothing may become a volume."""

    NEVER = "never"
    BLANK = "blank"


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeConfig:
    """An encrypted volume: the mapping's name, its device, and the key that opens it (without epoch)."""

    name: str
    device: Path
    key: KeyRequest
    format_blank: bool = False
    rotate: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedKey:
    """A key that other processes of this machine may have, and which users and groups they run as."""

    key: KeyName
    scope: Scope
    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()
    credential: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestConfig:
    """Which KMS to ask, what it must prove, and what this machine shows it.

    `identity` is the pinned KMS identity (32 bytes); None trusts any KMS behind the CA. `deadline` is in
    seconds, for all tries together.
    """

    server: str
    ca: Path | None = None
    identity: bytes | None = None
    app_document: Path | None = None
    workload: Path | None = None
    workload_copy: Path | None = None
    app: AppClaim | None = None
    launch: Mapping[str, JsonValue] | None = None
    deadline: float = 60.0
    suite: Suite | None = None
    evidence: EvidenceOptions = field(default_factory=EvidenceOptions)
    volumes: Mapping[str, VolumeConfig] = field(default_factory=dict)
    served: tuple[ServedKey, ...] = ()


def default_config() -> Path | None:
    """Give `DEFAULT_CONFIG`, or None where there is no such file.

    Raises:
        ConfigurationError: this user cannot know.

    """
    try:
        DEFAULT_CONFIG.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigurationError(f"{DEFAULT_CONFIG}: {error.strerror}") from error
    return DEFAULT_CONFIG


def read_config(path: Path, *, command_line: Callable[[], str] = proc_cmdline) -> GuestConfig:
    """Read a guest.toml of at most 64 KiB; docs/reference/guest-config.md has every key.

    Raises:
        ConfigurationError: it is not there, others may write to it, it is no TOML, or says what makes no
            sense; an unknown key is named with the closest known one.

    """
    fields = toml.table(toml.parse_toml(path, toml.read_image_file(path, _MAX_CONFIG)), str(path), _KEYS)
    measured: dict[str, str] = {}
    if toml.optional(fields, "command_line", toml.boolean, False):
        measured = parameters(command_line(), {_SERVER, _IDENTITY})
    server = toml.optional(fields, "server", toml.text, measured.get(_SERVER))
    if not server:
        fields.fail("`server` is missing")
    return GuestConfig(
        server=server,
        ca=toml.optional(fields, "ca", toml.path),
        identity=_pin(fields, measured.get(_IDENTITY)),
        app_document=toml.optional(fields, "app_document", toml.path),
        workload=toml.optional(fields, "workload", toml.path),
        workload_copy=toml.optional(fields, "workload_copy", toml.path),
        app=_app(fields),
        launch=toml.optional(fields, "launch", _launch),
        deadline=toml.optional(fields, "deadline", toml.seconds, 60.0),
        suite=toml.optional(fields, "suite", toml.word_of(Suite)),
        evidence=_evidence(fields, str(path)),
        volumes=_volumes(fields, str(path)),
        served=_served(fields, str(path)),
    )


def _pin(fields: Fields, measured: str | None) -> bytes | None:
    """Give the pinned identity. That nothing is pinned must be said, so that nobody forgets it."""
    text = toml.optional(fields, "identity", toml.text, measured)
    if toml.optional(fields, "trust_any_kms_identity", toml.boolean, False):
        if text is not None:
            fields.fail("an identity is pinned, and `trust_any_kms_identity` would ignore it")
        return None
    if text is None:
        fields.fail(
            "`identity` is missing: base64url of the KMS's public key, as `GET /v1/identity` shows it"
        )
    if text.startswith("@"):
        text = toml.read_image_file(toml.absolute(fields, "identity", text[1:]), _MAX_PIN_FILE).strip()
    identity = fields.convert("identity", text, from_base64)
    if len(identity) != PUBLIC_KEY_LENGTH:
        fields.fail(f"`identity` must be base64url of {PUBLIC_KEY_LENGTH} bytes")
    return identity


def _app(fields: Fields) -> AppClaim | None:
    if not fields.has("app_id") and not fields.has("compose_hash"):
        return None
    return AppClaim(app_id=fields.hex("app_id", AppId), compose_hash=fields.hex("compose_hash", ComposeHash))


def _launch(fields: Fields, name: str) -> Mapping[str, JsonValue]:
    launch = fields.members(name)
    LaunchHint.parse({**launch}, lambda message: ConfigurationError(f"[launch]: {message}"))
    try:
        compact_json(launch)
    except TypeError:  # TOML has dates, and more numbers than JSON
        fields.fail(f"`{name}` holds what JSON has not")
    return launch


def _evidence(fields: Fields, path: str) -> EvidenceOptions:
    options = EvidenceOptions()
    if not fields.has("evidence"):
        return options
    table = toml.table(fields.take("evidence"), f"{path}: [evidence]", _EVIDENCE_KEYS)
    return EvidenceOptions(
        tsm=toml.optional(table, "tsm", toml.path, options.tsm),
        device=toml.optional(table, "device", toml.path, options.device),
        interface=toml.optional(table, "interface", toml.word_of(Interface), options.interface),
        privlevel=table.integer("privlevel", maximum=_MAX_PRIVLEVEL) if table.has("privlevel") else None,
    )


def _volumes(fields: Fields, path: str) -> Mapping[str, VolumeConfig]:
    if not fields.has("volumes"):
        return {}
    tables = fields.take("volumes")
    if not isinstance(tables, dict):
        fields.fail("volumes are tables: [volumes.NAME]")
    return {name: _volume(name, value, path) for name, value in tables.items()}


def _volume(name: str, value: JsonValue, path: str) -> VolumeConfig:
    table = toml.table(value, f"{path}: [volumes.{name[:80]}]", _VOLUME_KEYS)
    table.convert(name[:80], name, volume_name)
    key = table.convert("key", toml.optional(table, "key", toml.text, DEFAULT_VOLUME_KEY), parse_key)
    if key.epoch is not None:
        table.fail("`key` takes no epoch: the volume's own header names the one that it was made with")
    if key.name.algorithm is not Algorithm.SYMMETRIC_256:
        table.fail("`key` must be a symmetric one: disk, custom:PATH or dstack:disk")
    return VolumeConfig(
        name=name,
        device=toml.path(table, "device"),
        key=key,
        format_blank=toml.optional(table, "format", toml.word_of(Format), Format.NEVER) is Format.BLANK,
        rotate=toml.optional(table, "rotate", toml.boolean, True),
    )


def volume_name(text: str) -> str:
    """Check the name of a mapping (/dev/mapper/NAME) and give it. Raises `ValueError`, without the name."""
    if not _VOLUME_NAME.fullmatch(text):
        raise ValueError("the name of a mapping is 1 to 127 letters, digits and any of #+-.:=@_")
    return text


def _served(fields: Fields, path: str) -> tuple[ServedKey, ...]:
    if not fields.has("serve"):
        return ()
    where = f"{path}: [[serve.allow]]"
    entries = toml.table(fields.take("serve"), f"{path}: [serve]", ("allow",)).array(
        "allow", at_most=_MAX_SERVED
    )
    served = tuple(_served_key(toml.table(each, where, _SERVED_KEYS)) for each in entries)
    names = [each.credential for each in served if each.credential is not None]
    for what in (names, [(each.key, each.scope) for each in served]):
        if len(set(what)) != len(what):
            raise ConfigurationError(f"{where}: a key or a credential stands there twice")
    return served


def _served_key(table: Fields) -> ServedKey:
    text = toml.text(table, "key") + (f"@{toml.text(table, 'scope')}" if table.has("scope") else "")
    key = table.convert("key", text, parse_key)
    if key.epoch is not None:
        table.fail("`key` takes no epoch: whoever asks names it")
    served = ServedKey(
        key=key.name,
        scope=key.scope,
        uids=toml.optional(table, "uids", toml.ids, frozenset()),
        gids=toml.optional(table, "gids", toml.ids, frozenset()),
        credential=toml.optional(table, "credential", toml.text),
    )
    if served.credential is not None:
        table.convert("credential", served.credential, credential_name)
    if not (served.uids or served.gids or served.credential):
        table.fail("nobody may have it: give `uids`, `gids` or `credential`")
    return served
