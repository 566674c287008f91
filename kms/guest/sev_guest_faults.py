"""What /dev/sev-guest says when it gives no report, in sentences: errno, host's error, firmware's status.

Sources: drivers/virt/coco/sev-guest/sev-guest.c and arch/x86/coco/sev/core.c (errno, and that any failed
exchange costs the driver its message key), include/uapi/linux/sev-guest.h (host),
include/uapi/linux/psp-sev.h (names of firmware statuses), SNP ABI 56860, MSG_REPORT_RSP (16h and 27h).
"""

import errno
from typing import Final

from kms.guest.errors import EvidenceError

HOST_INVALID_LENGTH: Final = 1  # SNP_GUEST_VMM_ERR_INVALID_LEN
HOST_BUSY: Final = 2  # SNP_GUEST_VMM_ERR_BUSY
# What the driver puts there before it asks (snp_guest_ioctl), and SEV_RET_NO_FW_CALL: no firmware was asked.
_FIRMWARE_NOT_ASKED: Final = frozenset({0, 0xFF, 0xFFFFFFFF})

_REBOOT: Final = "the driver then gives up its message key (VMPCK): reboot the guest"
_BUSY: Final = "device-busy", "the platform stayed busy, or the host throttles requests; try again later"
_MISSING: Final = (
    "device-missing",
    "load the sev-guest module (Linux 5.19, CONFIG_SEV_GUEST); or this is no SEV-SNP guest",
)
_NOT_PERMITTED: Final = "device-not-permitted", "it is root's; a container must be given the device"
_EXPLAINED: Final = {
    errno.ENOENT: _MISSING,
    errno.ENOTDIR: _MISSING,
    errno.ENODEV: _MISSING,
    errno.ENXIO: _MISSING,
    errno.EACCES: _NOT_PERMITTED,
    errno.EPERM: _NOT_PERMITTED,
    errno.EBUSY: _BUSY,
    errno.EAGAIN: _BUSY,
    errno.ETIMEDOUT: ("device-timeout", f"the host throttled the request for a minute; {_REBOOT}"),
    errno.ENOTTY: (
        "device-key-lost",
        "the driver gave up its message key (VMPCK), see dmesg: reboot the guest; or this is another device",
    ),
    errno.EBADMSG: ("device-failed", f"the host altered the firmware's answer; {_REBOOT}"),
    errno.EIO: ("device-failed", f"the exchange with the firmware failed, see dmesg; {_REBOOT}"),
    errno.EINVAL: ("device-failed", "the driver does not know this form of request; is the kernel too old?"),
    errno.ENOMEM: ("device-failed", "the kernel has no memory to share with the host; try again later"),
}

_HOST_PAGES: Final = "the host handed the firmware pages that it cannot use"
_HARDWARE: Final = "the hardware is at fault: the host's operator must look"
_STATUSES: Final = {
    0x01: ("INVALID_PLATFORM_STATE", "the host has not initialised SNP"),
    0x02: ("INVALID_GUEST_STATE", "to the firmware this guest does not run"),
    0x09: ("INVALID_ADDRESS", _HOST_PAGES),
    0x0B: ("BAD_MEASUREMENT", "the host altered the message, or its key is not this guest's"),
    0x10: ("INVALID_GUEST", "the host asked for another guest"),
    0x13: ("HWSEV_RET_PLATFORM", _HARDWARE),
    0x14: ("HWSEV_RET_UNSAFE", _HARDWARE),
    0x15: ("UNSUPPORTED", "this firmware does not know the request: the host's operator must update it"),
    0x16: (
        "INVALID_PARAM",
        "no report for this request: ask with the privilege level (VMPL) that this guest runs at, or above",
    ),
    0x17: ("RESOURCE_LIMIT", "the firmware has no room; try again later"),
    0x19: ("INVALID_PAGE_SIZE", _HOST_PAGES),
    0x1A: ("INVALID_PAGE_STATE", _HOST_PAGES),
    0x1C: ("INVALID_PAGE_OWNER", _HOST_PAGES),
    0x1D: ("AEAD_OFLOW", "this message key has no counts left: reboot the guest"),
    0x25: ("RESTORE_REQUIRED", "an update of the host's firmware was not finished"),
    0x27: ("INVALID_KEY", "the firmware does not have the key that reports are to be signed with"),
    0x28: ("SHUTDOWN_INCOMPLETE", "the host is shutting SNP down"),
}


def explained(path: object, error: OSError, *, firmware: int = 0, host: int = 0) -> EvidenceError:
    """Give the error for a failed `open` or `ioctl`; `firmware` and `host` are the halves of exitinfo2."""
    if firmware not in _FIRMWARE_NOT_ASKED:
        return EvidenceError(f"{path}: {_status(firmware)}; {_REBOOT}", reason="device-firmware")
    # Busy is an errno by now, and nobody was told a length for a plain report.
    if host not in {0, HOST_BUSY}:
        return EvidenceError(
            f"{path}: the host refused the request (VMM error {host}); {_REBOOT}", reason="device-host"
        )
    reason, advice = _EXPLAINED.get(error.errno or 0, ("device-failed", "see dmesg"))
    return EvidenceError(f"{path}: {error.strerror}; {advice}", reason=reason)


def refused_report(path: object, status: int) -> EvidenceError:
    """Give the error for an answer of the firmware that is a status and no report."""
    return EvidenceError(f"{path}: {_status(status)}", reason="device-firmware")


def _status(status: int) -> str:
    name, sentence = _STATUSES.get(status, ("see psp-sev.h", "the firmware refused the request"))
    return f"firmware status {status:#x} ({name}): {sentence}"
