"""The demo's world: an image built from nothing, a SIMULATED machine that runs it, and the policy for both.

Firmware, kernel, initrd and chip id follow from their seeds, so that the documents in `policies/demo/` are
right for them, today and on every machine.
"""

import json
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Final

from kms.cli import image as image_command
from kms.errors import KmsError
from kms.identifiers import AppId, ComposeHash, InstanceId
from kms.keys.names import KeyRequest
from kms.measurement.description import LaunchDescription
from kms.packaged import packaged_folder
from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.firmware import build_firmware
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.kernel import fake_initrd, fake_kernel
from kms.simulator.machine import SimulatedMachine, describe
from kms.snp.product import Product

CMDLINE: Final = "console=ttyS0 root=/dev/dm-0 ro"
# What the image runs; the app document names its SHA-256, and the image checks it before it starts anything.
COMPOSE: Final = b"services:\n  payments:\n    image: registry.example/payments@sha256:4be3\n"
COMPOSE_HASH: Final = ComposeHash(sha256(COMPOSE).digest())
APP_ID: Final = AppId.from_hex("5824a47d986bfe2d77f22993d24b635a5b67aac6")
INSTANCE_ID: Final = InstanceId.from_hex("c0ffee0000000000000000000000c0de")
CHIP_SEED: Final = b"demo rack, first machine"

KEYS: Final = (
    KeyRequest.parse("disk", "app"),
    KeyRequest.parse("disk", "instance"),
    KeyRequest.parse("disk", "chip"),
    KeyRequest.parse("env", "app"),
    KeyRequest.parse("signing", "app"),
    KeyRequest.parse("custom:db/main", "app"),
)

_SEED: Final = b"demo image 1"
_IMAGE_DOCUMENT: Final = "image.yaml"


class SceneBroken(KmsError):
    """The demo's own parts do not fit together: a defect, not a refusal."""

    code = "demo-broken"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFiles:
    """What a hypervisor is given to launch."""

    firmware: bytes
    kernel: bytes
    initrd: bytes
    cmdline: str

    @classmethod
    def build(cls) -> "ImageFiles":
        """Build the demo's image: bytes to measure, not to run."""
        return cls(
            firmware=build_firmware(seed=_SEED),
            kernel=fake_kernel(_SEED),
            initrd=fake_initrd(_SEED),
            cmdline=CMDLINE,
        )

    def description(self) -> LaunchDescription:
        """Give what determines the launch measurement."""
        return describe(firmware=self.firmware, kernel=self.kernel, initrd=self.initrd, cmdline=self.cmdline)


def app_document(*, compose_hash: bytes = COMPOSE_HASH) -> bytes:
    """Give the app document; HOST_DATA commits to its exact bytes."""
    members = {
        "version": 1,
        "app_id": APP_ID.hex(),
        "compose_hash": compose_hash.hex(),
        "instance_id": INSTANCE_ID.hex(),
    }
    return json.dumps(members).encode("ascii")


def power_on(hierarchy: AmdHierarchy, files: ImageFiles) -> SimulatedMachine:
    """Start the honest machine: a SIMULATED Milan of the demo's rack, with the demo's image and app."""
    chip = SimulatedChip.typical(
        hierarchy, chip_id=simulated_chip_id(Product.MILAN, CHIP_SEED), now=datetime.now(UTC)
    )
    return SimulatedMachine.launch(chip, files.description(), app_document=app_document())


def prepare_policy(files: ImageFiles, folder: Path) -> Path:
    """Copy `policies/demo/` below `folder`, describe the image anew, and compare with the committed document.

    Raises:
        SceneBroken: the fresh description is not the committed one.

    """
    sources = folder / "image"
    sources.mkdir()
    for name, content in (
        ("OVMF.fd", files.firmware),
        ("vmlinuz", files.kernel),
        ("initrd.img", files.initrd),
        ("compose.yaml", COMPOSE),
        ("app-document.json", app_document()),
    ):
        (sources / name).write_bytes(content)
    committed = packaged_folder("policies") / "demo"
    policies = folder / "policies"
    shutil.copytree(committed, policies)
    fresh = policies / _IMAGE_DOCUMENT
    fresh.unlink()
    arguments = ["--ovmf", "OVMF.fd", "--kernel", "vmlinuz", "--initrd", "initrd.img"]
    paths = [text if text.startswith("--") else str(sources / text) for text in arguments]
    image_command.main(
        [
            "describe",
            *paths,
            *("--append", files.cmdline, "--name", "demo-os-1", "--enforces", "host-data"),
            *("--vcpus", "1-8", "--vcpu-type", "EPYC-v4,EPYC-Milan", "--output", str(fresh)),
        ]
    )
    if image_command.images_from(fresh) != image_command.images_from(committed / _IMAGE_DOCUMENT):
        raise SceneBroken("the demo's image is not the one that policies/demo/image.yaml describes")
    return policies
