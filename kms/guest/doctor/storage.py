"""Where keys and what they open could come to lie: disks, swap, core dumps, and files."""

import re
from pathlib import PurePath
from typing import Final

from kms.findings import Finding, ok, unknown, warning
from kms.guest.doctor.finding import missing
from kms.guest.doctor.system import System

_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
_MAPPER: Final = "device-mapper"  # as /proc/misc and DM_NAME have it
_LUKS2: Final = (2, 0, 0)
_VERSION: Final = re.compile(r"cryptsetup (\d+)\.(\d+)\.(\d+)")


def cryptsetup(system: System, *, needed: bool) -> Finding:
    """Look for cryptsetup; `needed`: there are volumes to open."""
    name, program = "cryptsetup", system.program("cryptsetup")
    if program is None:
        return missing(name, "it is not installed", "install cryptsetup, to open disks", needed=needed)
    said = system.version_of(program)
    read = _VERSION.search(said)
    if read is None:
        return unknown(name, f"its version cannot be told: {said[:80]!r}")
    version = int(read[1]), int(read[2]), int(read[3])
    if version < _LUKS2:
        return missing(name, f"{said.strip()} knows no LUKS2", "cryptsetup from 2.4.3 on", needed=needed)
    if _decrypts_for_the_host(version):
        return warning(
            name,
            f"{read[0]} lets whoever writes the disk, which is the host, have it decrypted (CVE-2021-4122)",
            "cryptsetup from 2.4.3 on, or 2.3.7",
        )
    return ok(name, read[0])


def _decrypts_for_the_host(version: tuple[int, int, int]) -> bool:
    """Say whether a version goes on with a re-encryption that only the header speaks of.

    CVE-2021-4122 is in 2.2.0 and later; 2.3.7 and 2.4.3 check who began it (openwall oss-security,
    2022-01-13).
    """
    return (2, 2, 0) <= version < (2, 4, 3) and not (2, 3, 7) <= version < (2, 4, 0)


def device_mapper(system: System, *, needed: bool) -> Finding:
    """Look for the kernel's device mapper. Its node alone says nothing: udev makes it beforehand."""
    name = _MAPPER
    listed = (system.text("/proc/misc") or "").splitlines()
    if any(line.split()[-1:] == [_MAPPER] for line in listed):
        return ok(name, "the kernel has it")
    remedy = "modprobe dm-mod; without loadable modules, a kernel with CONFIG_BLK_DEV_DM"
    return missing(name, "the kernel does not have it, or not yet", remedy, needed=needed)


def run_in_memory(system: System) -> Finding:
    """Say whether files below /run are in memory."""
    name, kind = "run-in-memory", system.file_system("/run")
    if kind in _IN_MEMORY:
        return ok(name, f"/run is a {kind}")
    if kind is None:
        return unknown(name, "what is mounted cannot be read", "mount -t proc proc /proc")
    remedy = "mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /run; keys are not written to a disk"
    return warning(name, f"/run is on {kind}, not on a tmpfs", remedy)


def swap(system: System) -> Finding:
    """Look for swap that is not in memory and not encrypted."""
    name, listing = "swap", system.text("/proc/swaps")
    if listing is None:
        return ok(name, "the kernel has none")
    places = [line.split()[0] for line in listing.splitlines()[1:] if line.strip()]
    if not places:
        return ok(name, "there is none")
    if plain := [place for place in places if not _keeps_to_itself(system, place)]:
        return warning(
            name,
            f"keys in memory may be written to {', '.join(plain)}, which is not seen to be encrypted",
            "swapoff -a, or swap on dm-crypt with a random key (crypttab(5), option swap)",
        )
    return ok(name, f"{', '.join(places)}: in memory or encrypted")


def _keeps_to_itself(system: System, place: str) -> bool:
    """Say whether a swap device is dm-crypt's, or compressed memory without a disk behind it."""
    block = f"/sys/class/block/{PurePath(system.at(place).resolve()).name}"
    if (system.text(f"{block}/dm/uuid") or "").startswith("CRYPT-"):
        return True
    # Documentation/admin-guide/blockdev/zram.rst; a kernel without CONFIG_ZRAM_WRITEBACK has no backing_dev.
    is_zram = PurePath(block).name.startswith("zram")
    return is_zram and system.text(f"{block}/backing_dev") in {None, "none"}


def core_dumps(system: System) -> Finding:
    """See where the memory of programs that crash goes (core(5)); commands of ours never leave any."""
    name, pattern = "core-dumps", system.text("/proc/sys/kernel/core_pattern")
    if pattern is None:
        return ok(name, "the kernel writes none")
    if pattern.startswith("|") and PurePath(pattern[1:].split(" ", 1)[0]).name == "false":
        return ok(name, "they are thrown away")
    return warning(
        name,
        f"programs that crash may leave their memory, and keys in it: core_pattern is {pattern[:80]!r}",
        "sysctl kernel.core_pattern='|/bin/false'",
    )
