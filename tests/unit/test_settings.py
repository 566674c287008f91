from datetime import timedelta
from pathlib import Path

import pytest

from kms.errors import ConfigurationError
from kms.settings import Address, Rate, Settings, load_settings


def load(tmp_path: Path, toml: str = "", **environment: str) -> tuple[Settings, tuple[str, ...]]:
    file = tmp_path / "kms.toml"
    file.write_text(toml)
    return load_settings(file, environment)


def test_the_defaults_are_those_of_the_protocol() -> None:
    settings, warnings = load_settings(None, {})
    assert settings.data_dir == Path("kms-data")
    assert settings.listen == Address("127.0.0.1", 8443)
    assert settings.metrics_listen == Address("127.0.0.1", 9443)
    assert settings.rate_limit == Rate(200, 2000)
    assert settings.challenge_ttl == timedelta(seconds=300)
    assert settings.crl == "when-available"
    assert settings.crl_max_age == timedelta(days=7)
    assert settings.kds_urls == ["https://kdsintf.amd.com"]
    assert settings.kds_rate == Rate(5, 100)
    assert settings.workers == 1
    assert not settings.development
    assert warnings == ()


@pytest.mark.parametrize(
    ("written", "closest"),
    [
        ("polcy_dir", "policy_dir"),
        ("kds_url", "kds_urls"),
        ("Listen", "listen"),
        ("rate-limit", "rate_limit"),
    ],
)
def test_lesson_25_an_unknown_key_is_an_error_that_names_the_closest(
    tmp_path: Path, written: str, closest: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"did you mean `{closest}`"):
        load(tmp_path, f'{written} = "x"')


def test_lesson_25_an_unknown_key_that_resembles_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="zzzz"):
        load(tmp_path, "zzzz = 1")


def test_lesson_25_an_unknown_variable_is_a_warning(tmp_path: Path) -> None:
    settings, warnings = load(tmp_path, KMS_POLCY_DIR="/x", KMS_ZZZZ="1", OTHER="1", KMS_CONFIG="")
    assert settings.policy_dir is None
    assert len(warnings) == 2
    assert "KMS_POLICY_DIR" in warnings[0]
    assert warnings[1].startswith("KMS_ZZZZ is not a setting")


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    toml = 'listen = "127.0.0.1:1"\nworkers = 2'
    settings, _ = load(tmp_path, toml, KMS_LISTEN="[::1]:2", KMS_WORKERS="")
    assert settings.listen == Address("::1", 2)
    assert str(settings.listen) == "[::1]:2"
    assert settings.workers == 2


def test_the_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "other.toml"
    file.write_text('crl = "off"')
    settings, warnings = load_settings(None, {"KMS_CONFIG": str(file)})
    assert settings.crl == "off"
    assert warnings == ()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KMS_LISTEN", "8443"),
        ("KMS_LISTEN", "kms.example:8443"),
        ("KMS_LISTEN", "127.0.0.1:65536"),
        ("KMS_LISTEN", "127.0.0.1:-1"),
        ("KMS_LISTEN", "127.0.0.1:\u0663"),
        ("KMS_RATE_LIMIT", "0"),
        ("KMS_RATE_LIMIT", "many"),
        ("KMS_RATE_LIMIT", "-1/s"),
        ("KMS_CHALLENGE_TTL", "0"),
        ("KMS_CHALLENGE_TTL", "-5"),
        ("KMS_CHALLENGE_TTL", "soon"),
        ("KMS_CRL", "sometimes"),
        ("KMS_KDS_URLS", "kdsintf.amd.com"),
        ("KMS_KDS_URLS", "ftp://kdsintf.amd.com"),
        ("KMS_KDS_URLS", "https://user:secret@kds"),
        ("KMS_KDS_URLS", "https://kds?x=1"),
        ("KMS_KDS_URLS", "https://[::1"),
        ("KMS_KDS_RATE", "0"),
        ("KMS_TLS_MINIMUM", "1.1"),
        ("KMS_WORKERS", "0"),
        ("KMS_LOG_LEVEL", "loud"),
    ],
)
def test_a_wrong_value_names_its_setting(tmp_path: Path, variable: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"setting {variable}: "):
        load(tmp_path, **{variable: value})


