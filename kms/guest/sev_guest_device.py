"""Evidence from /dev/sev-guest: the ioctls of Linux 5.19 and later, for kernels without configfs-tsm (6.7).

The request is asked for with the host's certificates (SNP_GET_EXT_REPORT), first with no room for them, upon
which the driver tells how much they take. Layouts: include/uapi/linux/sev-guest.h. Behaviour:
drivers/virt/coco/sev-guest/sev-guest.c, whose functions the notes name.
"""

import ctypes
import errno
import fcntl
import logging
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from kms.guest.collection import HIGHEST_PRIVLEVEL, BusyRetry, wire_evidence
from kms.guest.errors import EvidenceError
from kms.guest.sev_guest_faults import HOST_BUSY, HOST_INVALID_LENGTH, explained, refused_report
from kms.strict_json import JsonValue

_log: Final = logging.getLogger(__name__)

DEFAULT_DEVICE: Final = Path("/dev/sev-guest")

SNP_GET_REPORT: Final = 0xC0205300  # _IOWR('S', 0, 32 bytes)
SNP_GET_EXT_REPORT: Final = 0xC0205302  # _IOWR('S', 2, 32 bytes)
_MESSAGE_VERSION: Final = 1
_RESPONSE: Final = 4000  # struct snp_report_resp
_HEADER: Final = struct.Struct("<II24x")  # MSG_REPORT_RSP, SNP ABI 56860: status, report size, reserved
_ENTRY: Final = struct.Struct("<16sII")  # a certificate table's: GUID, offset, length
_MAX_CERTIFICATES: Final = 256 * 1024  # 16 KiB is what drivers take today: SEV_FW_BLOB_MAX_SIZE
_MOST_TRIES: Final = 3  # the host may load longer certificates between two of them
# Neither comes from the firmware, which was not asked: a driver without extended reports, or for which the
# host's certificates are too long (get_ext_report).
_NOT_OFFERED: Final = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


class ReportRequest(ctypes.Structure):
    """struct snp_report_req, 96 bytes."""

    _fields_ = (
        ("user_data", ctypes.c_ubyte * 64),
        ("vmpl", ctypes.c_uint32),
        ("reserved", ctypes.c_ubyte * 28),
    )


class ExtendedReportRequest(ctypes.Structure):
    """struct snp_ext_report_req, 112 bytes. The driver writes `certs_len` where it was too short."""

    _fields_ = (
        ("data", ReportRequest),
        ("certs_address", ctypes.c_uint64),
        ("certs_len", ctypes.c_uint32),
    )


class GuestRequest(ctypes.Structure):
    """struct snp_guest_request_ioctl, 32 bytes. The last two are the halves of exitinfo2."""

    _fields_ = (
        ("msg_version", ctypes.c_uint8),
        ("req_data", ctypes.c_uint64),
        ("resp_data", ctypes.c_uint64),
        ("fw_error", ctypes.c_uint32),
        ("vmm_error", ctypes.c_uint32),
    )


class Ioctl(Protocol):
    """What `fcntl.ioctl` does with a message that the driver writes to. Tests emulate the driver."""

    def __call__(self, descriptor: int, request: int, message: GuestRequest, /) -> object:
        """Do it, or raise `OSError`."""
        ...


class _LongerCertificates(Exception):
    """The certificates do not fit; the request says how long they are."""


class _NotOffered(Exception):
    """No extended reports here."""


class SevGuestSource:
    """An `EvidenceSource` over /dev/sev-guest.

    `privlevel` is the VMPL to ask as, 0 to 3; None is 0, as the kernel's own default. `launch` as in
    `kms.guest.tsm.TsmSource`.
    """

    def __init__(
        self,
        path: Path = DEFAULT_DEVICE,
        *,
        privlevel: int | None = None,
        launch: Mapping[str, JsonValue] | None = None,
        retry: BusyRetry | None = None,
        ioctl: Ioctl = fcntl.ioctl,
    ) -> None:
        self._path = path
        self._privlevel = privlevel or 0
        self._launch = launch
        self._retry = retry or BusyRetry()
        self._ioctl = ioctl

    def evidence(self, report_data: bytes) -> dict[str, JsonValue]:
        """Ask the hardware for a report over 64 bytes.

        Raises:
            EvidenceError: no such device, no report, or one over other bytes.

        """
        if not 0 <= self._privlevel <= HIGHEST_PRIVLEVEL:
            raise EvidenceError(
                f"privilege level {self._privlevel} is none: 0 to {HIGHEST_PRIVLEVEL}",
                reason="device-privlevel",
            )
        asked = ReportRequest(user_data=(ctypes.c_ubyte * 64)(*report_data), vmpl=self._privlevel)
        with self._open() as device:
            response, certificates = self._ask(device, asked)
        report = self._report_in(response)
        return wire_evidence(report, _without_rest(certificates), self._launch, report_data=report_data)

    @contextmanager
    def _open(self) -> Iterator[int]:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise explained(self._path, error) from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _ask(self, device: int, asked: ReportRequest) -> tuple[bytes, bytes]:
        """Give the response and the certificates, which may be none."""
        extended = ExtendedReportRequest(data=asked)
        for _ in range(_MOST_TRIES):
            certificates = ctypes.create_string_buffer(extended.certs_len)
            extended.certs_address = ctypes.addressof(certificates)
            try:
                response = self._request(device, SNP_GET_EXT_REPORT, extended)
            except _LongerCertificates:
                if extended.certs_len > _MAX_CERTIFICATES:
                    break
            except _NotOffered:
                break
            else:
                return response, certificates.raw
        _log.info("%s: no certificates of the host's; the server looks for them itself", self._path)
        return self._request(device, SNP_GET_REPORT, asked), b""

    def _request(self, device: int, number: int, data: ReportRequest | ExtendedReportRequest) -> bytes:
        response = ctypes.create_string_buffer(_RESPONSE)
        message = GuestRequest(
            msg_version=_MESSAGE_VERSION,
            req_data=ctypes.addressof(data),
            resp_data=ctypes.addressof(response),
        )

        def attempt() -> None:
            # The driver writes exitinfo2 only where it is not zero (snp_guest_ioctl).
            message.fw_error = message.vmm_error = 0
            try:
                self._ioctl(device, number, message)
            except OSError as error:
                if message.vmm_error == HOST_BUSY:
                    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY)) from error
                raise

        try:
            self._retry.persist(attempt)
        except OSError as error:
            if number == SNP_GET_EXT_REPORT:
                # By this, not by errno: EIO or ENOSPC, which differs between kernels.
                if message.vmm_error == HOST_INVALID_LENGTH:
                    raise _LongerCertificates from error
                if error.errno in _NOT_OFFERED:
                    raise _NotOffered from error
            raise explained(self._path, error, firmware=message.fw_error, host=message.vmm_error) from error
        return response.raw

    def _report_in(self, response: bytes) -> bytes:
        status, size = _HEADER.unpack_from(response)
        if status:
            raise refused_report(self._path, status)
        if size > _RESPONSE - _HEADER.size:
            raise EvidenceError(
                f"{self._path}: a report of {size} bytes does not fit into its answer",
                reason="report-malformed",
            )
        return response[_HEADER.size : _HEADER.size + size]


def _without_rest(table: bytes) -> bytes:
    """Cut off what fills the last page, as the driver does for configfs-tsm (sev_report_new)."""
    end = 0
    for start in range(0, len(table) - _ENTRY.size + 1, _ENTRY.size):
        guid, offset, length = _ENTRY.unpack_from(table, start)
        if not (any(guid) or offset or length):
            break
        end = max(end, offset + length)
    return table[:end]
