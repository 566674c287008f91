"""The settings: `kms.toml`, overridden by `KMS_…` environment variables. Unknown keys are errors."""

import difflib
import ipaddress
import os
import re
import socket
import tomllib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from typing_extensions import override

from kms.errors import ConfigurationError
from kms.snp.revocation import RevocationMode

_PREFIX = "KMS_"
# Read by the command line and the tests; not settings of the server.
_NOT_SETTINGS = frozenset({"KMS_CONFIG", "KMS_REAL_EVIDENCE"})
_RATE = re.compile(r"(\d{1,9})(?:/s)?(?: burst (\d{1,9}))?")
_DURATION = re.compile(r"(\d{1,6}) ?(s|m|h|d|seconds|minutes|hours|days)?")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Address(NamedTuple):
    """Where to listen."""

    host: str
    port: int

    @override
    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Rate(NamedTuple):
    """Requests a second, sustained, and how many may come at once."""

    per_second: int
    burst: int

    @override
    def __str__(self) -> str:
        return f"{self.per_second}/s burst {self.burst}"


def _address(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("write HOST:PORT, for example 127.0.0.1:8443")  # noqa: TRY004 -- for the operator
    host, colon, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]").replace("localhost", "127.0.0.1")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("write HOST:PORT, for example 127.0.0.1:8443")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError("the host must be an IP address, for example 127.0.0.1 or [::]") from None
    return Address(host, int(port))


def _optional_address(value: object) -> object:
    return None if value in {"off", ""} else _address(value)


def _rate(value: object) -> object:
    match = _RATE.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match[1]) == 0:
        raise ValueError("write RATE/s, for example 200/s, or 200/s burst 2000")
    return Rate(int(match[1]), int(match[2]) if match[2] else 10 * int(match[1]))


