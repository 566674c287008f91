"""The hardware: whether this is an SEV-SNP guest, and whether it gives evidence when it is asked."""

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kms.evidence.app_document import AppIdentity
from kms.findings import Finding, failed, ok, refused, unknown, warning
from kms.guest.doctor.finding import missing
from kms.guest.doctor.system import System
from kms.guest.errors import EvidenceError
from kms.guest.evidence import EvidenceSource, read_report
from kms.guest.hardware import EvidenceOptions, Interface
from kms.guest.tsm import ENTRY_PREFIX
from kms.snp.report import Report

# Documentation/ABI/testing/sysfs-devices-system-cpu: only an SEV-SNP guest has it, from Linux 6.11 on.
_VMPL: Final = "/sys/devices/system/cpu/sev/vmpl"
# arch/x86/…/sev: registered in every SEV-SNP guest, before any driver of it is loaded.
_PLATFORM_DEVICE: Final = "/sys/bus/platform/devices/sev-guest"
# arch/x86/mm/mem_encrypt.c; "AMD" stood before the words, now it stands before the features.
_FEATURES: Final = re.compile(r"Memory Encryption Features active: ([^\n]*)")
_FIRST_LINE: Final = "Linux version "
_OURS: Final = f"{ENTRY_PREFIX}*"
_REMEDY: Final = (
    "launch it as an SEV-SNP guest on an EPYC of the third generation or later"
    " (QEMU: -object sev-snp-guest, firmware for SEV-SNP)"
)


@dataclass(slots=True)
class Seen:
    """What later checks need of earlier ones: this machine's report, and the document that it proves."""

    report: Report | None = None
    app: AppIdentity | None = None


def is_snp(system: System) -> Finding:
    """Say whether the kernel knows itself to be an SEV-SNP guest. The CPU's flag `sev_snp` is a host's."""
    name, vmpl = "sev-snp", system.text(_VMPL)
    if vmpl is not None:
        return ok(name, f"an SEV-SNP guest at VMPL {vmpl}")
    if system.exists(_PLATFORM_DEVICE):
        return ok(name, "an SEV-SNP guest")
    log = system.kernel_log() or ""
    if active := _FEATURES.search(log):
        features = active[1].strip()
        if "SEV-SNP" in features.split():
            return ok(name, f"the kernel says: {features}")
        return failed(name, f"another kind of confidential guest: {features}", _REMEDY)
    if _FIRST_LINE in log:
        return failed(name, "the kernel knows of no memory encryption: an ordinary machine", _REMEDY)
    return unknown(
        name,
        "the kernel shows no sign of SEV-SNP, and the beginning of its log cannot be read",
        f"run it as root; if it is none: {_REMEDY}",
    )


def configfs_tsm(system: System, options: EvidenceOptions) -> Finding:
    """Say whether configfs-tsm is where it should be."""
    name, needed = "configfs-tsm", needs_tsm(options)
    if options.tsm.is_dir():
        return ok(name, f"{options.tsm} is there")
    if not any(each.kind == "configfs" for each in system.mounts()):
        remedy = "mount -t configfs none /sys/kernel/config"
        return missing(name, f"configfs is not mounted, and {options.tsm} not there", remedy, needed=needed)
    remedy = "modprobe sev-guest; it takes Linux 6.7 with CONFIG_SEV_GUEST"
    return missing(name, f"configfs is mounted, and {options.tsm} not there", remedy, needed=needed)


def device(options: EvidenceOptions) -> Finding:
    """Say whether the older device is there, which is asked only where configfs-tsm is not."""
    name = "sev-guest-device"
    if options.device.exists():
        return ok(name, f"{options.device} is there")
    if options.interface is Interface.DEVICE:
        return failed(name, f"{options.device} is not there", "modprobe sev-guest; is this an SEV-SNP guest?")
    return ok(name, f"{options.device} is not there; it is asked only without configfs-tsm")


def needs_tsm(options: EvidenceOptions) -> bool:
    """Say whether evidence comes from configfs-tsm or not at all."""
    if options.interface is not Interface.AUTO:
        return options.interface is Interface.TSM
    try:
        return not options.device.exists()
    except OSError:
        return True  # `device` says what is wrong with it


def left_behind(folder: Path) -> Finding:
    """Look for entries of ours that nobody removed: the kernel keeps them, and the memory of each."""
    name, found = "left-behind", sorted(each.name for each in folder.glob(_OURS))
    if not found:
        return ok(name, f"no entries of ours in {folder}")
    return warning(
        name,
        f"{len(found)} entries of ours in {folder}: {', '.join(found[:3])}{', …' if found[3:] else ''}",
        f"if no other command of ours is at work: rmdir {folder}/{_OURS}",
    )


def evidence(system: System, source: Callable[[], EvidenceSource], seen: Seen) -> Finding:
    """Ask the hardware for a report, for nobody: what it signs is made here, at random, and thrown away.

    REPORT_DATA that somebody else chose is never signed: it could be the digest of a request for our keys.
    Fresh random bytes are the digest of no request, and nobody is sent the report.
    """
    name, report_data = "evidence", secrets.token_bytes(64)
    try:
        given = source().evidence(report_data)
        seen.report = report = read_report(given, report_data)
    except EvidenceError as error:
        if error.reason.endswith("-not-permitted") and not system.superuser:
            return unknown(name, error.detail, "run it as root: only root may ask the hardware")
        return refused(name, error)
    table = "with" if "certificate_table" in given else "without"
    detail = f"a report at VMPL {report.vmpl}, {table} certificates; measurement {report.measurement.hex()}"
    return ok(name, detail)
