"""configfs-tsm on an emulated tree, with the faults that real ones have."""

import errno
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from typing_extensions import override

from kms.encoding import b64url, from_base64
from kms.guest.collection import BusyRetry
from kms.guest.errors import EvidenceError
from kms.guest.tsm import ConfigFs, TsmSource
from kms.simulator.machine import SimulatedMachine
from tests.unit.guest.conftest import FakeTime

ASKED = bytes(range(64))


class EmulatedConfigFs(ConfigFs):
    """Does the kernel's part in a plain folder: attributes come and go with their entry."""

    def __init__(self, report: Callable[[bytes], bytes], table: bytes | None) -> None:
        self.report = report
        self.table = table
        self.provider = "sev_guest\n"
        self.first_generation = 0
        self.writes_of_others = 0
        self.privlevel_floor: int | None = 0
        self.privlevels: list[bytes] = []
        self.busy: Callable[[], bool] = lambda: False
        self.interrupted = ""
        self.fail: dict[str, OSError] = {}
        self.made: list[Path] = []

    @override
    def make(self, entry: Path) -> None:
        self._maybe_fail("make")
        super().make(entry)
        self.made.append(entry)
        (entry / "provider").write_text(self.provider)
        (entry / "generation").write_text(f"{self.first_generation}\n")
        (entry / "inblob").write_bytes(b"")
        if self.privlevel_floor is not None:
            (entry / "privlevel_floor").write_text(f"{self.privlevel_floor}\n")
            (entry / "privlevel").touch()
        self._maybe_interrupt("make")

    @override
    def remove(self, entry: Path) -> None:
        self._maybe_fail("remove")
        for attribute in entry.iterdir():
            attribute.unlink()
        super().remove(entry)

    @override
    def write(self, attribute: Path, data: bytes) -> None:
        self._maybe_fail("write")
        super().write(attribute, data)
        entry = attribute.parent
        if attribute.name == "privlevel":
            self.first_generation += 1
            self.privlevels.append(data)
            return
        (entry / "generation").write_text(f"{self.first_generation + 1 + self.writes_of_others}\n")
        (entry / "outblob").write_bytes(self.report(data))
        if self.table is not None:
            (entry / "auxblob").write_bytes(self.table)

    @override
    def read(self, attribute: Path, at_most: int) -> bytes:
        self._maybe_fail(attribute.name)
        self._maybe_interrupt(attribute.name)
        if attribute.name == "outblob" and self.busy():
            raise BlockingIOError(errno.EBUSY, "busy")
        return super().read(attribute, at_most)

    def _maybe_interrupt(self, where: str) -> None:
        if where == self.interrupted:
            raise KeyboardInterrupt

    def _maybe_fail(self, what: str) -> None:
        if what in self.fail:
            raise self.fail[what]


@pytest.fixture
def configfs(machine: SimulatedMachine) -> EmulatedConfigFs:
    return EmulatedConfigFs(machine.guest.report, machine.guest.chip.certificate_table())


def test_a_report_over_what_was_asked_with_the_hosts_certificates(
    tmp_path: Path, configfs: EmulatedConfigFs
) -> None:
    configfs.first_generation = 41
    evidence = TsmSource(tmp_path, configfs=configfs, launch={"image": "os-1"}).evidence(ASKED)
    assert evidence == {
        "tee": "sev-snp",
        "report": b64url(configfs.report(ASKED)),
        "certificate_table": b64url(configfs.table or b""),
        "launch": {"image": "os-1"},
    }
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("table", [None, b""], ids=["no attribute", "empty"])
def test_bare_metal_hosts_hand_out_no_certificates(
    tmp_path: Path, configfs: EmulatedConfigFs, table: bytes | None
) -> None:
    configfs.table = table
    evidence = TsmSource(tmp_path, configfs=configfs).evidence(ASKED)
    assert evidence.keys() == {"tee", "report"}


def test_entries_of_two_requests_have_different_names(tmp_path: Path, configfs: EmulatedConfigFs) -> None:
    source = TsmSource(tmp_path, configfs=configfs)
    source.evidence(ASKED)
    source.evidence(ASKED)
    assert len(set(configfs.made)) == 2


@pytest.mark.parametrize(
    ("provider", "said"),
    [
        ("tdx_guest\n", "an Intel TDX guest"),
        ("arm_cca_guest\n", "an Arm CCA realm"),
        ("", "not an SEV-SNP guest"),
        ("sev_guest2", "not an SEV-SNP guest"),
        ("\xff", "not an SEV-SNP guest"),
    ],
)
def test_another_provider_is_named_and_not_asked(
    tmp_path: Path, configfs: EmulatedConfigFs, provider: str, said: str
) -> None:
    configfs.provider = provider
    configfs.fail["write"] = OSError(errno.EIO, "must not be reached")
    assert said in _refused(tmp_path, configfs, "tsm-provider").detail