def _duration(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("write a time, for example 300, 5 minutes or 7 days")
    unit = match[2] or "seconds"
    return timedelta(**{_UNITS.get(unit, unit): int(match[1])})


def _no_truth(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("write a whole number")  # noqa: TRY004 -- for the operator
    return value


def _list(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _urls(value: object) -> object:
    urls = _list(value)
    if not isinstance(urls, list) or urls == ["none"]:
        return [] if urls == ["none"] else urls
    for url in urls:
        parts = urlsplit(url) if isinstance(url, str) else None
        if parts is None or parts.scheme not in {"https", "http"} or not parts.hostname:
            raise ValueError("write base URLs as https://HOST[:PORT][/PATH], or none")
        if parts.query or parts.fragment or parts.username or parts.password:
            raise ValueError("a base URL has no user, query or fragment")
    return [url.rstrip("/") for url in urls]


def _traces(value: object) -> object:
    if value is None:
        return None
    found = _urls([value])
    if not isinstance(found, list) or len(found) != 1:
        raise ValueError("write the URL of an OTLP/HTTP collector, for example https://HOST:4318/v1/traces")
    url = found[0]
    return url if urlsplit(url).path else f"{url}/v1/traces"


def _host_name() -> str:
    """Give the host's name as far as it fits."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64] or "kms"


def _positive(value: timedelta) -> timedelta:
    if value <= timedelta(0):
        raise ValueError("must be more than nothing")
    return value


ListenAddress = Annotated[Address, BeforeValidator(_address)]
OptionalAddress = Annotated[Address | None, BeforeValidator(_optional_address)]
RequestRate = Annotated[Rate, BeforeValidator(_rate)]
Duration = Annotated[timedelta, BeforeValidator(_duration), AfterValidator(_positive)]


class Settings(BaseModel):
    """Every setting of the server. The names are the environment variables', in lower case without KMS_."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    data_dir: Path = Field(Path("kms-data"), description="embedded database, root key file, TLS files")
    database_url: str | None = Field(None, description="default: SQLite in the data folder", repr=False)
    listen: ListenAddress = Field(Address("127.0.0.1", 8443), description="HTTPS")
    metrics_listen: OptionalAddress = Field(Address("127.0.0.1", 9443), description="Prometheus, or `off`")
    tls_cert: Path | None = Field(None, description="PEM chain; made on first start when unset")
    tls_key: Path | None = Field(None, description="PEM key; made on first start when unset")
    tls_minimum: Literal["1.2", "1.3"] = Field("1.3", description="lowest TLS version")
    tls_names: Annotated[list[str], BeforeValidator(_list)] = Field(
        default_factory=list, description="further names and addresses in the certificate that is made"
    )
    operator_ca: Path | None = Field(None, description="PEM file of CAs of operators' client certificates")
    oidc_issuer: str | None = Field(None, description="OpenID Connect provider of operators")
    oidc_audience: str | None = Field(None, description="what its tokens must be meant for")
    oidc_role_claim: str = Field("kms_roles", min_length=1, description="claim that names roles")
    oidc_roles: Annotated[list[str], BeforeValidator(_list)] = Field(
        default_factory=list, description="CLAIM-VALUE=ROLE, separated by commas"
    )
    root_key: str | None = Field(None, description="default: file:root-key.json in the data folder")
    root_key_passphrase_file: str | None = Field(
        None, description="encrypts a root key file: PATH, or credential:NAME of systemd"
    )
    vault_addr: str | None = Field(None, description="Vault or OpenBao, https://HOST:PORT")
    vault_ca: Path | None = Field(None, description="PEM file of the only CAs to trust there")
    vault_namespace: str | None = Field(None, description="Vault namespace")
    vault_timeout: Duration = Field(timedelta(seconds=3), description="for each call to Vault")
    vault_token_file: Path | None = Field(None, description="log in with the token in this file")
    vault_role_id: str | None = Field(None, description="log in with AppRole, as this role id")
    vault_secret_id_file: Path | None = Field(None, description="file with AppRole's secret id")
    vault_kubernetes_role: str | None = Field(None, description="log in with Kubernetes, for this role")
    vault_kubernetes_token_file: Path = Field(
        Path("/var/run/secrets/kubernetes.io/serviceaccount/token"),
        description="the service account's token",
    )
    vault_auth_mount: str | None = Field(
        None, description="where the login method is mounted; default: approle or kubernetes"
    )
    recovery_keys: Path | None = Field(None, description="file of those who may get a backup of the root")
    lock_memory: bool = Field(False, description="keep all memory from being swapped out")
    policy_dir: Path | None = Field(None, description="watched policy folder")
    policy_trust: Path | None = Field(None, description="operators' public keys and quorums")
    ledger_anchor: str | None = Field(
        None,
        repr=False,
        description="where the newest policy, epochs and ledger that were seen are kept: PATH, or"
        " vault-kv:MOUNT/PATH; default: a file in the data folder",
    )
    collateral_dir: Path | None = Field(
        None, description="certificates; default: collateral in the data folder"
    )
    kds_urls: Annotated[list[str], BeforeValidator(_urls)] = Field(
        default_factory=lambda: ["https://kdsintf.amd.com"],
        description="key distribution services, in order, or `none`",
    )
    kds_rate: RequestRate = Field(Rate(5, 100), description="requests to each key distribution service")
    crl: RevocationMode = Field(RevocationMode.WHEN_AVAILABLE, description="revocation lists")
    crl_max_age: Duration = Field(timedelta(days=7), description="past a list's next update")
    development_roots: Path | None = Field(None, description="PEM file of extra ARKs: DEVELOPMENT MODE")
    rate_limit: RequestRate = Field(Rate(200, 2000), description="for each address, all servers together")
    rate_limit_total: RequestRate = Field(
        Rate(2000, 20_000), description="releases of all addresses, each server process"
    )
    rate_limit_chip: RequestRate = Field(
        Rate(20, 1000), description="for each chip, once its report is verified"
    )
    rate_limit_app: RequestRate = Field(
        Rate(500, 20_000), description="for each app, once the policy allowed its guest"
    )
    max_in_flight: Annotated[int, BeforeValidator(_no_truth)] = Field(
        256, ge=1, le=65_536, description="releases worked on at once, each server process"
    )
    drain: Annotated[timedelta, BeforeValidator(_duration)] = Field(
        timedelta(0), description="how long a server that was told to stop still accepts connections"
    )
    challenge_ttl: Duration = Field(timedelta(seconds=300), description="seconds")
    server_name: str = Field(
        default_factory=_host_name,
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="how this server is called in entries and logs; default: the host's name",
    )
    workers: Annotated[int, BeforeValidator(_no_truth)] = Field(
        1, ge=1, le=256, description="server processes"
    )
    traces: Annotated[str | None, BeforeValidator(_traces)] = Field(
        None, description="OTLP/HTTP collector of traces, https://HOST:4318; default: no traces"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe log line"
    )

    @property
    def development(self) -> bool:
        """Whether the server trusts anything but AMD's roots."""
        return self.development_roots is not None

    @property
    def certificate_folder(self) -> Path:
        """Where local endorsement certificates are."""
        return self.collateral_dir or self.data_dir / "collateral"

    def shown(self) -> dict[str, Any]:
        """Give the effective settings for printing, without credentials in URLs."""
        shown: dict[str, Any] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if name in {"database_url", "root_key", "ledger_anchor"} and value:
                value = _without_secrets(value)
            shown[name] = value if value is None or isinstance(value, list | int) else str(value)
        return shown


def _without_secrets(uri: str) -> str:
    """Give a URI or path without what may be a password: user part and query; of unknown schemes, all."""
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme == "file":
        return uri
    address = re.fullmatch(r"//(?:.*@)?([^@?]*)(?:\?.*)?", rest, re.DOTALL)
    return f"{scheme}://{address[1]}" if address else f"{scheme}:…"


def load_settings(
    config: Path | None, environment: Mapping[str, str] | None = None
) -> tuple[Settings, tuple[str, ...]]:
    """Read `kms.toml` (`config`, else `KMS_CONFIG`, else none) and the environment.

    Gives the settings, and warnings: `KMS_…` variables that are none.

    Raises:
        ConfigurationError: an unreadable file, an unknown key (with the closest known one), a wrong value.

    """
    environment = os.environ if environment is None else environment
    if config is None and environment.get("KMS_CONFIG"):
        config = Path(environment["KMS_CONFIG"])
    values = {} if config is None else _read_toml(config)
    known = set(Settings.model_fields)
    for name in values:
        if name not in known:
            raise ConfigurationError(f"{config}: unknown setting `{name}`{_closest(name, known)}")
    warnings = []
    for variable, value in environment.items():
        if not variable.startswith(_PREFIX) or variable in _NOT_SETTINGS:
            continue
        name = variable.removeprefix(_PREFIX).lower()
        if name not in known:
            warnings.append(f"{variable} is not a setting{_closest(name, known, _PREFIX)}")
        elif value != "":
            values[name] = value
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = str(first["loc"][0])
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"setting {_PREFIX}{name.upper()}: {message}") from None
    return settings, tuple(warnings)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not TOML: {error}") from error


def _closest(name: str, known: set[str], prefix: str = "") -> str:
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not found:
        return ""
    closest = prefix + found[0].upper() if prefix else found[0]
    return f"; did you mean `{closest}`?"
