"""What the operator allows: one app with one workload, in these images, on a SIMULATED chip."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Final

from vm.launch import VCPU_TYPE, VCPUS, Image
from vm.scenes import CMDLINE, SYSTEMD_CMDLINE
from vm.server import run_kms

WORKLOAD: Final = b"services:\n  ledger:\n    image: registry.example/ledger@sha256:9f2c\n"
OTHER_WORKLOAD: Final = WORKLOAD.replace(b"9f2c", b"0bad")
_APP_ID: Final = "0d1c6e7f2ad04b7c8b5c3b1c1a44a7e2b90f5d11"
_APP: Final = f"""\
kind: app
id: "{_APP_ID}"
name: vm-demo
compose: ["{sha256(WORKLOAD).hexdigest()}"]
images: [vm-demo-os, vm-demo-os-systemd]
chips: any
tcb: vm-demo-fleet
binding: [host-data]
keys: [disk]
---
kind: tcb
name: vm-demo-fleet
products:
  milan: {{bootloader: 4, tee: 0, snp: 24, microcode: 219}}
"""


def app_document() -> bytes:
    """Give the app document; HOST_DATA commits to its exact bytes."""
    members = {"version": 1, "app_id": _APP_ID, "compose_hash": sha256(WORKLOAD).hexdigest()}
    return json.dumps(members).encode("ascii")


def write_policy(folder: Path, image: Image, systemd_image: Image) -> None:
    """Write the policy: the images as `kms image describe` describes them, and the app."""
    folder.mkdir()
    (folder / "app.yaml").write_text(_APP, "ascii")
    vcpus = ("--vcpus", f"{VCPUS}-{VCPUS}", "--vcpu-type", VCPU_TYPE)
    for name, each, cmdline in (
        ("vm-demo-os", image, CMDLINE),
        ("vm-demo-os-systemd", systemd_image, SYSTEMD_CMDLINE),
    ):
        run_kms(
            *("image", "describe", "--name", name, "--enforces", "host-data", "--append", cmdline),
            *("--ovmf", str(each.firmware), "--kernel", str(each.kernel), "--initrd", str(each.initrd)),
            *(*vcpus, "--output", str(folder / f"{name}.yaml")),
            settings={},
        )
