"""Another process's memory, as root or a debugger reads it (proc(5), /proc/PID/mem)."""

from collections.abc import Iterator
from pathlib import Path

import pytest


def memory_of(process_id: int) -> Iterator[tuple[str, bytes]]:
    """Give the content of each readable mapping, with its line of /proc/PID/maps; a running process's.

    Skips the test where this process may not read it.
    """
    folder = Path("/proc") / str(process_id)
    try:
        memory = (folder / "mem").open("rb", buffering=0)
    except PermissionError:
        pytest.skip("only root may read a server's memory: this test needs CAP_SYS_PTRACE")
    read = 0
    with memory:
        for line in (folder / "maps").read_text().splitlines():
            addresses, permissions, *_ = line.split()
            begin, end = (int(each, 16) for each in addresses.split("-"))
            if not permissions.startswith("r"):
                continue
            try:
                memory.seek(begin)
                content = memory.read(end - begin)
            except (OSError, OverflowError, ValueError):
                continue  # the kernel's own pages ([vvar]) cannot be read, nor what went away meanwhile
            read += len(content)
            yield line, content
    assert read > 10 << 20, "a Python process has more memory than that"
