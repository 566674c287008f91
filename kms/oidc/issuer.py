"""Which provider is believed, for which audience, and what its claims mean here."""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import SplitResult, urlsplit

from kms.errors import ConfigurationError
from kms.operators import Role
from kms.strict_json import JsonValue

# Of several roles the first of these counts: an actor has one. Operator before auditor, because it may change
# something; who needs both has to be an admin, or come with two tokens.
_PRECEDENCE: Final = (Role.ADMIN, Role.OPERATOR, Role.AUDITOR, Role.VIEWER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """A provider. `roles` maps values of the claim `role_claim` to roles.

    `role_claim` is the name of a claim, or a path of names joined by dots (``realm_access.roles``). `plain`
    says that http will do, for a provider on this machine.
    """

    url: str
    audience: str
    role_claim: str
    roles: Mapping[str, Role]
    plain: bool = False

    @classmethod
    def configured(
        cls,
        *,
        issuer: str | None,
        audience: str | None,
        role_claim: str,
        roles: Iterable[str],
        development: bool,
    ) -> Self | None:
        """Read the settings ``KMS_OIDC_…``; None if none is set.

        Raises:
            ConfigurationError: some are set and others are missing, or one makes no sense.

        """
        mapped = dict(_role(each) for each in roles)
        if issuer is None and audience is None and not mapped:
            return None
        if issuer is None or audience is None or not mapped:
            raise ConfigurationError(
                "KMS_OIDC_ISSUER, KMS_OIDC_AUDIENCE and KMS_OIDC_ROLES go together: set all or none"
            )
        parts = _split(issuer)
        plain = development and parts is not None and _is_loopback(parts)
        if parts is None or not is_fetchable(issuer, plain=plain) or parts.query:
            raise ConfigurationError(
                "KMS_OIDC_ISSUER is not the https URL of a provider",
                remedy="write it exactly as the provider's tokens say it in `iss`; http serves only in"
                " development mode, for a provider on this machine",
            )
        return cls(url=issuer, audience=audience, role_claim=role_claim, roles=mapped, plain=plain)

    @property
    def discovery_url(self) -> str:
        """Where its document is (OpenID Connect Discovery 1.0, section 4)."""
        return self.url.rstrip("/") + "/.well-known/openid-configuration"

    def role_of(self, claims: Mapping[str, JsonValue]) -> Role | None:
        """Give the role that a token's claims have here; None if they have none."""
        value = _claim(claims, self.role_claim)
        values = value if isinstance(value, list) else [value]
        held = {self.roles[each] for each in values if isinstance(each, str) and each in self.roles}
        return next((role for role in _PRECEDENCE if role in held), None)


def is_fetchable(url: str, *, plain: bool) -> bool:
    """Say whether a URL is one to ask: https; with `plain` also http, and that on this machine only."""
    parts = _split(url)
    if parts is None or not parts.hostname or parts.fragment or parts.username or parts.password:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and plain and _is_loopback(parts))


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # looked at only when it is asked for
    except ValueError:
        return None
    return parts


def _is_loopback(parts: SplitResult) -> bool:
    if parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def _role(text: str) -> tuple[str, Role]:
    value, equals, role = text.rpartition("=")
    try:
        if not equals or not value:
            raise ValueError
        return value, Role(role)
    except ValueError:
        raise ConfigurationError(
            "KMS_OIDC_ROLES: write CLAIM-VALUE=ROLE, for example kms-admins=admin",
            remedy=f"the roles are {', '.join(Role)}",
        ) from None


def _claim(claims: Mapping[str, JsonValue], name: str) -> JsonValue:
    """Give a claim of this very name (``https://example.com/roles``), else what the path leads to."""
    if name in claims:
        return claims[name]
    value: JsonValue = dict(claims)
    for part in name.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value
