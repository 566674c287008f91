"""/dev/sev-guest on an emulated driver, with the faults that real drivers, hosts and firmwares have."""

import ctypes
import errno
import os
from pathlib import Path

import pytest

from kms.encoding import b64url
from kms.guest import sev_guest_device
from kms.guest.collection import BusyRetry
from kms.guest.errors import EvidenceError
from kms.guest.sev_guest_device import SevGuestSource
from kms.simulator.machine import SimulatedMachine
from tests.unit.guest.conftest import FakeTime
from tests.unit.guest.emulated_sev_guest import GET_EXT_REPORT, GET_REPORT, PAGE, EmulatedSevGuest

ASKED = bytes(range(64))
DEVICE = Path("/dev/null")  # opened, and nothing else


@pytest.fixture
def driver(machine: SimulatedMachine) -> EmulatedSevGuest:
    return EmulatedSevGuest(machine.guest.report, machine.guest.chip.certificate_table())


def _source(driver: EmulatedSevGuest, time: FakeTime | None = None, **options: object) -> SevGuestSource:
    time = time or FakeTime()
    retry = BusyRetry(clock=lambda: time.now, sleep=time.sleep)
    return SevGuestSource(DEVICE, ioctl=driver, retry=retry, **options)  # type: ignore[arg-type]


def _refused(driver: EmulatedSevGuest, reason: str) -> EvidenceError:
    with pytest.raises(EvidenceError) as caught:
        _source(driver).evidence(ASKED)
    assert caught.value.reason == reason
    assert str(DEVICE) in caught.value.detail
    return caught.value


