"""docs/reference/guest-evidence.md names every reason of the hardware side and every check of the doctor."""

import json
import re
import socket
from pathlib import Path
from typing import NoReturn

import pytest

from kms.cli import run

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "guest-evidence.md"
SOURCES = ("evidence", "hardware", "sev_guest_device", "sev_guest_faults", "tsm")


def names_in(heading: str) -> list[str]:
    _, rest = PAGE.read_text().split(f"## {heading}\n")
    return re.findall(r"^\| `([a-z0-9-]+)` \|", rest.partition("\n## ")[0], re.MULTILINE)


def test_every_reason_is_documented_and_no_other() -> None:
    rows = names_in("When there is none")
    text = "".join((ROOT / "kms" / "guest" / f"{name}.py").read_text() for name in SOURCES)
    reasons = set(re.findall(r'"((?:tsm|device|report|evidence)-[a-z-]+)"', text))
    assert len(rows) == len(set(rows)) > 15
    assert set(rows) == reasons


def test_every_check_of_the_doctor_is_documented_in_its_order_and_no_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def nobody(*_: object, **__: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    def checks(configuration: str) -> list[str]:
        file, nothing = tmp_path / "guest.toml", str(tmp_path / "nothing")
        file.write_text(configuration)
        run(["guest", "doctor", "--json", "--config", str(file), "--tsm", nothing, "--device", nothing])
        return [each["name"] for each in json.loads(capsys.readouterr().out)["checks"]]

    monkeypatch.setattr("kms.guest.doctor.network.getaddrinfo", nobody)
    rows = names_in("Checks of the doctor")
    whole = checks('server = "https://kms.example:8443"\ntrust_any_kms_identity = true\n')
    without_server = checks("")
    assert whole == [row for row in rows if row != "server"]
    assert without_server == [row for row in rows if row in {*without_server}]
    assert {*whole, *without_server} == {*rows}
