"""Evidence from Linux's configfs-tsm (Documentation/ABI/testing/configfs-tsm-report, Linux 6.7 and later).

An entry is a directory: made, it has its attributes; `inblob` is what to sign, `outblob` the report, and
`auxblob` the certificates that the host handed the guest, or nothing. Another process that writes to the
same entry would have us send a report over its bytes, so the entry is ours alone, its `generation` must
count our own writes, and the report must be over what we asked.

What the kernel does: drivers/virt/coco/guest/report.c (entries), drivers/virt/coco/sev-guest/sev-guest.c
(sev_report_new, which makes the report) and fs/configfs/file.c. Notes below name their functions.
"""

import errno
import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from kms.guest.collection import HIGHEST_PRIVLEVEL, BusyRetry, wire_evidence
from kms.guest.errors import EvidenceError
from kms.guest.tidy_end import tidied
from kms.strict_json import JsonValue

# The standard library's: a guest is also a library, and its standard output may be a key's way to a disk.
_log: Final = logging.getLogger(__name__)

DEFAULT_TSM: Final = Path("/sys/kernel/config/tsm/report")
ENTRY_PREFIX: Final = "attested-kms-"  # of the names of our entries
PROVIDER: Final = "sev_guest"  # the name that the kernel's sev-guest driver registers
_OTHER_TEES: Final = {"tdx_guest": "an Intel TDX guest", "arm_cca_guest": "an Arm CCA realm"}
_MAX_BLOB: Final = 32 * 1024  # TSM_OUTBLOB_MAX of Linux 6.7; a report is 1184 bytes
_MAX_AUXBLOB: Final = 256 * 1024  # more than any kernel hands out
_MAX_WORD: Final = 64

