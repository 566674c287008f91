"""Evidence from Linux's configfs-tsm (Documentation/ABI/testing/configfs-tsm-report, Linux 6.7 and later).

An entry is a directory: made, it has its attributes; `inblob` is what to sign, `outblob` the report, and
`auxblob` the certificates that the host handed the guest, or nothing. Another process that writes to the
same entry would have us send a report over its bytes, so the entry is ours alone, its `generation` must
count our one write, and the report must be over what we asked.
"""

import errno
import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kms.encoding import b64url
from kms.evidence.sev_snp import TEE
from kms.guest.errors import EvidenceError
from kms.guest.evidence import read_report
from kms.strict_json import JsonValue

# The standard library's: a guest is also a library, and its standard output may be a key's way to a disk.
_log: Final = logging.getLogger(__name__)

DEFAULT_TSM: Final = Path("/sys/kernel/config/tsm/report")
PROVIDER: Final = "sev_guest"  # the name that the kernel's sev-guest driver registers
_MAX_BLOB: Final = 32 * 1024  # TSM_OUTBLOB_MAX, include/linux/tsm.h; later kernels hand out more certificates
_MAX_AUXBLOB: Final = 256 * 1024
_MAX_WORD: Final = 64

_ADVICE: Final = {
    errno.ENOENT: "is configfs mounted, and the sev-guest module loaded (CONFIG_SEV_GUEST, Linux 6.7)?",
    errno.ENXIO: "no provider: load the sev-guest module; this may not be an SEV-SNP guest",
    errno.EACCES: "not permitted: making an entry takes root",
    errno.EPERM: "not permitted: making an entry takes root",
    errno.EBUSY: "the platform is busy or throttles report requests; try again later",
    errno.EAGAIN: "another process wrote to the entry; try again",
    errno.ETIMEDOUT: "the platform did not answer in time; try again later",
    errno.EIO: "the platform refused the request, or its message key is lost until a reboot: see dmesg",
}


class ConfigFs:
    """The four things that are done to configfs. Tests emulate the kernel behind them."""

    def make(self, entry: Path) -> None:
        """Make an entry; the kernel fills it with attributes."""
        entry.mkdir(mode=0o700)

    def remove(self, entry: Path) -> None:
        """Remove an entry; the kernel removes its attributes."""
        entry.rmdir()

    def read(self, attribute: Path, at_most: int) -> bytes:
        """Read an attribute of at most `at_most` bytes."""
        with attribute.open("rb", buffering=0) as file:
            parts = bytearray()
            while part := file.read(at_most + 1 - len(parts)):
                parts += part
        if len(parts) > at_most:
            raise EvidenceError(f"{attribute.name} is longer than {at_most} bytes", reason="tsm-blob-length")
        return bytes(parts)

    def write(self, attribute: Path, data: bytes) -> None:
        """Write an attribute in one call, which is how the kernel takes it. It must exist."""
        descriptor = os.open(attribute, os.O_WRONLY | os.O_CLOEXEC)
        try:
            if os.write(descriptor, data) != len(data):
                raise EvidenceError(f"{attribute.name} took only a part", reason="tsm-failed")
        finally:
            os.close(descriptor)


class TsmSource:
    """An `EvidenceSource` over configfs-tsm.

    `launch` is the hint that goes with the evidence: where the server should look first, never a fact.
    """

    def __init__(
        self,
        path: Path = DEFAULT_TSM,
        *,
        launch: Mapping[str, JsonValue] | None = None,
        configfs: ConfigFs | None = None,
    ) -> None:
        self._path = path
        self._launch = launch
        self._configfs = configfs or ConfigFs()

    def evidence(self, report_data: bytes) -> dict[str, JsonValue]:
        """Ask the hardware for a report over 64 bytes.

        Raises:
            EvidenceError: no such interface, another TEE, a conflict, or a report over other bytes.

        """
        with self._entry() as entry:
            report, certificates = self._read_blobs(entry, report_data)
        evidence: dict[str, JsonValue] = {"tee": TEE, "report": b64url(report)}
        read_report(evidence, report_data)
        if certificates:
            evidence["certificate_table"] = b64url(certificates)
        if self._launch is not None:
            evidence["launch"] = dict(self._launch)
        return evidence

    @contextmanager
    def _entry(self) -> Iterator[Path]:
        """Make an entry of our own, and remove it whatever happens: the kernel keeps those left behind."""
        # Random, not the process id: containers share configfs and repeat ids.
        entry = self._path / f"attested-kms-{secrets.token_hex(8)}"
        try:
            self._configfs.make(entry)
        except OSError as error:
            raise _failed(f"cannot make an entry in {self._path}", error) from error
        try:
            yield entry
        finally:
            try:
                self._configfs.remove(entry)
            except OSError as error:
                # Said, not raised: it would hide why the evidence failed, or throw good evidence away.
                _log.warning("cannot remove %s: %s", entry, error.strerror)

    def _read_blobs(self, entry: Path, report_data: bytes) -> tuple[bytes, bytes]:
        try:
            provider = self._word(entry / "provider")
            if provider != PROVIDER:
                raise EvidenceError(
                    f"the TSM provider is not {PROVIDER}: this guest is not an SEV-SNP one",
                    reason="tsm-provider",
                )
            before = self._generation(entry)
            self._configfs.write(entry / "inblob", report_data)
            report = self._configfs.read(entry / "outblob", _MAX_BLOB)
            certificates = self._auxblob(entry)
            after = self._generation(entry)
        except OSError as error:
            raise _failed(f"{entry} failed", error) from error
        if after != before + 1:
            raise EvidenceError(
                f"another process wrote to {entry} (generation {before} to {after})", reason="tsm-generation"
            )
        return report, certificates

    def _auxblob(self, entry: Path) -> bytes:
        """Read the certificates; kernels and hosts that have none to give are normal."""
        try:
            return self._configfs.read(entry / "auxblob", _MAX_AUXBLOB)
        except FileNotFoundError:
            return b""

    def _word(self, attribute: Path) -> str:
        return self._configfs.read(attribute, _MAX_WORD).decode("ascii", "replace").strip()

    def _generation(self, entry: Path) -> int:
        word = self._word(entry / "generation")
        if not word.isdecimal():
            raise EvidenceError("the entry's generation is not a number", reason="tsm-generation")
        return int(word)


def _failed(what: str, error: OSError) -> EvidenceError:
    advice = _ADVICE.get(error.errno or 0, "")
    detail = f"{what}: {error.strerror}" + (f"; {advice}" if advice else "")
    return EvidenceError(detail, reason="tsm-failed")
