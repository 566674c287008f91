"""The firmware: Debian's OVMF for confidential VMs with a measured direct boot (AmdSev).

Debian's other OVMF images have no section for the table of kernel hashes. This one starts a kernel, initrd
and command line only if their hashes are in that table, SEV or not.
"""

import subprocess
import urllib.request
from hashlib import sha256
from pathlib import Path
from typing import Final

from kms.errors import ConfigurationError

_SHA256: Final = "92c9b6d15e4eeb371938c3f99080c1a8fc057dfd6bc0509d37f8b615e9edebfb"
_PACKAGE: Final = "ovmf-amdsev_2026.08+ds-2_all.deb"
# The archive keeps the newest version, the snapshot service every one, by its SHA-1.
_PLACES: Final = (
    f"http://deb.debian.org/debian/pool/main/e/edk2/{_PACKAGE}",
    "https://snapshot.debian.org/file/b2d261d63f256e18fb4f69855efe5f54ad45f9cf",
)
_FILE: Final = "usr/share/ovmf/OVMF.amdsev.fd"
_WITHIN: Final = 60.0


def debian_firmware(cache: Path) -> Path:
    """Give the firmware's file, downloaded once; the package must have the SHA-256 that is written here.

    Raises:
        ConfigurationError: it cannot be downloaded, or is another package.

    """
    unpacked = cache / f"ovmf-{_SHA256[:16]}"
    if not (unpacked / _FILE).exists():
        package = cache / _PACKAGE
        package.write_bytes(_download())
        subprocess.run(["dpkg-deb", "--extract", str(package), str(unpacked)], check=True)  # noqa: S603, S607
        package.unlink()
    return unpacked / _FILE


def _download() -> bytes:
    failures = []
    for place in _PLACES:
        try:
            with urllib.request.urlopen(place, timeout=_WITHIN) as answer:  # noqa: S310 -- our own addresses
                data: bytes = answer.read()
        except OSError as error:
            failures.append(f"{place}: {error}")
            continue
        if sha256(data).hexdigest() == _SHA256:
            return data
        failures.append(f"{place}: not the package with SHA-256 {_SHA256}")
    raise ConfigurationError(
        "the firmware cannot be downloaded",
        remedy="\n".join(failures) + "\ngive an OVMF with SEV metadata and kernel hashes with --firmware",
    )
