"""The server as its systemd unit confines it, as far as a process can do so to itself."""

import ctypes
import errno
import ssl
import sys
from pathlib import Path
from typing import Final

import httpx2
import pytest

from tests.e2e.topology import Process
from tests.servers.ports import free_port
from tests.servers.vault import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]

# prctl(2), Linux 6.3: from now on no memory becomes executable that was writable, in children too.
_PR_SET_MDWE: Final = 65
_PR_GET_MDWE: Final = 66
_BEGIN: Final = f"""
import ctypes, runpy, sys
if ctypes.CDLL(None).prctl({_PR_SET_MDWE}, 1, 0, 0, 0) != 0:
    sys.exit("refused")
sys.argv = ["kms", "serve"]
runpy.run_module("kms", run_name="__main__")
"""


def test_it_needs_no_memory_that_is_writable_and_executable(tmp_path: Path) -> None:
    """`MemoryDenyWriteExecute=yes` of the unit: everything that the server loads lives with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_GET_MDWE, 0, 0, 0, 0) < 0 and ctypes.get_errno() == errno.EINVAL:
        pytest.skip("it needs Linux 6.3 (PR_SET_MDWE): only there a process can deny itself such memory")
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "none.yaml").write_text("kind: revoked\nname: none\n")
    port = free_port()
    server = Process(
        tmp_path,
        "server",
        [sys.executable, "-c", _BEGIN],
        KMS_DATA_DIR=str(tmp_path / "data"),
        KMS_POLICY_DIR=str(tmp_path / "policy"),
        KMS_KDS_URLS="none",
        KMS_LISTEN=f"127.0.0.1:{port}",
        KMS_METRICS_LISTEN="off",
    )
    ca = tmp_path / "data" / "tls" / "ca.pem"

    def ready() -> bool:
        assert server.running, server.log_text()
        try:
            trust = ssl.create_default_context(cafile=str(ca))
            answer = httpx2.get(f"https://127.0.0.1:{port}/readyz", verify=trust, trust_env=False)
        except (OSError, httpx2.TransportError):
            return False
        return answer.status_code == 200

    try:
        wait_until(ready, within=60)
        assert server.stop() == 0, server.log_text()
    finally:
        server.end()