def _pages(table: bytes) -> int:
    return -(-len(table) // PAGE) * PAGE


def test_the_structures_are_those_of_the_header() -> None:
    """include/uapi/linux/sev-guest.h, and _IOWR('S', number, struct snp_guest_request_ioctl)."""
    assert ctypes.sizeof(sev_guest_device.ReportRequest) == 96
    assert ctypes.sizeof(sev_guest_device.ExtendedReportRequest) == 112
    size = ctypes.sizeof(sev_guest_device.GuestRequest)
    assert size == 32
    numbers = [3 << 30 | size << 16 | ord("S") << 8 | number for number in (0, 2)]
    assert numbers == [sev_guest_device.SNP_GET_REPORT, sev_guest_device.SNP_GET_EXT_REPORT]


@pytest.mark.parametrize("length_errno", [errno.EIO, errno.ENOSPC])
def test_a_report_with_the_hosts_certificates_whose_length_is_asked_first(
    driver: EmulatedSevGuest, length_errno: int
) -> None:
    driver.length_errno = length_errno
    evidence = _source(driver, launch={"image": "os-1"}).evidence(ASKED)
    assert evidence == {
        "tee": "sev-snp",
        "report": b64url(driver.report(ASKED)),
        "certificate_table": b64url(driver.table),
        "launch": {"image": "os-1"},
    }
    assert driver.asked == [(GET_EXT_REPORT, 0, 0), (GET_EXT_REPORT, 0, _pages(driver.table))]


def test_a_host_without_certificates_answers_the_first_time(driver: EmulatedSevGuest) -> None:
    driver.table = b""
    assert _source(driver).evidence(ASKED).keys() == {"tee", "report"}
    assert driver.asked == [(GET_EXT_REPORT, 0, 0)]


def test_a_table_that_is_only_its_end_is_none(driver: EmulatedSevGuest) -> None:
    driver.table = bytes(24)
    assert _source(driver).evidence(ASKED).keys() == {"tee", "report"}


def test_certificates_that_grow_between_two_requests(driver: EmulatedSevGuest) -> None:
    driver.most_certificates = 64 * PAGE
    driver.grows = 1
    evidence = _source(driver).evidence(ASKED)
    assert evidence.keys() == {"tee", "report"}
    assert [request for request, *_ in driver.asked] == [GET_EXT_REPORT] * 3 + [GET_REPORT]


@pytest.mark.parametrize("pages", [5, 65], ids=["than the driver takes", "than anybody takes"])
def test_certificates_that_are_longer_cost_no_evidence(driver: EmulatedSevGuest, pages: int) -> None:
    driver.table = driver.table.ljust(pages * PAGE, b"\1")
    assert _source(driver).evidence(ASKED) == {"tee": "sev-snp", "report": b64url(driver.report(ASKED))}
    assert driver.asked == [(GET_EXT_REPORT, 0, 0), (GET_REPORT, 0, 0)]


def test_a_driver_without_extended_reports_gives_a_plain_one(driver: EmulatedSevGuest) -> None:
    driver.extended = False
    assert _source(driver, privlevel=1).evidence(ASKED).keys() == {"tee", "report"}
    assert driver.asked == [(GET_REPORT, 1, 0)]


@pytest.mark.parametrize("privlevel", [0, 3])
def test_the_privilege_level_is_in_every_request(driver: EmulatedSevGuest, privlevel: int) -> None:
    _source(driver, privlevel=privlevel).evidence(ASKED)
    assert {vmpl for _, vmpl, _ in driver.asked} == {privlevel}


@pytest.mark.parametrize("privlevel", [-1, 4])
def test_a_privilege_level_that_is_none_is_not_asked_for(driver: EmulatedSevGuest, privlevel: int) -> None:
    with pytest.raises(EvidenceError, match="0 to 3") as caught:
        _source(driver, privlevel=privlevel).evidence(ASKED)
    assert caught.value.reason == "device-privlevel"
    assert driver.asked == []


def test_a_platform_that_is_busy_for_three_seconds_is_waited_for(
    driver: EmulatedSevGuest, time: FakeTime
) -> None:
    free = time.now + 3
    driver.busy = lambda: time.now < free
    assert _source(driver, time).evidence(ASKED)["report"] == b64url(driver.report(ASKED))
    assert 3 <= sum(time.slept) < 5


@pytest.mark.parametrize("number", [None, errno.EBUSY, errno.EAGAIN])
def test_a_platform_that_stays_busy_is_given_up(
    driver: EmulatedSevGuest, time: FakeTime, number: int | None
) -> None:
    if number is None:
        driver.busy = lambda: True
    else:
        driver.fail = OSError(number, "")
    with pytest.raises(EvidenceError, match="stayed busy") as caught:
        _source(driver, time).evidence(ASKED)
    assert caught.value.reason == "device-busy"
    assert 8 < sum(time.slept) <= 10


@pytest.mark.parametrize(
    ("number", "reason", "advice"),
    [
        (errno.ENOTTY, "device-key-lost", "reboot the guest"),
        (errno.ETIMEDOUT, "device-timeout", "throttled"),
        (errno.EBADMSG, "device-failed", "altered"),
        (errno.EIO, "device-failed", "dmesg"),
        (errno.EINVAL, "device-failed", "kernel too old"),
        (errno.ENOMEM, "device-failed", "memory"),
        (errno.ENODEV, "device-missing", "sev-guest module"),
        (errno.EPERM, "device-not-permitted", "root"),
        (errno.EXDEV, "device-failed", "dmesg"),
    ],
)
def test_the_drivers_errors_are_explained(
    driver: EmulatedSevGuest, number: int, reason: str, advice: str
) -> None:
    driver.fail = OSError(number, "")
    error = _refused(driver, reason)
    assert os.strerror(number) in error.detail
    assert advice in error.detail


@pytest.mark.parametrize(
    ("exitinfo2", "reason", "said"),
    [
        (0x16, "device-firmware", "0x16 (INVALID_PARAM)"),
        (0x27, "device-firmware", "0x27 (INVALID_KEY)"),
        (0x1D, "device-firmware", "0x1d (AEAD_OFLOW)"),
        (0x3E, "device-firmware", "0x3e (see psp-sev.h): the firmware refused"),
        (3 << 32, "device-host", "VMM error 3"),
        (0xFFFFFFFF, "device-failed", "dmesg"),
        (0, "device-failed", "dmesg"),
    ],
)
def test_the_firmwares_and_the_hosts_errors_are_explained(
    driver: EmulatedSevGuest, exitinfo2: int, reason: str, said: str
) -> None:
    driver.fail, driver.exitinfo2 = OSError(errno.EIO, ""), exitinfo2
    error = _refused(driver, reason)
    assert said in error.detail
    assert "reboot the guest" in error.detail
    assert len(driver.asked) == 1


def test_a_length_that_is_told_for_a_plain_report_is_an_error(driver: EmulatedSevGuest) -> None:
    driver.extended = False
    driver.fail, driver.exitinfo2 = OSError(errno.EIO, ""), 1 << 32
    _refused(driver, "device-host")


@pytest.mark.parametrize(
    ("status", "said"), [(0x16, "privilege level"), (0x27, "key"), (0x99, "refused the request")]
)
def test_an_answer_that_is_a_status_and_no_report(driver: EmulatedSevGuest, status: int, said: str) -> None:
    driver.status = status
    error = _refused(driver, "device-firmware")
    assert said in error.detail
    assert "reboot" not in error.detail


def test_a_size_that_does_not_fit_into_the_answer(driver: EmulatedSevGuest) -> None:
    driver.report_size = 4000 - 32 + 1
    _refused(driver, "report-malformed")


@pytest.mark.parametrize("size", [0, 64, 1183, 1185])
def test_a_cut_report(driver: EmulatedSevGuest, size: int) -> None:
    driver.report_size = size
    with pytest.raises(EvidenceError, match=f"1184 bytes, not {size}") as caught:
        _source(driver).evidence(ASKED)
    assert caught.value.reason == "report-malformed"


def test_a_report_over_other_bytes(driver: EmulatedSevGuest) -> None:
    driver.other_report_data = True
    with pytest.raises(EvidenceError) as caught:
        _source(driver).evidence(ASKED)
    assert caught.value.reason == "report-data-mismatch"


def test_without_the_device_the_advice_comes_from_the_real_file_system(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="sev-guest module") as caught:
        SevGuestSource(tmp_path / "sev-guest").evidence(ASKED)
    assert caught.value.reason == "device-missing"


def test_another_device_is_no_sev_guest() -> None:
    """With the real ioctl, which /dev/null does not know."""
    with pytest.raises(EvidenceError, match="this is another device") as caught:
        SevGuestSource(DEVICE).evidence(ASKED)
    assert caught.value.reason == "device-key-lost"


def test_no_permission(driver: EmulatedSevGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: Path, *_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("kms.guest.sev_guest_device.os.open", deny)
    assert "root" in _refused(driver, "device-not-permitted").detail


@pytest.mark.parametrize("failing", [False, True])
def test_the_device_is_closed(driver: EmulatedSevGuest, failing: bool) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    driver.status = 0x16 if failing else 0
    try:
        _source(driver).evidence(ASKED)
    except EvidenceError:
        assert failing
    assert len(list(Path("/proc/self/fd").iterdir())) == before
