"""What keeps this process's memory to itself: no core dumps, no debugger, no swap where that is asked for.

Whoever is root on this machine can read it all the same; this is against what happens by accident (a core
file on a disk, a swap partition that is sold) and against other processes of the same user.
"""

import ctypes
import os
import resource
from typing import Final

from kms.errors import ConfigurationError

_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h
_MCL_CURRENT: Final = 1  # asm-generic/mman.h
_MCL_FUTURE: Final = 2


def keep_memory_private() -> None:
    """Make this process leave no core dump, and let no other process of its user look into it.

    Not dumpable, ``/proc/PID/mem`` and ptrace are for root only (prctl(2), PR_SET_DUMPABLE; ptrace(2)).

    Raises:
        ConfigurationError: the system did not do it.

    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise ConfigurationError(
            f"this process cannot be made undumpable: {os.strerror(ctypes.get_errno())}",
            remedy="run it where prctl(PR_SET_DUMPABLE) is allowed: its memory holds keys",
        )


def lock_memory() -> None:
    """Keep all of this process's memory, now and later, from being swapped out (mlockall(2)).

    Raises:
        ConfigurationError: the system does not allow so much; raising RLIMIT_MEMLOCK helps.

    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE) != 0:
        raise ConfigurationError(
            f"KMS_LOCK_MEMORY: memory cannot be locked: {os.strerror(ctypes.get_errno())}",
            remedy="raise the limit (LimitMEMLOCK=infinity, ulimit -l unlimited), or give CAP_IPC_LOCK",
        )
