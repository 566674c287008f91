"""QEMU under software emulation (TCG): one boot of a machine, from power-on to power-off.

Launching a measured direct boot, QEMU with SEV-SNP writes the table of kernel, initrd and command line hashes
into the firmware's page for it, and has the processor measure that page. Without SEV-SNP it does not, so the
same table (`kms.measurement.kernel_hashes`) is loaded there as a device; the firmware cannot tell.
"""

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Final

from kms.errors import ConfigurationError
from kms.measurement.firmware import Firmware
from kms.measurement.kernel_hashes import hash_page, hash_table
from kms.measurement.metadata import PAGE
from kms.simulator.machine import SimulatedMachine
from vm.launch import VCPU_TYPE, VCPUS, Launch
from vm.psp import answering

PROGRAM: Final = "qemu-system-x86_64"
_MEMORY: Final = "1024"  # MiB
_FW_CFG: Final = "opt/attested-kms"
_STOP_WITHIN: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """How a boot went: what the console showed, and whether the machine powered itself off in time."""

    console: str
    seconds: float
    powered_off: bool
    kernel_after: float | None
    """Seconds until the console showed its first line, which is the kernel's or its initrd's."""


def boot(launch: Launch, machine: SimulatedMachine, folder: Path, *, name: str, within: float) -> Boot:
    """Boot once, for at most `within` seconds; QEMU's files and the console's log go to `folder`.

    Raises:
        ConfigurationError: QEMU does not start.

    """
    table = folder / f"{name}.hashes"
    firmware = Firmware.parse(launch.image.firmware.read_bytes()).describe()
    kernel, initrd = (
        sha256(file.read_bytes()).digest() for file in (launch.image.kernel, launch.image.initrd)
    )
    page = hash_page(hash_table(kernel, initrd, launch.measured_cmdline), firmware.hashes_table_gpa)
    table.write_bytes(page)
    port = folder / f"{name}.psp"
    errors = folder / f"{name}.qemu.log"
    with answering(machine, port), errors.open("wb") as log:
        command = [
            *_machine(launch, port),
            *("-device", f"loader,file={table},addr={firmware.hashes_table_gpa // PAGE * PAGE},force-raw=on"),
        ]
        started = time.monotonic()
        with _running(command, log) as process, (folder / f"{name}.console.log").open("wb") as console:
            lines, first = _follow(process, console, within)
            stopped = process.poll()
            seconds = time.monotonic() - started
    if stopped is not None and stopped > 0:  # below 0: we ended it
        raise ConfigurationError("QEMU did not start the machine", remedy=errors.read_text(errors="replace"))
    return Boot(console=lines, seconds=seconds, powered_off=stopped == 0, kernel_after=first)


def _machine(launch: Launch, port: Path) -> list[str]:
    image = launch.image
    return [
        *(PROGRAM, "-accel", "tcg", "-machine", "q35", "-cpu", VCPU_TYPE, "-smp", str(VCPUS), "-m", _MEMORY),
        *("-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"),
        *("-bios", str(image.firmware), "-kernel", str(image.kernel), "-initrd", str(image.initrd)),
        *("-append", launch.cmdline),
        *_genuine_kernel(image.kernel),
        *("-fw_cfg", f"name={_FW_CFG}/app-document,file={launch.app_document}"),
        *("-fw_cfg", f"name={_FW_CFG}/workload,file={launch.workload}"),
        *("-drive", f"if=none,id=data,format=raw,file={launch.disk}"),
        *("-device", "virtio-blk-pci,drive=data,serial=data"),
        *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="),
        *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=psp,path={port}"),
        *("-device", "virtserialport,chardev=psp,name=attested-kms.psp"),
    ]


def _genuine_kernel(kernel: Path) -> list[str]:
    """Have QEMU hand out the kernel as it is in the file, which is what the table holds the hash of.

    Without SEV, QEMU patches the kernel's setup header before the firmware sees it (hw/i386/x86-common.c,
    x86_load_linux). QEMU 10.0, which also brought `-shim`, adds the genuine bytes as `etc/boot/kernel`, and
    the firmware prefers those; for an earlier one we add them.
    """
    done = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True, check=True)  # noqa: S603
    return [] if "\n-shim " in done.stdout else ["-fw_cfg", f"name=etc/boot/kernel,file={kernel}"]


@contextmanager
def _running(command: list[str], log: IO[bytes]) -> Iterator["subprocess.Popen[bytes]"]:
    if shutil.which(PROGRAM) is None:
        raise ConfigurationError(f"{PROGRAM} is not installed")
    process = subprocess.Popen(  # noqa: S603 -- our own words
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(_STOP_WITHIN)
        if process.stdout is not None:
            process.stdout.close()


def _follow(
    process: "subprocess.Popen[bytes]", console: IO[bytes], within: float
) -> tuple[str, float | None]:
    """Keep what the console shows until the machine is off, or the time is over."""
    started, first, shown = time.monotonic(), None, bytearray()
    timer = threading.Timer(within, process.kill)
    timer.start()
    try:
        for line in process.stdout or ():
            at = time.monotonic() - started
            # The firmware clears the screen; that is no line of anybody's.
            if first is None and line.strip(b"\x1b[0123456789;=hHJm \r\n"):
                first = at
            shown += line
            console.write(b"%6.1f " % at + line)
            console.flush()
        process.wait(_STOP_WITHIN)
    finally:
        timer.cancel()
    return shown.decode("utf-8", "replace").replace("\r", ""), first
