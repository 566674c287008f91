"""The driver behind /dev/sev-guest, as far as a guest sees it: drivers/virt/coco/sev-guest/sev-guest.c.

It reads and writes the caller's memory through the addresses in the message, as the kernel does, by layouts
of its own (include/uapi/linux/sev-guest.h), so that a wrong structure in the product shows.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from kms.guest.sev_guest_device import GuestRequest

GET_REPORT, GET_EXT_REPORT = 0xC0205300, 0xC0205302
PAGE = 4096
MESSAGE = struct.Struct("<B7xQQII")
REPORT_REQUEST = struct.Struct("<64sI28s")
CERTIFICATES = struct.Struct("<QI4x")  # what follows in the extended request: address, length
NO_FIRMWARE_CALL = 0xFF


@dataclass
class EmulatedSevGuest:
    """Call it as `fcntl.ioctl`. `report` is what the firmware signs, `table` what the host hands out."""

    report: Callable[[bytes], bytes]
    table: bytes = b""
    most_certificates: int = 4 * PAGE  # SEV_FW_BLOB_MAX_SIZE
    extended: bool = True
    other_report_data: bool = False
    status: int = 0  # of the firmware's answer
    report_size: int | None = None  # that the answer states, instead of the report's
    fail: OSError | None = None
    exitinfo2: int = NO_FIRMWARE_CALL  # (VMM error << 32 | firmware error) of `fail`
    busy: Callable[[], bool] = lambda: False
    length_errno: int = errno.EIO  # of a buffer that is too short; the first drivers said ENOSPC
    grows: int = 0  # pages that the host's certificates grow by, after each time that they did not fit
    asked: list[tuple[int, int, int]] = field(default_factory=list)  # request, VMPL, room for certificates

    def __call__(self, descriptor: int, request: int, message: GuestRequest, /) -> int:
        os.fstat(descriptor)  # open
        version, req_data, resp_data, *_ = MESSAGE.unpack(bytes(message))
        if request not in {GET_REPORT, GET_EXT_REPORT} or (request == GET_EXT_REPORT and not self.extended):
            raise _fail(message, errno.ENOTTY, NO_FIRMWARE_CALL)
        if version != 1 or not req_data or not resp_data:
            raise _fail(message, errno.EINVAL, NO_FIRMWARE_CALL)
        data, vmpl, reserved = REPORT_REQUEST.unpack(ctypes.string_at(req_data, REPORT_REQUEST.size))
        if any(reserved):
            raise _fail(message, errno.EINVAL, NO_FIRMWARE_CALL)
        address, room = 0, 0
        if request == GET_EXT_REPORT:
            address, room = CERTIFICATES.unpack(ctypes.string_at(req_data + REPORT_REQUEST.size, 16))
            if room > self.most_certificates or room % PAGE:
                raise _fail(message, errno.EINVAL, NO_FIRMWARE_CALL)
        self.asked.append((request, vmpl, room))
        if self.busy():
            raise _fail(message, errno.EIO, 2 << 32)
        if self.fail is not None:
            raise _fail(message, self.fail.errno or 0, self.exitinfo2)
        if request == GET_EXT_REPORT and len(self.table) > room:
            needed = -(-len(self.table) // PAGE) * PAGE
            ctypes.memmove(req_data + REPORT_REQUEST.size + 8, struct.pack("<I", needed), 4)
            self.table += bytes(self.grows * PAGE)
            raise _fail(message, self.length_errno, 1 << 32)
        if room:
            ctypes.memmove(address, self.table.ljust(room, b"\0"), room)
        report = b"" if self.status else self.report(bytes(64) if self.other_report_data else data)
        size = len(report) if self.report_size is None else self.report_size
        answer = struct.pack("<II24x", self.status, size) + report
        ctypes.memmove(resp_data, answer.ljust(4000, b"\0"), 4000)
        return 0  # and the message as it was: exitinfo2 is 0


def _fail(message: GuestRequest, number: int, exitinfo2: int) -> OSError:
    message.fw_error, message.vmm_error = exitinfo2 & 0xFFFFFFFF, exitinfo2 >> 32
    return OSError(number, os.strerror(number))
