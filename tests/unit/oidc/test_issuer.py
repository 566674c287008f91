"""What the settings may say of a provider, and which role its claims give."""

from typing import Any

import pytest

from kms.errors import ConfigurationError
from kms.oidc.issuer import Issuer, is_fetchable
from kms.operators import Role
from kms.settings import load_settings

SETTINGS: dict[str, Any] = {
    "issuer": "https://id.example/realms/kms",
    "audience": "attested-kms",
    "role_claim": "kms_roles",
    "roles": ["kms-admins=admin", "a=b=viewer"],
    "development": False,
}


def configured(**changes: Any) -> Issuer | None:
    return Issuer.configured(**{**SETTINGS, **changes})


def test_the_settings_become_an_issuer() -> None:
    issuer = configured()
    assert issuer is not None
    assert issuer.roles == {"kms-admins": Role.ADMIN, "a=b": Role.VIEWER}
    assert not issuer.plain
    assert issuer.discovery_url == "https://id.example/realms/kms/.well-known/openid-configuration"


def test_roles_come_from_the_environment_separated_by_commas() -> None:
    settings, _ = load_settings(None, {"KMS_OIDC_ROLES": "kms-admins=admin, readers = x=viewer"})
    issuer = configured(roles=settings.oidc_roles)
    assert issuer is not None
    assert issuer.roles == {"kms-admins": Role.ADMIN, "readers = x": Role.VIEWER}


def test_without_settings_there_is_none() -> None:
    assert configured(issuer=None, audience=None, roles=[]) is None


@pytest.mark.parametrize("missing", [{"issuer": None}, {"audience": None}, {"roles": []}])
def test_a_part_of_the_settings_is_refused(missing: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="go together"):
        configured(**missing)


@pytest.mark.parametrize("role", ["admin", "=admin", "kms-admins=root", "kms-admins=", "kms-admins=Admin"])
def test_a_role_that_is_none_is_refused(role: str) -> None:
    with pytest.raises(ConfigurationError, match="KMS_OIDC_ROLES"):
        configured(roles=[role])


BAD = ["", "id.example", "ftp://id.example", "https://", "https://u:p@id.example", "https://id.example?x=1"]
BAD += ["https://id.example#x", "https://[::1", "https://id.example:port", "http://id.example"]
BAD += ["http://127.0.0.1.example:1"]


@pytest.mark.parametrize("development", [False, True])
@pytest.mark.parametrize("url", BAD)
def test_an_issuer_that_is_no_https_url_is_refused(url: str, development: bool) -> None:
    with pytest.raises(ConfigurationError, match="KMS_OIDC_ISSUER"):
        configured(issuer=url, development=development)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_plain_http_serves_on_this_machine_in_development_only(host: str) -> None:
    issuer = configured(issuer=f"http://{host}:8080", development=True)
    assert issuer is not None
    assert issuer.plain
    with pytest.raises(ConfigurationError):
        configured(issuer=f"http://{host}:8080")


def test_keys_on_another_host_need_https() -> None:
    assert is_fetchable("https://keys.example/jwks", plain=False)
    assert not is_fetchable("http://keys.example/jwks", plain=True)
    assert not is_fetchable("file:///etc/passwd", plain=True)


@pytest.mark.parametrize(
    ("value", "role"),
    [
        ("ops", Role.OPERATOR),
        (["all"], Role.VIEWER),
        (["all", "ops", "audit"], Role.OPERATOR),
        (["audit", "all"], Role.AUDITOR),
        (["audit", "kms-admins"], Role.ADMIN),
        (["unknown", 5, None, ["ops"], {"ops": 1}, "all"], Role.VIEWER),
        ([], None),
        ("", None),
        (None, None),
        ("ops all", None),
        ("OPS", None),
        ({"ops": True}, None),
        (True, None),
    ],
)
def test_of_several_roles_the_first_in_order_counts(value: Any, role: Role | None) -> None:
    roles = {"kms-admins": Role.ADMIN, "ops": Role.OPERATOR, "audit": Role.AUDITOR, "all": Role.VIEWER}
    issuer = Issuer(url="https://i", audience="a", role_claim="kms_roles", roles=roles)
    assert issuer.role_of({"kms_roles": value}) is role


@pytest.mark.parametrize(
    ("claim", "claims", "role"),
    [
        ("realm_access.roles", {"realm_access": {"roles": ["ops"]}}, Role.OPERATOR),
        ("a.b.c", {"a": {"b": {"c": "ops"}}}, Role.OPERATOR),
        ("https://kms.example/roles", {"https://kms.example/roles": ["ops"]}, Role.OPERATOR),
        ("a.b", {"a": "ops"}, None),
        ("a.b", {"a": ["ops"]}, None),
        ("a.b", {"b": "ops"}, None),
        ("a", {"a": {"a": "ops"}}, None),
    ],
)
def test_a_role_claim_may_be_a_path(claim: str, claims: Any, role: Role | None) -> None:
    issuer = Issuer(url="https://i", audience="a", role_claim=claim, roles={"ops": Role.OPERATOR})
    assert issuer.role_of(claims) is role
