"""``kms collateral``: status, import, export and verify on the settings' database, as an operator runs them.

The commands take the clock of the machine, so the simulated AMD is made anew, and not that of other tests.
"""

import json
import os
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from kms.cli import run
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.unit.kds.stock import DAY, Amd, write

Captured = pytest.CaptureFixture[str]
LINE = "vcek/milan"


@pytest.fixture(scope="module")
def amd() -> Amd:
    now = datetime.now(UTC)
    return Amd(AmdHierarchy.generate(Product.MILAN, now=now - 30 * DAY, rsa_bits=2048), now)


@dataclass
class Site:
    """A machine with a database of its own."""

    folder: Path
    capsys: Captured

    def run(self, *argv: str) -> tuple[int, str]:
        """Run `kms collateral …`; give status and standard output."""
        status = run(["collateral", *argv])
        return status, self.capsys.readouterr().out

    def json(self, *argv: str) -> tuple[int, dict[str, Any]]:
        """Run it with `--json`; standard output is exactly one document."""
        status, out = self.run(*argv, "--json")
        document: dict[str, Any] = json.loads(out)
        return status, document

    def write(self, **files: bytes) -> str:
        return str(write(self.folder / "files", files))


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, amd: Amd) -> Callable[[str], None]:
    """Move to another site: its database is empty."""
    (tmp_path / "roots.pem").write_bytes(amd.hierarchy.ark.pem)
    monkeypatch.setenv("KMS_DEVELOPMENT_ROOTS", str(tmp_path / "roots.pem"))

    def move(name: str) -> None:
        monkeypatch.setenv("KMS_DATA_DIR", str(tmp_path / name))

    return move


@pytest.fixture
def site(use: Callable[[str], None], tmp_path: Path, capsys: Captured) -> Site:
    use("site")
    return Site(tmp_path, capsys)


def everything(amd: Amd) -> dict[str, bytes]:
    return {
        "chain": amd.chain + amd.hierarchy.asvk.pem,
        "one": amd.vcek(),
        "two": amd.vcek(b"2"),
        "vlek": amd.vlek(),
        "crl": amd.crl(number=9),
    }


