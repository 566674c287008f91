"""docs/guides/dstack.md: its policy is one, and its command imports what dstack keeps."""

import json
import re
from base64 import encodebytes
from pathlib import Path

import pytest

from kms.cli import run
from kms.keys.names import DSTACK_KINDS
from kms.policy.lint import lint
from tests.golden.keys.second_dstack import pkcs8
from tests.unit.policy.samples import VALID

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "dstack.md").read_text()


def test_its_app_is_one() -> None:
    written = re.search(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    assert written
    text = (
        written[1].replace("images: [os-1]", "images: [demo-os-1]").replace("tcb: fleet", "tcb: fleet-2026q4")
    )
    platform = {name: data for name, data in VALID.items() if not name.endswith("apps.yaml")}
    result = lint({**platform, "app.yaml": text.encode()}, development=False)
    found = [each.message for each in result.findings if each.file == "app.yaml"]
    # The image of the samples enforces another binding; the guide says that this app's must enforce dstack's.
    assert found == ["no image of this app enforces any of these: it allows nobody"]


def test_its_import_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KMS_DATA_DIR", str(tmp_path / "data"))
    scalar = b"\x07" * 32
    body = encodebytes(pkcs8(scalar)).decode()
    Path("root-ca.key").write_text(f"-----BEGIN PRIVATE KEY-----\n{body}-----END PRIVATE KEY-----\n")
    Path("root-k256.key").write_bytes(b"\x08" * 32)
    for name in ("root-ca.key", "root-k256.key"):
        Path(name).chmod(0o600)
    [line] = re.findall(r"^\$ kms (keys import-dstack .*)$", GUIDE, re.MULTILINE)
    assert run([*line.split(), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["imported"] is True


def test_it_names_every_key() -> None:
    table = GUIDE[: GUIDE.index("## 1.")]
    assert {str(kind) for kind in DSTACK_KINDS} == set(re.findall(r"^\| `(dstack:\w+)", table, re.MULTILINE))
