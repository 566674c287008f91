"""The process keeps its memory to itself; tried in processes of their own."""

import subprocess
import sys

KEEP = "from kms.hardening import keep_memory_private; keep_memory_private()\n"
DUMPABLE = "import ctypes; print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))\n"  # PR_GET_DUMPABLE


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_a_process_is_dumpable_until_it_says_otherwise() -> None:
    assert _run(DUMPABLE).stdout == "1\n"
    assert _run(KEEP + DUMPABLE).stdout == "0\n"


def test_no_core_dump_is_left() -> None:
    code = "import resource; print(resource.getrlimit(resource.RLIMIT_CORE))\n"
    assert _run(KEEP + code).stdout == f"{(0, 0)}\n"


def test_memory_is_locked_or_the_operator_is_told() -> None:
    locked = "print([l for l in open('/proc/self/status') if l.startswith('VmLck')][0].split()[1] != '0')\n"
    done = _run("from kms.hardening import lock_memory; lock_memory()\n" + locked)
    assert done.stdout == "True\n" or "KMS_LOCK_MEMORY: memory cannot be locked" in done.stderr


def test_a_limit_that_is_too_low_is_an_error_with_a_remedy() -> None:
    # Root may lock whatever the limit says, so another user tries.
    code = (
        "import os, resource\n"
        "from kms.errors import ConfigurationError\n"
        "from kms.hardening import lock_memory\n"
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))\n"
        "os.getuid() == 0 and os.setuid(65534)\n"
        "try:\n    lock_memory()\nexcept ConfigurationError as error:\n    print(error.remedy)\n"
    )
    assert "LimitMEMLOCK" in _run(code).stdout
