"""The SIMULATED processor: it measures what QEMU is given, and signs reports about it.

On an EPYC processor the security processor (PSP) does this, and its key never leaves it. Here a chip of
`kms.simulator` on the host does; the guest reaches it over a virtio-serial port (`vm/inside/psp_port.py`),
and can do what a guest can do: ask for a report over 64 bytes of its choice.
"""

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Final

from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.machine import SimulatedMachine, describe
from kms.simulator.tsm_reports import reports_of
from kms.snp.product import Product
from vm.launch import VCPU_TYPE, VCPUS, Launch

_QUESTION: Final = 65  # privilege level, report data
_ANSWER: Final = struct.Struct("<III")  # errno, length of the report, length of the certificates
_MOST_PRIVLEVEL: Final = 3


class SimulatedProcessor:
    """One chip, whose root is `root_pem`: nobody trusts it but a server in development mode."""

    def __init__(self) -> None:
        now = datetime.now(UTC)
        hierarchy = AmdHierarchy.generate(Product.MILAN, now=now)
        self.root_pem = hierarchy.ark.pem
        self._chip = SimulatedChip.typical(
            hierarchy, chip_id=simulated_chip_id(Product.MILAN, b"vm demo"), now=now
        )

    def launch(self, launch: Launch) -> SimulatedMachine:
        """Measure what the machine starts from: firmware, and the hashes of what is loaded with it."""
        image = launch.image
        description = describe(
            firmware=image.firmware.read_bytes(),
            kernel=image.kernel.read_bytes(),
            initrd=image.initrd.read_bytes(),
            cmdline=launch.measured_cmdline,
        )
        return SimulatedMachine.launch(
            self._chip,
            description,
            vcpus=VCPUS,
            vcpu_type=VCPU_TYPE,
            app_document=launch.app_document.read_bytes(),
        )


@contextmanager
def answering(machine: SimulatedMachine, path: Path) -> Iterator[None]:
    """Answer one machine's questions at a Unix socket, until the end of the block."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        thread = Thread(target=_serve, args=(listener, machine), name="simulated-psp", daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            path.unlink()


def _serve(listener: socket.socket, machine: SimulatedMachine) -> None:
    report = reports_of(machine.guest)
    try:
        connection, _ = listener.accept()
    except OSError:  # the machine never came
        return
    with connection:
        while (question := _question(connection)) is not None:
            privlevel, report_data = question[0], question[1:]
            if privlevel > _MOST_PRIVLEVEL:
                connection.sendall(_ANSWER.pack(errno.EINVAL, 0, 0))
                continue
            signed, certificates = report(report_data, privlevel)
            connection.sendall(_ANSWER.pack(0, len(signed), len(certificates)) + signed + certificates)


def _question(connection: socket.socket) -> bytes | None:
    data = bytearray()
    while len(data) < _QUESTION:
        try:
            part = connection.recv(_QUESTION - len(data))
        except ConnectionError:
            return None
        if not part:
            return None
        data += part
    return bytes(data)
