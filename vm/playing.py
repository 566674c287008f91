"""One scene: the machine is booted, and what came of it is compared with what must."""

import json
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from kms.cli.demo_show import Show
from vm.launch import Image, Launch
from vm.psp import SimulatedProcessor
from vm.qemu import Boot, boot
from vm.scenes import Scene
from vm.server import Server

_DISK_SIZE: Final = 64 << 20  # bytes
_BOOT_WITHIN: Final = 300.0  # seconds: software emulation, on a computer that may do other things
_SILENT_AT_LEAST: Final = 20.0
_KERNEL_LINE: Final = re.compile(r"\[ *\d+\.\d+\] (?!kms\[)")
# What the guest side and the demo in it say; the rest is in the console's log.
_OURS: Final = re.compile(r"^(kms guest|attested-kms:|vm-demo:)|kms\[\d+\]: |is open as /dev/mapper/")
_CONTROL: Final = re.compile(r"\x1b(\[[0-9;?=]*[A-Za-z]|[^\[])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a boot ended. `wrong` says what was not as it must be."""

    name: str
    seconds: float
    powered_off: bool
    released: int
    refused: tuple[str, ...]
    disk_written: bool
    wrong: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class Stage:
    """What all scenes share. `folder` gets the disk, the host's files and a log of each boot."""

    show: Show
    folder: Path
    processor: SimulatedProcessor
    image: Image
    systemd_image: Image
    kernel_after: float = 0.0
    """Seconds to the first line on the console, in the slowest boot so far."""

    def lay_out(self, *, app_document: bytes, workload: bytes, other_workload: bytes) -> None:
        """Write what the host hands to the machine, and a blank disk."""
        self.folder.mkdir()
        for path, content in (
            (self.app_document, app_document),
            (self.workload(other=False), workload),
            (self.workload(other=True), other_workload),
        ):
            path.write_bytes(content)
        with self.disk.open("wb") as disk:
            disk.truncate(_DISK_SIZE)

    @property
    def app_document(self) -> Path:
        """The app document, whose hash is HOST_DATA."""
        return self.folder / "app-document.json"

    @property
    def disk(self) -> Path:
        """The machine's virtio disk."""
        return self.folder / "disk.img"

    def workload(self, *, other: bool) -> Path:
        """Give the workload that the app document names, or another one."""
        return self.folder / ("other-workload.yaml" if other else "workload.yaml")

    def console_log(self, scene: Scene) -> Path:
        """Give where the console of a scene is kept."""
        return self.folder / f"{scene.name}.console.log"

    def launch(self, scene: Scene) -> Launch:
        """Give the launch of a scene."""
        return Launch(
            image=self.systemd_image if scene.systemd else self.image,
            cmdline=scene.cmdline,
            measured_cmdline=scene.measured_cmdline,
            app_document=self.app_document,
            workload=self.workload(other=scene.other_workload),
            disk=self.disk,
        )

    def play(self, scene: Scene, server: Server) -> Outcome:
        """Boot, show what there was on the console, and judge. Raises `ConfigurationError` without a boot."""
        self.show.chapter(scene.title)
        launch = self.launch(scene)
        machine = self.processor.launch(launch)
        self.show.fact("measurement", f"{machine.guest.measurement.hex()[:32]}…")
        disk, logged = _digest(self.disk), server.log.stat().st_size
        # A machine whose firmware stops shows nothing, ever; one that boots would have shown something.
        within = _BOOT_WITHIN if scene.console else max(_SILENT_AT_LEAST, 3 * self.kernel_after)
        with self.show.trying("the machine runs"):
            seen = boot(launch, machine, self.folder, name=scene.name, within=within)
        self.kernel_after = max(self.kernel_after, seen.kernel_after or 0.0)
        released, refused = decisions(server.log, logged)
        outcome = Outcome(
            name=scene.name,
            seconds=round(seen.seconds, 1),
            powered_off=seen.powered_off,
            released=released,
            refused=refused,
            disk_written=_digest(self.disk) != disk,
            wrong=tuple(judge(scene, seen, released, refused, written=_digest(self.disk) != disk)),
        )
        lines = told(seen.console)
        self.show.text("\n".join(lines if outcome.wrong else filter(_OURS.search, lines)))
        self._say(scene, outcome)
        return outcome

    def _say(self, scene: Scene, outcome: Outcome) -> None:
        recorded = [f"{outcome.released} released"] if outcome.released else []
        recorded += [f"refused: {code}" for code in outcome.refused]
        by = "the impostor" if scene.impostor else "the server"
        self.show.fact(by, ", ".join(recorded) or "was asked for nothing")
        self.show.fact("the disk", "was written" if outcome.disk_written else "is as it was, byte for byte")
        ended = "the machine powered itself off" if outcome.powered_off else "the machine stood still"
        if outcome.wrong:
            self.show.not_refused(scene.name, "all as it must be", "; ".join(outcome.wrong))
        else:
            self.show.done(f"{ended} after {outcome.seconds:.0f} s")


def judge(scene: Scene, seen: Boot, released: int, refused: tuple[str, ...], *, written: bool) -> list[str]:
    """Say what is not as it must be."""
    wrong = []
    if not scene.console:
        if seen.powered_off or told(seen.console):
            wrong.append("the firmware started something")
    elif not seen.powered_off:
        wrong.append("the machine did not power itself off")
    wrong += [f"`{text}` was not on the console" for text in scene.console if text not in seen.console]
    if not scene.opens and "vm-demo:" in seen.console:
        wrong.append("THE BOOT WENT ON")
    if released != scene.released:
        wrong.append(f"{released} released, not {scene.released}")
    if refused != ((scene.refused,) if scene.refused else ()):
        wrong.append(f"refused {', '.join(refused) or 'nothing'}, not {scene.refused or 'nothing'}")
    if written != scene.writes:
        wrong.append("the disk was written" if written else "nothing was written to the disk")
    return wrong


def told(console: str) -> list[str]:
    """Give the lines of a console that are not the kernel's own, without control sequences."""
    lines = (_CONTROL.sub("", line).strip() for line in console.split("\n"))
    return [line for line in lines if line and not _KERNEL_LINE.match(line)]


def decisions(log: Path, start: int) -> tuple[int, tuple[str, ...]]:
    """Give what a server logged from a place on: how many releases, and the codes of refusals."""
    released, refused = 0, []
    with log.open("rb") as file:
        file.seek(start)
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # what is no JSON is no decision
            if entry.get("event") == "released":
                released += 1
            elif entry.get("event") in {"refused", "not-served"}:
                refused.append(str(entry.get("code")))
    return released, tuple(refused)


def _digest(path: Path) -> bytes:
    return sha256(path.read_bytes()).digest()
