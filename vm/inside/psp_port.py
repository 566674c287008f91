"""Runs in the initrd: a SIMULATED configfs-tsm whose reports come from the SIMULATED processor on the host.

On an EPYC processor the kernel asks the processor's firmware through pages of memory. Here it is a
virtio-serial port with the name `attested-kms.psp`. Question: privilege level (1 byte), report data (64).
Answer: errno, length of the report, length of the certificates (4 bytes each, little-endian), and the two.
The chip's key stays on the host. Usage: psp_port.py MOUNTPOINT
"""

import struct
import sys
from pathlib import Path
from typing import BinaryIO

sys.path.insert(0, str(Path(__file__).parent))
sys.dont_write_bytecode = True
from tsm_fuse import Report, SimulatedTsm  # type: ignore[import-not-found]  # noqa: E402 -- copied beside it

_PORT = "attested-kms.psp"
_ANSWER = struct.Struct("<III")


def main() -> None:
    """Mount it, and answer until the machine is off."""
    with _port().open("r+b", buffering=0) as port:
        SimulatedTsm(_asking(port)).run(Path(sys.argv[1]))


def _asking(port: BinaryIO) -> "Report":
    def report(report_data: bytes, privlevel: int) -> tuple[bytes, bytes]:
        port.write(bytes([privlevel]) + report_data)
        number, *lengths = _ANSWER.unpack(_read(port, _ANSWER.size))
        if number:
            raise OSError(number, "the processor refused")
        first, second = (_read(port, length) for length in lengths)
        return first, second

    return report


def _read(port: BinaryIO, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        data += port.read(length - len(data))
    return bytes(data)


def _port() -> Path:
    for name in Path("/sys/class/virtio-ports").glob("*/name"):
        if name.read_text().strip() == _PORT:
            return Path("/dev", name.parent.name)
    raise SystemExit(f"vm-demo: no virtio port {_PORT}")


if __name__ == "__main__":
    main()
