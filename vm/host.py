"""What this computer must have for the demo."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from kms.cli.demo_show import Show
from kms.errors import ConfigurationError

# Program, and the Debian package that has it.
_NEEDED: Final = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "dpkg-deb": "dpkg",
    "chroot": "coreutils",
}


def prepare_host(show: Show) -> None:
    """Check for root and programs; on a Debian, install what is missing.

    Raises:
        ConfigurationError: not root, or a program is missing and cannot be installed.

    """
    if os.geteuid() != 0:
        raise ConfigurationError(
            "make vm-demo needs root: it unpacks a Debian and runs programs in it",
            remedy="run it as root, best in a VM or container of its own; it needs no /dev/kvm",
        )
    missing = [package for program, package in _NEEDED.items() if shutil.which(program) is None]
    if not missing:
        return
    if shutil.which("apt-get") is None:
        programs = ", ".join(program for program in _NEEDED if shutil.which(program) is None)
        raise ConfigurationError(
            f"missing: {programs}", remedy="install QEMU for x86-64, mmdebstrap and dpkg"
        )
    with show.step(f"apt-get install {' '.join(missing)}"):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
            done = subprocess.run(  # noqa: S603
                ["apt-get", "--quiet", *words],  # noqa: S607
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise ConfigurationError(f"apt-get {words[0]} failed", remedy=done.stderr[-2000:])


def cache_folder() -> Path:
    """Give where what is the same in every run is kept: a Debian root and the firmware, about 0.6 GB."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "attested-kms" / "vm"
