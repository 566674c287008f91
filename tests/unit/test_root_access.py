"""What the settings say of passphrases and Vault."""

from datetime import timedelta
from pathlib import Path

import pytest

from kms.errors import ConfigurationError
from kms.keys.root_messages import Mode
from kms.root_access import read_passphrase, root_access
from kms.rootkey.vault_access import AppRole, Kubernetes, TokenFile
from kms.settings import Settings, load_settings

VAULT = {"KMS_VAULT_ADDR": "https://vault.internal:8200/"}
TOKEN = {"KMS_VAULT_TOKEN_FILE": "/run/token"}


def settings(**variables: str) -> Settings:
    return load_settings(None, variables)[0]


def test_without_settings_there_is_neither() -> None:
    access = root_access(settings())
    assert (access.mode, access.passphrase, access.vault) == (Mode.PRODUCTION, None, None)


@pytest.mark.parametrize(
    ("variables", "login"),
    [
        (TOKEN, TokenFile(Path("/run/token"))),
        (
            {"KMS_VAULT_ROLE_ID": "kms", "KMS_VAULT_SECRET_ID_FILE": "/run/secret"},
            AppRole("kms", Path("/run/secret"), "approle"),
        ),
        (
            {
                "KMS_VAULT_ROLE_ID": "kms",
                "KMS_VAULT_SECRET_ID_FILE": "/run/secret",
                "KMS_VAULT_AUTH_MOUNT": "apps",
            },
            AppRole("kms", Path("/run/secret"), "apps"),
        ),
        (
            {"KMS_VAULT_KUBERNETES_ROLE": "kms", "KMS_VAULT_KUBERNETES_TOKEN_FILE": "/run/jwt"},
            Kubernetes("kms", Path("/run/jwt"), "kubernetes"),
        ),
    ],
)
def test_each_way_to_log_in(variables: dict[str, str], login: object) -> None:
    vault = root_access(
        settings(**VAULT, **variables, KMS_VAULT_NAMESPACE="team", KMS_VAULT_CA="/ca.pem")
    ).vault
    assert vault is not None
    assert (vault.address, vault.login, vault.ca) == ("https://vault.internal:8200", login, Path("/ca.pem"))
    assert (vault.namespace, vault.timeout) == ("team", timedelta(seconds=3))


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {**TOKEN, "KMS_VAULT_KUBERNETES_ROLE": "kms"},
        {"KMS_VAULT_ROLE_ID": "kms"},
        {"KMS_VAULT_SECRET_ID_FILE": "/run/secret"},
    ],
)
def test_exactly_one_way(variables: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="KMS_VAULT"):
        root_access(settings(**VAULT, **variables))


@pytest.mark.parametrize(
    "address",
    [
        "http://vault.internal:8200",
        "http://localhost:8200",
        "vault.internal:8200",
        "https://",
        "https://token@vault.internal",
        "https://vault.internal/ui",
        "https://vault.internal:99999",
        "ftp://vault.internal",
    ],
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ConfigurationError, match="KMS_VAULT_ADDR") as refused:
        root_access(settings(KMS_VAULT_ADDR=address, **TOKEN))
    assert "token@" not in str(refused.value)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8200", "http://[::1]:8200"])
def test_without_tls_only_on_this_machine(address: str) -> None:
    assert root_access(settings(KMS_VAULT_ADDR=address, **TOKEN)).vault is not None


class TestPassphrase:
    def test_it_is_read_when_it_is_needed_without_its_line_end(self, tmp_path: Path) -> None:
        path = tmp_path / "passphrase"
        access = root_access(settings(KMS_ROOT_KEY_PASSPHRASE_FILE=str(path)))
        path.write_bytes(b"correct horse \n")
        path.chmod(0o400)
        assert access.passphrase is not None
        assert access.passphrase() == b"correct horse "
        assert "horse" not in repr(access)

    def test_others_must_not_read_it(self, tmp_path: Path) -> None:
        path = tmp_path / "passphrase"
        path.write_bytes(b"correct horse")
        path.chmod(0o444)
        with pytest.raises(ConfigurationError, match="others can use it") as refused:
            read_passphrase(str(path))
        assert "horse" not in str(refused.value)

    def test_a_credential_of_systemd(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "kms-root").write_bytes(b"correct horse")
        (tmp_path / "kms-root").chmod(0o400)
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        assert read_passphrase("credential:kms-root") == b"correct horse"
        for name in ("credential:", "credential:../kms-root", "credential:.."):
            with pytest.raises(ConfigurationError, match="credential"):
                read_passphrase(name)

    def test_a_credential_that_nobody_gave(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
        with pytest.raises(ConfigurationError, match="systemd gave this process none"):
            read_passphrase("credential:kms-root")

    def test_one_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="No such file"):
            read_passphrase(str(tmp_path / "nothing"))