@pytest.mark.parametrize("others", [1, -1, 7])
def test_somebody_else_wrote_to_the_entry(tmp_path: Path, configfs: EmulatedConfigFs, others: int) -> None:
    configfs.writes_of_others = others
    configfs.first_generation = 5
    _refused(tmp_path, configfs, "tsm-generation")


def test_a_report_over_other_bytes(
    tmp_path: Path, configfs: EmulatedConfigFs, machine: SimulatedMachine
) -> None:
    configfs.report = lambda _: machine.guest.report(bytes(64))
    _refused(tmp_path, configfs, "report-data-mismatch")


@pytest.mark.parametrize("length", [0, 64, 1183])
def test_a_cut_report(
    tmp_path: Path, configfs: EmulatedConfigFs, machine: SimulatedMachine, length: int
) -> None:
    configfs.report = lambda data: machine.guest.report(data)[:length]
    _refused(tmp_path, configfs, "report-malformed")


def test_a_blob_without_end(tmp_path: Path, configfs: EmulatedConfigFs) -> None:
    configfs.report = lambda _: bytes(1 << 20)
    _refused(tmp_path, configfs, "tsm-blob-length")


@pytest.mark.parametrize(
    ("failure", "reason", "advice"),
    [
        (("make", errno.ENOENT), "tsm-missing", "mount configfs"),
        (("make", errno.ENXIO), "tsm-missing", "sev-guest module"),
        (("make", errno.EACCES), "tsm-not-permitted", "root"),
        (("make", errno.EROFS), "tsm-not-permitted", "mounted writable"),
        (("make", errno.ENOMEM), "tsm-failed", "dmesg"),
        (("provider", errno.ENOENT), "tsm-missing", "not configfs's"),
        (("write", errno.EBUSY), "tsm-busy", "try again later"),
        (("outblob", errno.EIO), "tsm-failed", "dmesg"),
        (("outblob", errno.ENOTTY), "tsm-key-lost", "reboot"),
        (("outblob", errno.ETIMEDOUT), "tsm-timeout", "throttled"),
        (("outblob", errno.ENXIO), "tsm-failed", "firmware answered with an error"),
        (("outblob", errno.EINVAL), "tsm-failed", "VMPL"),
        (("outblob", errno.EFBIG), "tsm-blob-length", "longer"),
        (("outblob", errno.EXDEV), "tsm-failed", "dmesg"),
        (("auxblob", errno.EIO), "tsm-failed", "dmesg"),
        (("generation", errno.EPERM), "tsm-not-permitted", "root"),
    ],
)
def test_the_kernels_errors_are_explained(
    tmp_path: Path, configfs: EmulatedConfigFs, failure: tuple[str, int], reason: str, advice: str
) -> None:
    where, number = failure
    configfs.fail[where] = OSError(number, "as the kernel says")
    error = _refused(tmp_path, configfs, reason)
    assert "as the kernel says" in error.detail
    assert advice in error.detail


def test_a_platform_that_is_busy_for_three_seconds_is_waited_for(
    tmp_path: Path, configfs: EmulatedConfigFs, time: FakeTime
) -> None:
    free = time.now + 3
    configfs.busy = lambda: time.now < free
    source = TsmSource(tmp_path, configfs=configfs, retry=_retry(time))
    assert source.evidence(ASKED)["report"] == b64url(configfs.report(ASKED))
    assert 3 <= sum(time.slept) < 5
    assert max(time.slept) <= 1
    assert len(configfs.made) == 1


def test_a_platform_that_stays_busy_is_given_up_within_the_patience(
    tmp_path: Path, configfs: EmulatedConfigFs, time: FakeTime
) -> None:
    configfs.busy = lambda: True
    with pytest.raises(EvidenceError, match="stayed busy") as caught:
        TsmSource(tmp_path, configfs=configfs, retry=_retry(time)).evidence(ASKED)
    assert caught.value.reason == "tsm-busy"
    assert 8 < sum(time.slept) <= 10
    assert list(tmp_path.iterdir()) == []


def test_only_a_busy_platform_is_asked_again(
    tmp_path: Path, configfs: EmulatedConfigFs, time: FakeTime
) -> None:
    configfs.fail["outblob"] = OSError(errno.EIO, "refused")
    with pytest.raises(EvidenceError, match="refused"):
        TsmSource(tmp_path, configfs=configfs, retry=_retry(time)).evidence(ASKED)
    assert time.slept == []