@pytest.mark.parametrize(
    ("variable", "value", "member", "wanted"),
    [
        ("KMS_RATE_LIMIT", "50", "rate_limit", Rate(50, 500)),
        ("KMS_RATE_LIMIT", "50/s", "rate_limit", Rate(50, 500)),
        ("KMS_RATE_LIMIT", "50/s burst 60", "rate_limit", Rate(50, 60)),
        ("KMS_CHALLENGE_TTL", "60", "challenge_ttl", timedelta(seconds=60)),
        ("KMS_CHALLENGE_TTL", "5 minutes", "challenge_ttl", timedelta(minutes=5)),
        ("KMS_METRICS_LISTEN", "off", "metrics_listen", None),
        ("KMS_DEVELOPMENT_ROOTS", "roots.pem", "development", True),
        ("KMS_CRL_MAX_AGE", "2d", "crl_max_age", timedelta(days=2)),
        ("KMS_CRL", "off", "crl", "off"),
        ("KMS_CRL", "when-available", "crl", "when-available"),
        ("KMS_CRL", "require", "crl", "require"),
        ("KMS_KDS_URLS", "https://a, https://b", "kds_urls", ["https://a", "https://b"]),
        ("KMS_KDS_URLS", "http://127.0.0.1:80/kds/", "kds_urls", ["http://127.0.0.1:80/kds"]),
        ("KMS_KDS_URLS", "none", "kds_urls", []),
        ("KMS_KDS_RATE", "2/s burst 9", "kds_rate", Rate(2, 9)),
    ],
)
def test_values_are_read(tmp_path: Path, variable: str, value: str, member: str, wanted: object) -> None:
    settings, warnings = load(tmp_path, **{variable: value})
    assert getattr(settings, member) == wanted
    assert warnings == ()


def test_credentials_are_not_shown(tmp_path: Path) -> None:
    url = "postgresql+asyncpg://user:hunter2@db/kms"
    settings, _ = load(tmp_path, KMS_DATABASE_URL=url, KMS_LEDGER_ANCHOR="https://u:hunter2@vault/kv")
    assert "hunter2" not in str(settings.shown())
    assert "hunter2" not in repr(settings)
    assert set(Settings.model_fields) == set(settings.shown())


def test_the_path_of_an_anchor_is_shown_as_it_is(tmp_path: Path) -> None:
    for anchor in ("/mnt/anchor/kms.json", "file:/mnt/anchor/kms.json"):
        settings, _ = load(tmp_path, KMS_LEDGER_ANCHOR=anchor)
        assert settings.shown()["ledger_anchor"] == anchor


@pytest.mark.parametrize("content", [b"listen = ", b"\xff", b"a = 1\na = 2"])
def test_a_file_that_is_no_toml(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "kms.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match="TOML"):
        load_settings(file, {})


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        load_settings(tmp_path / "nothing.toml", {})


@pytest.mark.parametrize(
    "line",
    [
        'listen = ["localhost", 99999]',
        "listen = 8443",
        "rate_limit = [0, 0]",
        "challenge_ttl = 3.5",
        "workers = true",
    ],
)
def test_a_value_of_another_type_is_told_in_words(tmp_path: Path, line: str) -> None:
    (tmp_path / "kms.toml").write_text(line)
    name = line.split(" ", maxsplit=1)[0].upper()
    with pytest.raises(ConfigurationError, match=f"setting KMS_{name}: (write|Value|Input)"):
        load_settings(tmp_path / "kms.toml", {})


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql+asyncpg://kms:a/b@h@db/kms?password=x", "postgresql+asyncpg://db/kms"),
        ("sqlite+aiosqlite:////var/lib/kms/kms.sqlite3", "sqlite+aiosqlite:////var/lib/kms/kms.sqlite3"),
        ("pkcs11:token=kms?pin-value=secret", "pkcs11:…"),
        ("file:/var/lib/kms/root-key.json", "file:/var/lib/kms/root-key.json"),
    ],
)
def test_what_is_printed_holds_no_password(uri: str, shown: str) -> None:
    settings, _ = load_settings(None, {"KMS_DATABASE_URL": uri, "KMS_ROOT_KEY": uri})
    assert settings.shown()["database_url"] == settings.shown()["root_key"] == shown
