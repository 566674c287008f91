"""The machine: its clock, and what it allows a process."""

import ctypes
import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kms.findings import Finding, failed, ok, unknown, warning
from kms.serving import FILES_BESIDES, MOST_CONNECTIONS
from kms.settings import Settings

_TIME_ERROR: Final = 5  # adjtimex(2), sys/timex.h: the clock is not synchronised
_TIMEX: Final = 512  # bytes: more than any `struct timex`; all zeros ask, and set nothing
_PR_GET_DUMPABLE: Final = 3  # linux/prctl.h
_FILES: Final = MOST_CONNECTIONS + FILES_BESIDES  # what a server asks for
_FEW_FILES: Final = 1024
_SWAPS: Final = Path("/proc/swaps")
_STATUS: Final = Path("/proc/self/status")
_CAP_IPC_LOCK: Final = 14  # linux/capability.h


def machine(settings: Settings) -> Iterator[Finding]:
    """Look at the machine."""
    yield _synchronised()
    yield _core_dumps()
    yield _swap(settings)
    yield _open_files()
    yield _workers(settings)


def _synchronised() -> Finding:
    """Ask the kernel, as `timedatectl` does: a container has the clock of its host."""
    name = "clock-synchronised"
    libc = ctypes.CDLL(None, use_errno=True)
    state = libc.adjtimex(ctypes.create_string_buffer(_TIMEX))
    if state < 0:
        code = ctypes.get_errno()
        return unknown(name, f"the kernel does not say: {errno.errorcode.get(code, code)}")
    if state == _TIME_ERROR:
        return warning(
            name,
            "the kernel says that nothing keeps the clock right",
            "run chrony or systemd-timesyncd: certificates, challenges and leases are judged by this clock",
        )
    return ok(name, "the kernel says that the clock is kept right")


def _core_dumps() -> Finding:
    """See what became of `kms.hardening.keep_memory_private`, which every command begins with."""
    libc = ctypes.CDLL(None, use_errno=True)
    dumpable, limit = libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE)[0]
    if dumpable == 0 and limit == 0:
        return ok("core-dumps", "a process of ours leaves none")
    return warning(
        "core-dumps",
        f"a process of ours may leave one (dumpable {dumpable}, limit {limit})",
        "run it where prctl(PR_SET_DUMPABLE) is allowed: its memory holds keys",
    )


def _swap(settings: Settings) -> Finding:
    name = "memory-lock"
    if settings.lock_memory:
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
        if limit == resource.RLIM_INFINITY or _has_ipc_lock():
            return ok(name, "memory may be locked, as KMS_LOCK_MEMORY asks")
        return failed(
            name,
            f"KMS_LOCK_MEMORY is set, and only {limit} bytes may be locked",
            "raise the limit (LimitMEMLOCK=infinity, ulimit -l unlimited), or give CAP_IPC_LOCK",
        )
    try:
        swaps = len(_SWAPS.read_text("ascii").splitlines()) - 1
    except OSError as error:
        return unknown(name, f"whether there is swap: {error.strerror}")
    if swaps > 0:
        return warning(
            name,
            "there is swap, and keys in memory may be written to it",
            "set KMS_LOCK_MEMORY=true, or encrypt the swap, or have none",
        )
    return ok(name, "there is no swap")


def _has_ipc_lock() -> bool:
    """Say whether this process has CAP_IPC_LOCK, by which limits of locked memory do not count."""
    capabilities = next(
        line.split()[1] for line in _STATUS.read_text("ascii").splitlines() if line.startswith("CapEff:")
    )
    return bool(int(capabilities, 16) >> _CAP_IPC_LOCK & 1)


def _open_files() -> Finding:
    name, hard = "open-files", resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY or hard >= _FILES:
        return ok(name, "enough for every connection that a server keeps")
    detail = f"{hard} are allowed, of {_FILES} that a server would use"
    remedy = "raise the limit (LimitNOFILE=20000, ulimit -Hn)"
    return failed(name, detail, remedy) if hard < _FEW_FILES else warning(name, detail, remedy)


def _workers(settings: Settings) -> Finding:
    cores = len(os.sched_getaffinity(0))
    detail = f"KMS_WORKERS={settings.workers}, and {cores} cores"
    if settings.workers > cores:
        return warning("workers", detail, "more workers than cores only wait for each other")
    return ok("workers", detail)
