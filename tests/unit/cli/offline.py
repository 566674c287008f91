"""What an operator has on disk to verify a guest's evidence: files that a simulated world wrote."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from kms.encoding import from_base64
from kms.measurement.description import LaunchDescription
from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.machine import SimulatedMachine
from kms.snp.certificate_table import parse_table
from tests.world import NOW, app_document, describe_image, document, image_document, tcb_document

AT = NOW.isoformat()


@dataclass(frozen=True)
class OfflineGuest:
    """A guest's evidence in `folder`: report.bin, certificates/, roots.pem, app.json, and policy/."""

    folder: Path
    certificates: tuple[Path, ...]

    def verify(self, *more: str) -> list[str]:
        """Give the command line that verifies it as of its own time, with AMD's root replaced by settings."""
        argv = ["verify", "--report", str(self.folder / "report.bin"), "--at", AT, "--json", *more]
        for path in self.certificates:
            argv += ["--certificates", str(path)]
        return argv


def write_guest(
    folder: Path,
    hierarchy: AmdHierarchy,
    *,
    description: LaunchDescription | None = None,
    cmdline: str | None = None,
    app: bytes | None = None,
    policy: dict[str, Any] | None = None,
    image: dict[str, Any] | None = None,
) -> OfflineGuest:
    """Launch a guest, and write what it shows. `policy` and `image` change those documents."""
    chip = SimulatedChip.typical(
        hierarchy, chip_id=simulated_chip_id(hierarchy.product, b"chip 1"), now=NOW - timedelta(days=1)
    )
    description = description or describe_image()
    machine = SimulatedMachine.launch(chip, description, cmdline=cmdline, app_document=app)
    (folder / "report.bin").write_bytes(machine.guest.report(bytes(64)))
    (folder / "roots.pem").write_bytes(hierarchy.ark.pem)
    (folder / "app.json").write_bytes(app or document())
    table = machine.evidence(bytes(64))["certificate_table"]
    paths = []
    for number, entry in enumerate(parse_table(from_base64(str(table)))):
        path = folder / f"certificate-{number}.der"
        path.write_bytes(entry.data)
        paths.append(path)
    (folder / "policy").mkdir()
    documents = [
        app_document(chip, **(policy or {})),
        image_document("os-1", description, **(image or {})),
        tcb_document(chip),
    ]
    (folder / "policy" / "policy.yaml").write_text(yaml.safe_dump_all(documents, sort_keys=False))
    return OfflineGuest(folder, tuple(paths))
