"""The guest's images: a kernel, and initrds that the product's hooks and those of the demo put together."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kms.encoding import b64url
from kms.simulator import tsm_fuse
from vm.debian import copy_root, run_in
from vm.launch import Image
from vm.server import HOST_OF_GUEST, Server

_INSIDE: Final = Path(__file__).parent / "inside"
_INITRAMFS: Final = "etc/initramfs-tools"
_DRACUT: Final = "usr/lib/dracut/modules.d/95vm-demo"
_SHARED: Final = "usr/share/attested-kms-demo"  # as the files in `inside` have it
_CONFIG: Final = "etc/attested-kms"
_KMS: Final = "/opt/attested-kms/bin/kms"
_FW_CFG: Final = "/sys/firmware/qemu_fw_cfg/by_name/opt/attested-kms"
_DISK: Final = "/dev/disk/by-id/virtio-data"
# docs/guides/initrd.md has this line.
_CRYPTTAB: Final = f"data {_DISK} /run/attested-kms/agent.sock luks,headless=true,x-initrd.attach\n"
# Only what the machine has: under emulation every module costs time.
_SMALL: Final = "MODULES=list\nCOMPRESS=zstd\n"
_DRACUT_MODULES: Final = (
    "base fs-lib rootfs-block udev-rules systemd-initrd dracut-systemd attested-kms vm-demo"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The images. Sizes of initrds are in bytes: whole, and of one without anything of ours."""

    image: Image
    systemd_image: Image
    hooks: str
    """What `kms guest hooks install` and the product's hook printed."""
    plain_size: int


def build(root: Path, folder: Path, *, firmware: Path, server: Server) -> Built:
    """Make the images for guests of this server, in a copy of `root` below `folder`.

    The pin of the KMS is baked in, so that it is measured: CA, address and identity. Not baked in are the
    app document and the workload, which the host hands over.

    Raises:
        ConfigurationError: a tool failed; what it said is there.

    """
    copy = folder / "root"
    copy_root(root, copy)
    version = next((copy / "boot").glob("vmlinuz-*")).name.removeprefix("vmlinuz-")
    kernel = folder / "vmlinuz"
    shutil.copyfile(copy / "boot" / f"vmlinuz-{version}", kernel)
    _put(copy / _CONFIG, {"guest.toml": _guest_toml(server), "ca.pem": server.ca_file.read_text("ascii")})
    _put(copy / _INITRAMFS / "conf.d", {"small": _SMALL})
    mkinitramfs = ("mkinitramfs", "-o", "/initrd.img.new", version)
    _, plain = _initrd(copy, mkinitramfs, folder / "plain.img")
    hooks = run_in(copy, [_KMS, "guest", "hooks", "install"])
    _install_demo(copy)
    said, initrd = _initrd(copy, mkinitramfs, folder / "initrd.img")
    dracut = ("dracut", "--quiet", "--no-hostonly", "--zstd", "--modules", _DRACUT_MODULES)
    _, systemd = _initrd(copy, (*dracut, "/initrd.img.new", version), folder / "initrd-systemd.img")
    return Built(
        image=Image(firmware=firmware, kernel=kernel, initrd=initrd),
        systemd_image=Image(firmware=firmware, kernel=kernel, initrd=systemd),
        hooks=hooks + said,
        plain_size=plain.stat().st_size,
    )


def _initrd(root: Path, command: Sequence[str], initrd: Path) -> tuple[str, Path]:
    """Run what makes an initrd, and give what it printed and where the initrd is now."""
    said = run_in(root, command)
    shutil.move(root / "initrd.img.new", initrd)
    return said, initrd


def _guest_toml(server: Server) -> str:
    return f"""\
server = "https://{HOST_OF_GUEST}:{server.port}"
ca = "/{_CONFIG}/ca.pem"
identity = "{b64url(server.identity)}"
app_document = "{_FW_CFG}/app-document/raw"
workload = "{_FW_CFG}/workload/raw"

[evidence]
interface = "tsm"
tsm = "/run/tsm-report"

[volumes.data]
device = "{_DISK}"
format = "blank"

[[serve.allow]]
key = "disk"
scope = "app"
uids = [0]
credential = "sent"
"""


def _install_demo(root: Path) -> None:
    """Add what only the demo has: the SIMULATED configfs-tsm, and a workload for the open volume."""
    for source, target in (
        ("hook", "hooks/vm-demo"),
        ("init-premount", "scripts/init-premount/vm-demo"),
        ("local-premount", "scripts/local-premount/vm-demo"),
    ):
        place = root / _INITRAMFS / target
        shutil.copyfile(_INSIDE / "initramfs-tools" / source, place)
        place.chmod(0o755)
    shutil.copytree(_INSIDE / "dracut", root / _DRACUT)
    shared = {
        "psp_port.py": _INSIDE / "psp_port.py",
        "tsm_fuse.py": Path(tsm_fuse.__file__),
        "workload": _INSIDE / "dracut" / "workload",
    }
    _put(root / _SHARED, {name: path.read_text("utf-8") for name, path in shared.items()})
    _put(root / "etc", {"crypttab": _CRYPTTAB})


def _put(folder: Path, files: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
