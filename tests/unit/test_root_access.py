"""What the settings say of passphrases and Vault."""

from datetime import timedelta
from pathlib import Path

import pytest

from kms import private_files
from kms.errors import ConfigurationError
from kms.keys.root_messages import Mode
from kms.root_access import read_passphrase, root_access
from kms.rootkey.vault_access import AppRole, Kubernetes, TokenFile
from kms.settings import Settings, load_settings

ROOT = {"KMS_ROOT_KEY": "vault-transit:transit/kms"}
VAULT = {**ROOT, "KMS_VAULT_ADDR": "https://vault.internal:8200/"}
TOKEN = {"KMS_VAULT_TOKEN_FILE": "/run/token"}


def settings(**variables: str) -> Settings:
    return load_settings(None, variables)[0]


def _belongs_to_another(*_: object) -> None:
    raise private_files.ForeignOwner


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
        root_access(settings(**ROOT, KMS_VAULT_ADDR=address, **TOKEN))
    assert "token@" not in str(refused.value)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8200", "http://[::1]:8200"])
def test_without_tls_only_on_this_machine(address: str) -> None:
    assert root_access(settings(**ROOT, KMS_VAULT_ADDR=address, **TOKEN)).vault is not None


class TestWithoutEffect:
    """Field lesson 25: what does nothing is not accepted in silence."""

    @pytest.mark.parametrize("root", [{}, {"KMS_ROOT_KEY": "file:/root.json"}, ROOT])
    def test_vault_without_its_address(self, root: dict[str, str]) -> None:
        with pytest.raises(ConfigurationError) as refused:
            root_access(settings(**root, **TOKEN, KMS_VAULT_CA="/ca.pem", KMS_VAULT_TIMEOUT="3"))
        for name in ("KMS_VAULT_TOKEN_FILE", "KMS_VAULT_CA", "KMS_VAULT_TIMEOUT"):
            assert name in refused.value.detail
        assert "KMS_VAULT_KUBERNETES_TOKEN_FILE" not in refused.value.detail  # only its default
        assert refused.value.remedy

    @pytest.mark.parametrize("root", [{}, {"KMS_ROOT_KEY": "pkcs11:token=kms"}])
    def test_vault_beside_a_root_that_is_elsewhere(self, root: dict[str, str]) -> None:
        with pytest.raises(ConfigurationError, match=r"KMS_VAULT_ADDR.* neither KMS_ROOT_KEY nor"):
            root_access(settings(**{**VAULT, **TOKEN, "KMS_ROOT_KEY": "file:x", **root}))

    def test_vault_for_the_anchor_alone_has_an_effect(self) -> None:
        values = {**VAULT, **TOKEN, "KMS_ROOT_KEY": "file:x", "KMS_LEDGER_ANCHOR": "vault-kv:kv/anchor"}
        assert root_access(settings(**values)).vault is not None

    @pytest.mark.parametrize("root", ["vault-kv:kv/kms", "pkcs11:token=kms"])
    def test_a_passphrase_that_would_encrypt_nothing(self, root: str) -> None:
        with pytest.raises(ConfigurationError, match=r"KMS_ROOT_KEY_PASSPHRASE_FILE.* is no file"):
            root_access(settings(KMS_ROOT_KEY=root, KMS_ROOT_KEY_PASSPHRASE_FILE="/passphrase"))

    @pytest.mark.parametrize(
        ("variable", "value"),
        [("KMS_VAULT_AUTH_MOUNT", "approle"), ("KMS_VAULT_KUBERNETES_TOKEN_FILE", "/run/jwt")],
    )
    def test_another_way_to_log_in(self, variable: str, value: str) -> None:
        with pytest.raises(ConfigurationError, match=f"no effect: {variable},"):
            root_access(settings(**VAULT, **TOKEN, **{variable: value}))


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

    def test_a_mounted_secret_is_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "..data").mkdir()
        (tmp_path / "..data" / "passphrase").write_bytes(b"correct horse\n")
        (tmp_path / "..data" / "passphrase").chmod(0o400)
        link = tmp_path / "passphrase"
        link.symlink_to("..data/passphrase")
        assert read_passphrase(str(link)) == b"correct horse"
        link.resolve().chmod(0o440)
        with pytest.raises(ConfigurationError, match="has mode 0440"):
            read_passphrase(str(link))

    def test_the_remedy_fits_the_fault(self, tmp_path: Path) -> None:
        long = tmp_path / "long"
        long.write_bytes(bytes(4097))
        long.chmod(0o400)
        for path, said in ((long, "longer"), (tmp_path, "not a regular file")):
            with pytest.raises(ConfigurationError, match=said) as refused:
                read_passphrase(str(path))
            assert refused.value.remedy
            assert "chmod" not in refused.value.remedy

    def test_a_file_of_another_user_is_to_be_chowned(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "passphrase"
        path.write_bytes(b"correct horse")
        path.chmod(0o400)
        monkeypatch.setattr(private_files, "_require_fit", _belongs_to_another)
        with pytest.raises(ConfigurationError, match="belongs to another user") as refused:
            read_passphrase(str(path))
        assert "chown" in refused.value.remedy

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
