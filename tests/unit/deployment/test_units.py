"""The systemd unit and HAProxy's configuration, judged by the programs that will read them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from kms.errors import ConfigurationError
from kms.private_files import read_secret

ROOT: Final = Path(__file__).parents[3]
UNIT: Final = ROOT / "ops" / "systemd" / "attested-kms.service"
HAPROXY: Final = ROOT / "ops" / "haproxy" / "haproxy.cfg"
MOST_EXPOSED: Final = "20"  # of 100, by systemd-analyze's own measure: 15 when this was written


def program(name: str, package: str) -> str:
    """Give a program, or skip the test."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"there is no {name}, so {package} is not checked: apt-get install {package}")
    return found


def run(*command: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class TestSystemd:
    def test_the_unit_is_one(self, tmp_path: Path) -> None:
        analyze = program("systemd-analyze", "systemd")
        unit = tmp_path / UNIT.name
        # Where the user and the program are those of this machine.
        text = re.sub(r"^(User|Group)=.*$", r"\1=daemon", UNIT.read_text(), flags=re.MULTILINE)
        unit.write_text(text.replace("/opt/attested-kms/bin/kms", sys.executable))
        done = run(analyze, "verify", "--man=no", unit)
        assert (done.returncode, done.stderr) == (0, "")

    def test_it_is_exposed_to_little(self) -> None:
        analyze = program("systemd-analyze", "systemd")
        done = run(analyze, "security", "--offline=true", f"--threshold={MOST_EXPOSED}", "--no-pager", UNIT)
        assert done.returncode == 0, done.stdout

    def test_it_stops_later_than_the_server_does(self) -> None:
        stop = int(re.findall(r"^TimeoutStopSec=(\d+)s$", UNIT.read_text(), re.MULTILINE)[0])
        grace = int(
            re.findall(r"^_GRACE: Final = (\d+)", (ROOT / "kms/serving.py").read_text(), re.MULTILINE)[0]
        )
        assert stop >= grace + 10

    def test_nothing_is_said_twice(self) -> None:
        """Of most settings the last one counts, and the first would be a lie."""
        names = re.findall(r"^([A-Za-z]+)=", UNIT.read_text(), re.MULTILINE)
        assert {name for name in names if names.count(name) > 1} == {"SystemCallFilter"}


class TestCredentials:
    """LoadCredential= of the unit. Where systemd gives them by an ACL, their mode is shown as 0440."""

    @pytest.mark.parametrize(
        ("mode", "taken"), [(0o400, True), (0o440, True), (0o444, False), (0o460, False)]
    )
    def test_those_of_systemd_are_taken_as_it_gives_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, taken: bool
    ) -> None:
        credential = tmp_path / "root-key-passphrase"
        credential.write_text("correct horse")
        credential.chmod(mode)
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        if taken:
            assert read_secret(credential, what="passphrase") == b"correct horse"
        else:
            with pytest.raises(ConfigurationError, match="others can use it"):
                read_secret(credential, what="passphrase")

    def test_no_other_file_is(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "credentials").mkdir()
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
        other = tmp_path / "passphrase"
        other.write_text("correct horse")
        other.chmod(0o440)
        with pytest.raises(ConfigurationError, match="0440"):
            read_secret(other, what="passphrase")


class TestHaproxy:
    SETTINGS: Final = {
        "BALANCER_LISTEN": "127.0.0.1:1",
        "SERVER_1": "127.0.0.1:2",
        "SERVER_2": "[::1]:3",
    }

    def test_the_configuration_is_one(self, tmp_path: Path) -> None:
        haproxy = program("haproxy", "haproxy")
        done = run(sys.executable, ROOT / "ops" / "compose" / "prepare.py", tmp_path)
        assert done.returncode == 0, done.stderr
        ca = tmp_path / "kms" / "ca.pem"
        done = run(haproxy, "-c", "-q", "-f", HAPROXY, **self.SETTINGS, SERVERS_CA=str(ca))
        assert (done.returncode, done.stderr) == (0, "")

    def test_servers_must_prove_who_they_are(self, tmp_path: Path) -> None:
        """Without the CA it does not begin: an unverified check would believe anybody."""
        haproxy = program("haproxy", "haproxy")
        done = run(haproxy, "-c", "-q", "-f", HAPROXY, **self.SETTINGS, SERVERS_CA=str(tmp_path / "none"))
        assert done.returncode != 0
        assert "verify required" in HAPROXY.read_text()

    def test_it_passes_tls_through(self) -> None:
        text = HAPROXY.read_text()
        assert re.findall(r"^\s*mode (\w+)", text, re.MULTILINE) == ["tcp"]
        assert not re.search(r"^\s*bind .*\bssl\b", text, re.MULTILINE)
        assert not re.search(r"^\s*server .*\b(ssl|send-proxy)\b", text, re.MULTILINE)