class TestStatus:
    def test_of_nothing(self, site: Site) -> None:
        status, found = site.json("status")
        assert status == 0
        assert found["certificates"] == found["revocation_lists"] == []
        assert found["crl"] == {"mode": "when-available", "max_age": 7 * 24 * 3600}
        assert found["kds_urls"] == ["https://kdsintf.amd.com"]
        status, text = site.run("status")
        assert status == 0
        assert "no certificates" in text
        assert "asks: https://kdsintf.amd.com" in text

    def test_counts_by_line_and_role(self, site: Site, amd: Amd) -> None:
        site.run("import", site.write(**everything(amd)))
        _, found = site.json("status")
        counts = {(each["line"], each["role"]): each["count"] for each in found["certificates"]}
        assert counts == {
            (LINE, "ark"): 1,
            (LINE, "authority"): 1,
            (LINE, "leaf"): 2,
            ("vlek/milan", "authority"): 1,
            ("vlek/milan", "leaf"): 1,
        }
        [leaves] = [each for each in found["certificates"] if (each["line"], each["role"]) == (LINE, "leaf")]
        assert leaves["next_expiry"] == f"{amd.now + 2555 * DAY:%Y-%m-%dT%H:%M:%SZ}"
        [known] = found["revocation_lists"]
        assert (known["line"], known["issuer"], known["number"]) == (LINE, "ARK-Milan", 9)
        assert (known["state"], known["revoked"]) == ("fresh", 0)
        _, text = site.run("status")
        assert "vcek/milan  leaf            2  next expires" in text

    @pytest.mark.parametrize(
        ("days", "state", "words"),
        [(1, "fresh", ": fresh"), (-6, "stale", ": stale, counts until"), (-8, "too-old", ": too old since")],
    )
    def test_how_old_a_list_is(self, site: Site, amd: Amd, days: int, state: str, words: str) -> None:
        """By KMS_CRL_MAX_AGE, 7 days past its next update."""
        crl = amd.crl(this_update=amd.now - 30 * DAY, next_update=amd.now + days * DAY)
        site.run("import", site.write(chain=amd.chain, crl=crl))
        [known] = site.json("status")[1]["revocation_lists"]
        assert known["state"] == state
        assert words in site.run("status")[1]

    def test_who_is_asked(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KMS_KDS_URLS", "none")
        assert "asks: nobody (KMS_KDS_URLS=none)" in site.run("status")[1]


class TestImport:
    def test_statuses(self, site: Site, amd: Amd) -> None:
        """0 all taken, known ones too; 1 something refused; 2 something unreadable, whatever was refused."""
        folder = site.write(**everything(amd))
        for new in (7, 0):
            status, found = site.json("import", folder)
            assert (status, found["certificates"], found["revocation_lists"]) == (0, 6, 1)
            assert (found["new"], found["refused"], found["unreadable"]) == (new, [], [])
        site.write(notes=b"text")
        status, found = site.json("import", folder)
        assert (status, found["new"]) == (1, 0)
        neither = "neither a certificate nor a revocation list"
        assert found["refused"] == [{"name": f"{folder}/notes", "reason": neither}]
        status, found = site.json("import", folder, f"{folder}/nothing")
        assert (status, len(found["refused"])) == (2, 1)
        gone = {"name": f"{folder}/nothing", "reason": "No such file or directory"}
        assert found["unreadable"] == [gone]

    def test_for_people(self, site: Site, amd: Amd) -> None:
        folder = site.write(chain=amd.chain, notes=b"text")
        status, text = site.run("import", folder)
        assert status == 1
        assert text.splitlines() == [
            f"refused: {folder}/notes: neither a certificate nor a revocation list",
            (
                "2 file(s): 2 certificate(s) and 0 revocation list(s) verified, 2 of them new;"
                " 1 refused, 0 unreadable"
            ),
        ]

    def test_without_the_development_root_it_is_nothing(
        self, site: Site, amd: Amd, use: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use("production")
        monkeypatch.delenv("KMS_DEVELOPMENT_ROOTS")
        status, found = site.json("import", site.write(**everything(amd)))
        assert (status, found["certificates"], found["new"]) == (1, 0, 0)


class TestExport:
    def test_there_and_back(self, site: Site, amd: Amd, use: Callable[[str], None]) -> None:
        """From a site with a network to one without; the mask of the process changes nothing."""
        site.run("import", site.write(**everything(amd)))
        bundle = site.folder / "collateral.tar"
        bundle.write_bytes(b"older")
        status, said = site.json("export", str(bundle))
        assert status == 0
        assert said == {"file": str(bundle), "certificates": 6, "revocation_lists": 1, "files": 6}
        assert bundle.stat().st_mode & 0o777 == 0o644
        assert [each.name for each in site.folder.iterdir() if "collateral.tar" in each.name] == [bundle.name]
        here = site.json("status")[1]
        use("elsewhere")
        status, found = site.json("import", str(bundle))
        assert (status, found["new"]) == (0, 7)
        there = site.json("status")[1]
        for document in (here, there):
            for each in document["certificates"]:
                del each["last_kept"]
        assert here == there
        again = site.folder / "again.tar"
        site.run("export", str(again))
        assert again.read_bytes() == bundle.read_bytes()
        assert site.run("verify")[0] == 0

    def test_of_nothing(self, site: Site) -> None:
        assert site.run("export", str(site.folder / "x.tar")) == (
            1,
            "nothing is stored: nothing was written\n",
        )
        assert not (site.folder / "x.tar").exists()

    def test_standard_output(self, site: Site, amd: Amd, monkeypatch: pytest.MonkeyPatch) -> None:
        site.run("import", site.write(**everything(amd)))
        site.run("export", str(site.folder / "x.tar"))

        class Binary:
            buffer = BytesIO()

            def isatty(self) -> bool:
                return False

            def flush(self) -> None:
                return

            def fileno(self) -> int:
                return 1

        monkeypatch.setattr(sys, "stdout", Binary())
        assert run(["collateral", "export", "-"]) == 0
        assert Binary.buffer.getvalue() == (site.folder / "x.tar").read_bytes()

    def test_an_archive_and_a_document_do_not_mix(self, site: Site) -> None:
        status, found = site.json("export", "-")
        assert (status, found["error"]["code"]) == (2, "wrong-use")

    @pytest.mark.parametrize("place", ["nowhere/x.tar", "."])
    def test_where_nothing_can_be_written(self, site: Site, amd: Amd, place: str) -> None:
        site.run("import", site.write(**everything(amd)))
        status, found = site.json("export", str(site.folder / place))
        assert (status, found["error"]["code"]) == (2, "unreadable")

    def test_a_full_disk_leaves_the_old_file(
        self, site: Site, amd: Amd, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        site.run("import", site.write(**everything(amd)))
        bundle = site.folder / "x.tar"
        bundle.write_bytes(b"older")

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        status, found = site.json("export", str(bundle))
        assert (status, found["error"]["detail"]) == (2, f"{bundle}: No space left on device")
        assert bundle.read_bytes() == b"older"
        assert [each.name for each in site.folder.iterdir() if "x.tar" in each.name] == ["x.tar"]


class TestVerify:
    def test_all_good(self, site: Site, amd: Amd) -> None:
        site.run("import", site.write(**everything(amd)))
        status, found = site.json("verify")
        assert (status, found["good"], found["damaged"]) == (0, True, 0)
        roles = sorted(each["role"] for each in found["stored"])
        assert roles == ["ark", "authority", "authority", "leaf", "leaf", "leaf", "revocation-list"]
        assert all(each["good"] and each["problems"] == [] for each in found["stored"])
        status, text = site.run("verify")
        assert status == 0
        assert text.splitlines()[-1] == "7 stored, 0 not good"

    def test_nothing_is_good(self, site: Site) -> None:
        assert site.json("verify") == (0, {"good": True, "damaged": 0, "stored": []})

    @pytest.mark.parametrize("mode", ["when-available", "off"])
    def test_revoked(self, site: Site, amd: Amd, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
        """The ASK's serial: it, and every VCEK under it. A list names the revoked even where nobody asks."""
        monkeypatch.setenv("KMS_CRL", mode)
        ask = 0x10001
        site.run("import", site.write(**everything(amd) | {"crl": amd.crl(ask)}))
        status, found = site.json("verify")
        wrong = {each["what"]: each["problems"] for each in found["stored"] if not each["good"]}
        assert status == 1
        assert len(wrong) == 3
        assert {tuple(problems) for problems in wrong.values()} == {("revoked: SEV-Milan",)}
        assert "/vcek/v1/Milan: SEV-Milan" in wrong
        _, text = site.run("verify")
        assert "/vcek/v1/Milan: SEV-Milan: revoked: SEV-Milan" in text
        assert text.splitlines()[-1] == "7 stored, 3 not good"

    @pytest.mark.parametrize(("mode", "wrong"), [("when-available", 1), ("require", 4), ("off", 0)])
    def test_a_list_that_is_too_old(
        self, site: Site, amd: Amd, monkeypatch: pytest.MonkeyPatch, mode: str, wrong: int
    ) -> None:
        """Too old for the mode: itself; where a list is required, every certificate that would need one."""
        monkeypatch.setenv("KMS_CRL", mode)
        old = amd.crl(this_update=amd.now - 60 * DAY, next_update=amd.now - 30 * DAY)
        site.run("import", site.write(**everything(amd) | {"crl": old}))
        status, found = site.json("verify")
        assert status == (1 if wrong else 0)
        assert len([each for each in found["stored"] if not each["good"]]) == wrong

    def test_another_root(
        self, site: Site, amd: Amd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The root that it was imported under is not trusted any more."""
        site.run("import", site.write(**everything(amd)))
        other = AmdHierarchy.generate(Product.MILAN, now=amd.now - DAY, rsa_bits=2048)
        (tmp_path / "roots.pem").write_bytes(other.ark.pem)
        status, found = site.json("verify")
        assert status == 1
        assert not any(each["good"] for each in found["stored"])

    def test_a_database_that_somebody_edited(self, site: Site, amd: Amd) -> None:
        """A certificate put under another chip, and one that is none any more."""
        site.run("import", site.write(**everything(amd)))
        with closing(sqlite3.connect(site.folder / "site" / "kms.sqlite3")) as database, database:
            one, two = (amd.chip_id(seed).hex() for seed in (b"chip", b"2"))
            database.execute(
                "update certificates set chip_id = ? where chip_id = ?", (two.replace("0", "1"), one)
            )
            database.execute("update certificates set der = x'30' where chip_id = ?", (two,))
        status, found = site.json("verify")
        assert (status, found["damaged"]) == (1, 1)
        [moved] = [each for each in found["stored"] if not each["good"]]
        assert moved["problems"] == ["it is stored under another line, chip, provider or TCB than it is for"]
        assert "1 certificate(s) in the database cannot be read" in site.run("verify")[1]


CHIP = "ab" * 64
LEVELS = "bootloader=4,tee=0,snp=24,microcode=219"
QUERY = "blSPL=04&teeSPL=00&snpSPL=24&ucodeSPL=219"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "say what: --report, --url, --line, or --chip with --product and --tcb"),
        (["--url", f"https://kds.example/vcek/v1/Milan/{CHIP}"], "--url: not the address of a VCEK"),
        (["--url", "https://kds.example/vcek/v1/Milan/crl"], "--url: not the address of a VCEK"),
        (["--url", "http://[::"], "--url: not the address of a VCEK"),
        (["--url", f"/vcek/v1/Milan/{CHIP}?{QUERY}&blSPL=5"], "--url: not the address of a VCEK"),
        (["--chip", CHIP], "--chip and --tcb go together"),
        (["--tcb", LEVELS], "--chip and --tcb go together"),
        (["--chip", CHIP, "--product", "milan"], "--chip and --tcb go together"),
        (["--chip", CHIP, "--tcb", LEVELS], "--product: a chip id of 64 bytes does not say"),
        (["--line", "vcek/rome"], "argument --line: invalid choice: 'vcek/rome'"),
        (["--chip", CHIP, "--product", "rome", "--tcb", LEVELS], "argument --product: invalid choice"),
        (["--chip", "abc", "--product", "milan", "--tcb", LEVELS], "--chip: a hwID has 8 or 64 bytes"),
        (["--chip", "zz" * 64, "--product", "milan", "--tcb", LEVELS], "--chip: a hwID has 8 or 64 bytes"),
        (["--chip", "00" * 64, "--product", "milan", "--tcb", LEVELS], "must not be all zero"),
        (["--chip", "ab" * 8, "--product", "milan", "--tcb", LEVELS], "--chip: 64 bytes, unless the product"),
        (["--chip", CHIP, "--product", "turin", "--tcb", LEVELS], "--chip: a Turin chip id has 8 bytes"),
        (["--chip", CHIP, "--product", "milan", "--tcb", "4,0,24,219"], "--tcb: write bootloader=N,tee=N"),
        (["--chip", CHIP, "--product", "milan", "--tcb", f"{LEVELS},fmc=1"], "--tcb: write bootloader=N"),
        (["--chip", CHIP, "--product", "milan", "--tcb", f"{LEVELS},tee=0"], "--tcb: write bootloader=N"),
        (["--chip", CHIP, "--product", "milan", "--tcb", f"{LEVELS[:-3]}256"], "each 0 to 255"),
        (["--chip", CHIP, "--product", "milan", "--tcb", "04000100000018db"], "reserved on Milan"),
        (["--chip", CHIP, "--product", "milan", "--tcb", LEVELS, "--deadline", "nan"], "takes seconds"),
    ],
    ids=str,
)
def test_wrong_use_of_fetch(site: Site, argv: list[str], words: str) -> None:
    status, found = site.json("fetch", *argv)
    assert (status, found["error"]["code"]) == (2, "wrong-use")
    assert words in found["error"]["detail"]
    assert not (site.folder / "site").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--listen", "here"], "--listen: write HOST:PORT, for example 127.0.0.1:8443"),
        (["--listen", "example.com:80"], "--listen: the host must be an IP address"),
        (["--tls-cert", "x.pem"], "--tls-cert and --tls-key go together"),
        (["--tls-key", "x.pem"], "--tls-cert and --tls-key go together"),
    ],
    ids=str,
)
def test_wrong_use_of_mirror(site: Site, argv: list[str], words: str) -> None:
    status, found = site.json("mirror", *argv)
    assert (status, found["error"]["code"]) == (2, "wrong-use")
    assert words in found["error"]["detail"]


def test_a_tls_key_that_is_none(site: Site) -> None:
    folder = site.write(key=b"none", cert=b"none")
    status, found = site.json("mirror", "--tls-cert", f"{folder}/cert", "--tls-key", f"{folder}/key")
    assert (status, found["error"]["code"]) == (2, "configuration")


@pytest.mark.parametrize("argv", [[], ["nosuch"], ["import"], ["export"]], ids=" ".join)
def test_wrong_use(site: Site, argv: list[str]) -> None:
    status, found = site.json(*argv)
    assert (status, found["error"]["code"]) == (2, "wrong-use")


@pytest.mark.parametrize("command", ["status", "fetch", "import", "export", "verify", "mirror", "advisories"])
def test_help_has_an_example(site: Site, command: str) -> None:
    status, text = site.run(command, "--help")
    assert status == 0
    assert f"kms collateral {command}" in " ".join(text.partition("example:")[2].split())


def test_advisories_are_here(site: Site) -> None:
    status, found = site.json("advisories")
    assert status == 0
    assert found["advisories"]
