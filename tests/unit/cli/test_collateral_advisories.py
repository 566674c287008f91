"""``kms collateral advisories``, and what ``kms policy lint`` says of ids that no report can show."""

import json
from pathlib import Path

import pytest

from kms.cli import run
from kms.cli.collateral_advisories import advisory_table, main
from kms.packaged import load_advisories
from tests.unit.policy.samples import VALID


def test_every_bulletin_and_its_sources_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    headings = [line.split()[0] for line in lines if line.startswith("AMD-SB-")]
    assert headings == list(load_advisories().ids)
    assert "  milan: firmware at least 1.55.22" in lines
    rows = advisory_table(load_advisories())
    sources = [line for line in lines if line.startswith(("    source: ", "    secondary source: "))]
    assert len(sources) == sum(len(row.figures) for row in rows)
    unshown = [line for line in lines if ": not attestable: " in line]
    assert len(unshown) == sum(row.not_attestable is not None for row in rows) > 0


def test_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["collateral", "advisories", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["advisories"]
    (badram,) = [row for row in rows if (row["id"], row["product"]) == ("AMD-SB-3015", "milan")]
    assert badram["not_attestable"] is None
    assert badram["cves"] == ["CVE-2024-21944"]
    assert [figure["shows"] for figure in badram["figures"]] == [
        "firmware at least 1.55.22",
        "platform bit alias-check-complete",
    ]
    assert all(figure["source"] for row in rows for figure in row["figures"])
    assert all(row["figures"] or row["not_attestable"] for row in rows)


def test_lint_warns_of_ids_that_no_report_can_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, data in VALID.items():
        changed = data.replace(b"[AMD-SB-3015]", b"[AMD-SB-3015, AMD-SB-3034, AMD-SB-3115]")
        (tmp_path / Path(name).name).write_bytes(changed)
    assert run(["policy", "lint", str(tmp_path)]) == 0
    out = [line for line in capsys.readouterr().out.splitlines() if line.startswith("apps.yaml:")]
    assert out[0].startswith("apps.yaml:13:34: warning: ")
    assert "AMD-SB-3034" in out[0]
    assert out[-1].startswith("apps.yaml:13:47: warning: ")
    assert out[-1].endswith("did you mean `AMD-SB-3015`?")