def test_the_privilege_level_is_written_and_counted(tmp_path: Path, configfs: EmulatedConfigFs) -> None:
    configfs.privlevel_floor = 1
    TsmSource(tmp_path, configfs=configfs, privlevel=2).evidence(ASKED)
    assert configfs.privlevels == [b"2"]


def test_no_privilege_level_leaves_it_to_the_kernel(tmp_path: Path, configfs: EmulatedConfigFs) -> None:
    configfs.privlevel_floor = 1
    TsmSource(tmp_path, configfs=configfs).evidence(ASKED)
    assert configfs.privlevels == []


@pytest.mark.parametrize(
    ("floor", "asked", "said"),
    [(2, 1, "2 to 3"), (0, 4, "0 to 3"), (0, -1, "0 to 3"), (None, 0, "no privilege levels")],
)
def test_a_privilege_level_that_cannot_be_had(
    tmp_path: Path, configfs: EmulatedConfigFs, floor: int | None, asked: int, said: str
) -> None:
    configfs.privlevel_floor = floor
    with pytest.raises(EvidenceError, match=said) as caught:
        TsmSource(tmp_path, configfs=configfs, privlevel=asked).evidence(ASKED)
    assert caught.value.reason == "tsm-privlevel"
    assert configfs.privlevels == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["make", "provider", "outblob", "auxblob"])
def test_the_entry_goes_wherever_an_interrupt_comes(
    tmp_path: Path, configfs: EmulatedConfigFs, where: str
) -> None:
    configfs.interrupted = where
    with pytest.raises(KeyboardInterrupt):
        TsmSource(tmp_path, configfs=configfs).evidence(ASKED)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_does_not_come_before_the_entry_is_removed(
    tmp_path: Path, configfs: EmulatedConfigFs, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = configfs.remove

    def interrupted(entry: Path) -> None:
        signal.raise_signal(signal.SIGINT)
        remove(entry)

    monkeypatch.setattr(configfs, "remove", interrupted)
    with pytest.raises(KeyboardInterrupt):
        TsmSource(tmp_path, configfs=configfs).evidence(ASKED)
    assert list(tmp_path.iterdir()) == []


def test_an_entry_that_cannot_be_removed_is_said_and_costs_no_evidence(
    tmp_path: Path, configfs: EmulatedConfigFs, caplog: pytest.LogCaptureFixture
) -> None:
    configfs.fail["remove"] = OSError(errno.EBUSY, "busy")
    evidence = TsmSource(tmp_path, configfs=configfs).evidence(ASKED)
    assert evidence["report"] == b64url(configfs.report(ASKED))
    assert "cannot remove" in caplog.text


def test_an_entry_that_cannot_be_removed_does_not_hide_why_the_evidence_failed(
    tmp_path: Path, configfs: EmulatedConfigFs, caplog: pytest.LogCaptureFixture
) -> None:
    configfs.fail |= {"remove": OSError(errno.EBUSY, "busy"), "outblob": OSError(errno.EIO, "refused")}
    with pytest.raises(EvidenceError, match="refused"):
        TsmSource(tmp_path, configfs=configfs).evidence(ASKED)
    assert "cannot remove" in caplog.text


def test_without_configfs_the_advice_comes_from_the_real_file_system(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(EvidenceError, match="sev-guest module"):
        TsmSource(tmp_path / "missing").evidence(ASKED)
    assert caplog.text == ""


def test_a_plain_folder_is_told_from_configfs(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="not configfs's") as caught:
        TsmSource(tmp_path).evidence(ASKED)
    assert caught.value.reason == "tsm-missing"
    assert list(tmp_path.iterdir()) == []


def test_the_report_in_the_evidence_is_the_chips(tmp_path: Path, configfs: EmulatedConfigFs) -> None:
    evidence = TsmSource(tmp_path, configfs=configfs).evidence(ASKED)
    report = evidence["report"]
    assert isinstance(report, str)
    assert from_base64(report)[0x050:0x090] == ASKED


def _retry(time: FakeTime) -> BusyRetry:
    return BusyRetry(clock=lambda: time.now, sleep=time.sleep)


def _refused(tmp_path: Path, configfs: EmulatedConfigFs, reason: str) -> EvidenceError:
    with pytest.raises(EvidenceError) as caught:
        TsmSource(tmp_path, configfs=configfs, retry=_retry(FakeTime())).evidence(ASKED)
    assert caught.value.reason == reason
    assert list(tmp_path.iterdir()) == []
    return caught.value
