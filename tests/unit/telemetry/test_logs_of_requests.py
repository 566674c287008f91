"""Whose line it is: server, process and request."""

import json
import os
import subprocess
import sys

# In a process of its own: how it logs is set once.
LOGS = """
import asyncio
import structlog
from kms.telemetry.logs import configure_logs
configure_logs("info", "kms-1")
log = structlog.get_logger("kms.somewhere")

async def serve(number):
    structlog.contextvars.bind_contextvars(request_id=f"request {number}")
    await asyncio.sleep(0)
    log.warning("on the way")
    log.info("refused", request_id=f"request {number}")

async def main():
    await asyncio.gather(*(asyncio.create_task(serve(number)) for number in range(3)))
    log.info("beside")

asyncio.run(main())
"""


def test_every_line_says_which_server_process_and_request_wrote_it() -> None:
    process = subprocess.run([sys.executable, "-c", LOGS], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in process.stderr.splitlines()]
    assert {line["server"] for line in lines} == {"kms-1"}
    assert all(line["pid"] != os.getpid() for line in lines)
    by_request = [(line["event"], line.get("request_id")) for line in lines]
    assert sorted(by_request[:-1]) == [
        (event, f"request {number}") for event in ("on the way", "refused") for number in range(3)
    ]
    assert by_request[-1] == ("beside", None)
