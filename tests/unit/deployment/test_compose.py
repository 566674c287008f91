"""docker-compose.yml says what it must and names nothing that is not there, as far as reading it tells."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from kms.settings import load_settings
from tests.environment_file import read_environment

ROOT: Final = Path(__file__).parents[3]
COMPOSE: Final = ROOT / "docker-compose.yml"
DEVELOPMENT: Final = ROOT / "ops" / "compose" / "development.yml"
KMS_ENV: Final = ROOT / "ops" / "compose" / "kms.env"
SECRETS: Final = "ops/compose/secrets/"


@cache
def compose(path: Path = COMPOSE) -> dict[str, Any]:
    document = yaml.safe_load(path.read_text())
    assert isinstance(document, dict)
    return document


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


def source(named: str | dict[str, str]) -> str:
    return named if isinstance(named, str) else named["source"]


EACH: Final = pytest.mark.parametrize("name", sorted(services()))


class TestServices:
    @EACH
    def test_images_are_pinned(self, name: str) -> None:
        assert re.fullmatch(r"[a-z0-9/-]+:v?\d+\.\d+[A-Za-z0-9.-]*", services()[name]["image"])

    @EACH
    def test_none_has_rights(self, name: str) -> None:
        service = services()[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service
        if name == "prepare":
            # Root gives the secrets to those who read them; it has no network, and runs once.
            assert service["cap_add"] == ["CHOWN", "DAC_OVERRIDE"]
            assert service["network_mode"] == "none"
            assert service["profiles"] == ["prepare"]
        else:
            assert "cap_add" not in service
            assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])

    @EACH
    def test_it_is_started_again_and_watched(self, name: str) -> None:
        service = services()[name]
        assert service["restart"] == ("no" if name == "prepare" else "unless-stopped")
        # Those of ours have the image's; what opens Vault serves nobody.
        if service["image"].startswith("attested-kms"):
            assert service.get("healthcheck", {"disable": True}) == {"disable": True}
        else:
            assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}

    @EACH
    def test_no_secret_is_in_the_environment_or_the_command(self, name: str) -> None:
        service = services()[name]
        for variable, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|TOKEN|KEY", variable):
                assert value.startswith("/run/secrets/"), variable
        for word in [*service.get("command", []), *service.get("entrypoint", [])]:
            assert not re.search(r"(password|secret|token)=(?!/run/secrets/)", word), word

    @EACH
    def test_what_it_mounts_is_declared_or_there(self, name: str) -> None:
        service = services()[name]
        for kind in ("secrets", "configs"):
            assert {source(each) for each in service.get(kind, [])} <= set(compose()[kind])
        for volume in service.get("volumes", []):
            origin = volume.split(":")[0]
            if origin.startswith("./"):
                assert (ROOT / origin).exists(), volume
            else:
                assert origin in compose()["volumes"], volume
        if "network_mode" not in service:
            assert set(service["networks"]) <= set(compose()["networks"])

    @EACH
    def test_what_it_reads_of_secrets_it_is_given(self, name: str) -> None:
        """Every /run/secrets/NAME that a service is told of is among its secrets."""
        service = services()[name]
        given = {
            each if isinstance(each, str) else each.get("target", each["source"])
            for each in service.get("secrets", [])
        }
        told = yaml.safe_dump(
            {part: service.get(part) for part in ("command", "entrypoint", "environment", "healthcheck")}
        )
        if "env_file" in service:
            told += (ROOT / service["env_file"]).read_text()
        for each in service.get("configs", []):
            told += (ROOT / compose()["configs"][source(each)]["file"]).read_text()
        assert set(re.findall(r"/run/secrets/([a-z0-9-]+)", told)) <= given


class TestDeclarations:
    def test_configs_are_in_the_repository(self) -> None:
        for declared in compose()["configs"].values():
            assert (ROOT / declared["file"]).is_file()

    def test_secrets_are_what_prepare_makes(self, tmp_path: Path) -> None:
        # Only root can give files away, as it does in its container.
        root = os.geteuid() == 0
        prepared = subprocess.run(
            [sys.executable, ROOT / "ops/compose/prepare.py", tmp_path, *(["--owned"] if root else [])],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert prepared.returncode == 0, prepared.stderr
        for name, declared in compose()["secrets"].items():
            file = tmp_path / declared["file"].removeprefix(SECRETS)
            assert file.is_file(), name
            mode = file.stat().st_mode & 0o777
            readers = [
                service["user"].split(":")[0]
                for service in services().values()
                if name in {source(each) for each in service.get("secrets", [])}
            ]
            if mode == 0o600 and root:
                assert set(readers) == {str(file.stat().st_uid)}, name
            assert mode == (0o644 if file.suffix == ".pem" and "key" not in file.name else 0o600), name

    def test_secrets_are_never_committed(self) -> None:
        assert (ROOT / SECRETS / ".gitignore").read_text() == "*\n!.gitignore\n"

    def test_each_anchor_is_on_a_volume_of_its_own(self) -> None:
        mounted = [
            volume.split(":")[0]
            for service in services().values()
            for volume in service.get("volumes", [])
            if ":/var/lib/attested-kms-anchor" in volume
        ]
        assert sorted(mounted) == ["kms-1-anchor", "kms-2-anchor"]


class TestSettings:
    def test_every_setting_is_one(self) -> None:
        """What is no setting would be a warning."""
        settings, warnings = load_settings(None, read_environment(KMS_ENV))
        assert warnings == ()
        assert not settings.development

    def test_every_setting_of_development_is_one(self) -> None:
        more = compose(DEVELOPMENT)["services"]["kms-1"]["environment"]
        settings, warnings = load_settings(None, read_environment(KMS_ENV) | more)
        assert warnings == ()
        assert settings.development

    def test_the_real_stack_trusts_amd_alone(self) -> None:
        assert "DEVELOPMENT" not in COMPOSE.read_text() + KMS_ENV.read_text()
        assert compose(DEVELOPMENT)["name"] == "attested-kms-development"

    def test_no_secret_is_in_the_settings(self) -> None:
        for variable, value in read_environment(KMS_ENV).items():
            assert not re.search(r"://[^/@]*:[^/@]*@", value), variable
            if re.search(r"PASSWORD|SECRET|TOKEN", variable):
                assert value.startswith("/run/secrets/"), variable

    def test_both_servers_are_the_same(self) -> None:
        first, second = services()["kms-1"], services()["kms-2"]
        own = ("hostname", "volumes")
        assert {name: value for name, value in first.items() if name not in own} == {
            name: value for name, value in second.items() if name not in own
        }

    def test_every_address_is_one_that_listens(self) -> None:
        settings, _ = load_settings(None, read_environment(KMS_ENV))
        listens = {
            "kms-1": {settings.listen.port, settings.metrics_listen.port if settings.metrics_listen else 0},
            "postgres": {5432},
            "vault": {8200, 8201},
            "prometheus": {9090},
        }
        listens["kms-2"] = listens["kms-1"]
        texts = [KMS_ENV.read_text(), COMPOSE.read_text()]
        texts += [(ROOT / each["file"]).read_text() for each in compose()["configs"].values()]
        named = re.findall(r"\b(kms-[12]|postgres|vault|prometheus):(\d+)\b(?!\.)", "\n".join(texts))
        assert {host for host, _ in named} == set(listens)
        for host, port in named:
            assert int(port) in listens[host] or (host, port) == ("postgres", "17"), (host, port)
        balancer = services()["balancer"]
        assert balancer["ports"] == [f"{settings.listen.port}:8443"]
        assert balancer["environment"]["BALANCER_LISTEN"] == "0.0.0.0:8443"

    def test_only_the_balancer_is_open_to_others(self) -> None:
        for name, service in services().items():
            for port in service.get("ports", []):
                assert name == "balancer" or port.startswith("127.0.0.1:"), name

    def test_files_are_where_the_image_has_a_folder_for_them(self) -> None:
        dockerfile = (ROOT / "Dockerfile").read_text()
        settings, _ = load_settings(None, read_environment(KMS_ENV))
        for folder in (str(settings.data_dir), str(Path(settings.ledger_anchor or "").parent)):
            assert f'"{folder}"' in dockerfile
            assert any(f":{folder}" in volume for volume in services()["kms-1"]["volumes"])

    def test_a_server_may_end_what_it_has_begun(self) -> None:
        settings, _ = load_settings(None, read_environment(KMS_ENV))
        assert services()["kms-1"]["stop_grace_period"] == "30s"
        assert settings.drain.total_seconds() + 20 < 30


class TestDockerfile:
    def test_it_copies_only_what_is_let_in(self) -> None:
        """What .dockerignore shuts out cannot be copied; what it lets in is copied."""
        let_in = set(re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
        copied: set[str] = set()
        for line in re.findall(r"^COPY (?!--from)(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE):
            copied |= set(line.split()[:-1])
        assert copied == let_in
        assert all((ROOT / each).exists() for each in copied)

    def test_users_are_those_of_compose(self) -> None:
        dockerfile = (ROOT / "Dockerfile").read_text()
        user = services()["kms-1"]["user"]
        assert f"USER {user}\n" in dockerfile
        prepare = (ROOT / "ops" / "compose" / "prepare.py").read_text()
        owners = dict(re.findall(r'"([a-z]+)": (\d+)', re.findall(r"OWNERS.*", prepare)[0]))
        users = {
            "kms": user,
            **{name: services()[name]["user"] for name in ("postgres", "vault", "grafana")},
        }
        assert owners == {name: each.split(":")[0] for name, each in users.items()}

    def test_stages_have_one_pinned_python(self) -> None:
        images = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        assert len(set(images)) == 1
        assert re.fullmatch(r"python:3\.11\.\d+-slim", images[0])


def docker_compose() -> str | None:
    """Give the docker that has compose; it needs no engine to read a file."""
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        return None
    return docker


# Only where it can run: no package of Debian's has it, and CI lets nothing be skipped.
if DOCKER := docker_compose():

    @pytest.mark.parametrize("files", [[COMPOSE], [COMPOSE, DEVELOPMENT]], ids=["real", "development"])
    def test_docker_understands_it(files: list[Path]) -> None:
        named = [word for file in files for word in ("--file", str(file))]
        done = subprocess.run(
            [str(DOCKER), "compose", *named, "--profile", "prepare", "config", "--quiet"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_the_image_has_every_extra_but_the_one_of_an_hsm() -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    synced = re.findall(r"^RUN uv sync (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert len(synced) == 2
    for options in synced:
        assert set(re.findall(r"--extra (\S+)", options)) == extras - {"pkcs11"}