# An exchange that failed could make two messages share an AES-GCM IV (snp_disable_vmpck).
_KEY_LOST: Final = "the driver then gives up its message key (VMPCK): reboot the guest"
_MISSING: Final = (
    "tsm-missing",
    "mount configfs and load the sev-guest module (Linux 6.7, CONFIG_SEV_GUEST); or this is no SEV-SNP guest",
)
_NOT_PERMITTED: Final = "tsm-not-permitted", "making an entry takes root, and configfs mounted writable"
_BUSY: Final = "tsm-busy", "the platform stayed busy, or the host throttles requests; try again later"
# errno -> reason, and what to do. Whatever is not here is `tsm-failed`.
_EXPLAINED: Final = {
    errno.ENOENT: _MISSING,
    errno.ENOTDIR: _MISSING,
    errno.ENXIO: _MISSING,  # tsm_report_make_item: no provider has registered
    errno.EACCES: _NOT_PERMITTED,
    errno.EPERM: _NOT_PERMITTED,
    errno.EROFS: _NOT_PERMITTED,
    errno.EBUSY: _BUSY,
    errno.EAGAIN: _BUSY,
    errno.EFBIG: ("tsm-blob-length", "the report or its certificates are longer than this kernel passes on"),
    errno.ENOTTY: ("tsm-key-lost", "the driver has given up its message key, see dmesg: reboot the guest"),
    errno.ETIMEDOUT: ("tsm-timeout", f"the host throttled the request for a minute; {_KEY_LOST}"),
    errno.EIO: ("tsm-failed", f"the exchange with the firmware failed, see dmesg; {_KEY_LOST}"),
}
# Once an entry is there, a provider is too: sev_report_new's own errors.
_EXPLAINED_OF_ENTRY: Final = _EXPLAINED | {
    errno.ENOENT: ("tsm-missing", "this is not configfs's tsm/report, or somebody removed the entry"),
    errno.ENXIO: ("tsm-failed", "the firmware answered with an error, or the driver was unloaded; see dmesg"),
    errno.EINVAL: ("tsm-failed", "the firmware refused it: no report for this privilege level (VMPL)?"),
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

    `privlevel` is the VMPL to ask as, 0 to 3; None leaves it to the kernel. `launch` is the hint that goes
    with the evidence: where the server should look first, never a fact.
    """

    def __init__(
        self,
        path: Path = DEFAULT_TSM,
        *,
        privlevel: int | None = None,
        launch: Mapping[str, JsonValue] | None = None,
        retry: BusyRetry | None = None,
        configfs: ConfigFs | None = None,
    ) -> None:
        self._path = path
        self._privlevel = privlevel
        self._launch = launch
        self._retry = retry or BusyRetry()
        self._configfs = configfs or ConfigFs()

    def evidence(self, report_data: bytes) -> dict[str, JsonValue]:
        """Ask the hardware for a report over 64 bytes.

        Raises:
            EvidenceError: no such interface, another TEE, a conflict, or a report over other bytes.

        """
        # Random, not the process id: containers share configfs and repeat ids.
        entry = self._path / f"{ENTRY_PREFIX}{secrets.token_hex(16)}"
        # Whatever happens, a signal right after the making as well: the kernel keeps entries that are left
        # behind, and then no driver registers again (tsm_report_register).
        report, certificates = tidied(lambda: self._ask(entry, report_data), lambda: self._remove(entry))
        return wire_evidence(report, certificates, self._launch, report_data=report_data)

    def _ask(self, entry: Path, report_data: bytes) -> tuple[bytes, bytes]:
        try:
            self._configfs.make(entry)
        except OSError as error:
            raise _explained(f"cannot make an entry in {self._path}", error, _EXPLAINED) from error
        try:
            return self._read_blobs(entry, report_data)
        except OSError as error:
            raise _explained(f"{entry} failed", error, _EXPLAINED_OF_ENTRY) from error

    def _remove(self, entry: Path) -> None:
        try:
            self._configfs.remove(entry)
        except FileNotFoundError:
            pass  # it could not be made
        except OSError as error:
            # Said, not raised: it would hide why the evidence failed, or throw good evidence away.
            _log.warning("cannot remove %s: %s", entry, error.strerror)

    def _read_blobs(self, entry: Path, report_data: bytes) -> tuple[bytes, bytes]:
        self._check_provider(entry)
        before = self._generation(entry)
        writes = 1
        if self._privlevel is not None:
            self._set_privlevel(entry, self._privlevel)
            writes += 1
        # A refused write shows as a generation that did not count it: configfs ignores what inblob's writing,
        # which it does at the closing, comes back with (configfs_release_bin_file).
        self._configfs.write(entry / "inblob", report_data)
        # Each opening asks the firmware again until it has answered (tsm_report_read).
        report = self._retry.persist(lambda: self._configfs.read(entry / "outblob", _MAX_BLOB))
        certificates = self._auxblob(entry)
        after = self._generation(entry)
        if after != before + writes:
            raise EvidenceError(
                f"{entry}: generation went from {before} to {after}, not by {writes}: another process wrote"
                " to it, or the kernel refused what was written; try again",
                reason="tsm-generation",
            )
        return report, certificates

    def _check_provider(self, entry: Path) -> None:
        provider = self._word(entry / "provider")
        if provider != PROVIDER:
            machine = _OTHER_TEES.get(provider, "not an SEV-SNP guest")
            raise EvidenceError(
                f"the TSM provider is {provider!r}, not {PROVIDER}: this is {machine}, and the KMS"
                " knows SEV-SNP only",
                reason="tsm-provider",
            )

    def _set_privlevel(self, entry: Path, privlevel: int) -> None:
        try:
            # The kernel says EINVAL for any level below (tsm_report_privlevel_store).
            floor = self._number(entry / "privlevel_floor", reason="tsm-privlevel")
        except FileNotFoundError:
            raise EvidenceError(
                "this kernel's TSM has no privilege levels; ask without one", reason="tsm-privlevel"
            ) from None
        if not floor <= privlevel <= HIGHEST_PRIVLEVEL:
            raise EvidenceError(
                f"privilege level {privlevel} is not one that this guest may ask as:"
                f" {floor} to {HIGHEST_PRIVLEVEL}",
                reason="tsm-privlevel",
            )
        self._configfs.write(entry / "privlevel", str(privlevel).encode("ascii"))

    def _auxblob(self, entry: Path) -> bytes:
        """Read the certificates; kernels and hosts that have none to give are normal."""
        try:
            return self._configfs.read(entry / "auxblob", _MAX_AUXBLOB)
        except FileNotFoundError:
            return b""

    def _generation(self, entry: Path) -> int:
        return self._number(entry / "generation", reason="tsm-generation")

    def _number(self, attribute: Path, *, reason: str) -> int:
        word = self._word(attribute)
        if not (word.isascii() and word.isdecimal()):
            raise EvidenceError(f"{attribute} is not a number", reason=reason)
        return int(word)

    def _word(self, attribute: Path) -> str:
        return self._configfs.read(attribute, _MAX_WORD).decode("ascii", "replace").strip()


def _explained(what: str, error: OSError, table: Mapping[int, tuple[str, str]]) -> EvidenceError:
    reason, advice = table.get(error.errno or 0, ("tsm-failed", "see dmesg"))
    return EvidenceError(f"{what}: {error.strerror}; {advice}", reason=reason)
