"""configfs-tsm on an emulated tree, with the faults that real ones have."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from typing_extensions import override

from kms.encoding import b64url, from_base64
from kms.guest.errors import EvidenceError
from kms.guest.tsm import ConfigFs, TsmSource
from kms.simulator.machine import SimulatedMachine

ASKED = bytes(range(64))


class EmulatedConfigFs(ConfigFs):
    """Does the kernel's part in a plain folder: attributes come and go with their entry."""

    def __init__(self, report: Callable[[bytes], bytes], table: bytes | None) -> None:
        self.report = report
        self.table = table
        self.provider = "sev_guest\n"
        self.first_generation = 0
        self.writes_of_others = 0
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
        (entry / "generation").write_text(f"{self.first_generation + 1 + self.writes_of_others}\n")
        (entry / "outblob").write_bytes(self.report(data))
        if self.table is not None:
            (entry / "auxblob").write_bytes(self.table)

    @override
    def read(self, attribute: Path, at_most: int) -> bytes:
        self._maybe_fail(attribute.name)
        return super().read(attribute, at_most)

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


@pytest.mark.parametrize("provider", ["tdx_guest\n", "", "sev_guest2", "\xff"])
def test_another_provider_is_not_asked(tmp_path: Path, configfs: EmulatedConfigFs, provider: str) -> None:
    configfs.provider = provider
    configfs.fail["write"] = OSError(errno.EIO, "must not be reached")
    _refused(tmp_path, configfs, "tsm-provider")


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
    ("where", "number", "advice"),
    [
        ("make", errno.ENOENT, "sev-guest module"),
        ("make", errno.ENXIO, "no provider"),
        ("make", errno.EACCES, "root"),
        ("write", errno.EBUSY, "busy"),
        ("outblob", errno.EIO, "dmesg"),
        ("outblob", errno.EAGAIN, "another process"),
        ("auxblob", errno.EIO, "dmesg"),
        ("generation", errno.EPERM, "root"),
        ("outblob", errno.EXDEV, "failed"),
    ],
)
def test_the_kernels_errors_are_explained(
    tmp_path: Path, configfs: EmulatedConfigFs, where: str, number: int, advice: str
) -> None:
    configfs.fail[where] = OSError(number, "as the kernel says")
    error = _refused(tmp_path, configfs, "tsm-failed")
    assert "as the kernel says" in error.detail
    assert advice in error.detail


def test_the_entry_goes_even_when_the_reader_is_interrupted(
    tmp_path: Path, configfs: EmulatedConfigFs
) -> None:
    def interrupt(_: bytes) -> bytes:
        raise KeyboardInterrupt

    configfs.report = interrupt
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


def test_without_configfs_the_advice_comes_from_the_real_file_system(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="sev-guest module"):
        TsmSource(tmp_path / "missing").evidence(ASKED)


def test_the_report_in_the_evidence_is_the_chips(tmp_path: Path, configfs: EmulatedConfigFs) -> None:
    evidence = TsmSource(tmp_path, configfs=configfs).evidence(ASKED)
    report = evidence["report"]
    assert isinstance(report, str)
    assert from_base64(report)[0x050:0x090] == ASKED


def _refused(tmp_path: Path, configfs: EmulatedConfigFs, reason: str) -> EvidenceError:
    with pytest.raises(EvidenceError) as caught:
        TsmSource(tmp_path, configfs=configfs).evidence(ASKED)
    assert caught.value.reason == reason
    assert list(tmp_path.iterdir()) == []
    return caught.value
