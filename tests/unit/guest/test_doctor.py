"""``kms guest doctor`` on an emulated guest, whole and with every fault: it names the part and the remedy."""

import gzip
import json
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

import pytest

from kms.cli import run
from kms.encoding import b64url
from kms.guest.config import GuestConfig, VolumeConfig
from kms.guest.doctor import Finding, Status, System, examine
from kms.guest.doctor.clocks import clock
from kms.guest.doctor.network import STEPS
from kms.guest.errors import EvidenceError
from kms.guest.evidence import EvidenceSource
from kms.guest.hardware import EvidenceOptions, Interface
from kms.identifiers import AppId, ComposeHash
from kms.keys.names import KeyRequest
from kms.policy.question import AppClaim
from kms.simulator.machine import SimulatedMachine
from kms.strict_json import JsonValue
from tests.unit.guest.conftest import app_document, with_host_data

RELEASE = "6.12.107+deb13-amd64"
MODULES = f"lib/modules/{RELEASE}"
TSM = "sys/kernel/config/tsm/report"
WORKLOAD = b"services: {}\n"
KMSG = "dev/kmsg"

# What Debian 13 says of itself in an SEV-SNP guest, as far as it is looked at.
HEALTHY = {
    f"boot/config-{RELEASE}": "CONFIG_AMD_MEM_ENCRYPT=y\nCONFIG_SEV_GUEST=m\nCONFIG_TSM_REPORTS=m\n"
    "CONFIG_CONFIGFS_FS=m\nCONFIG_DM_CRYPT=m\n# CONFIG_TCG_TPM is not set\n",
    f"{MODULES}/modules.builtin": "kernel/fs/fuse/fuse.ko\n",
    f"{MODULES}/modules.dep": "kernel/drivers/virt/coco/sev-guest/sev-guest.ko.xz: kernel/x.ko.xz\n"
    "kernel/drivers/virt/coco/tsm.ko.xz:\nkernel/fs/configfs/configfs.ko.xz:\nkernel/drivers/md/dm-crypt.ko.xz:\n",
    "proc/modules": "sev_guest 20480 0 - Live 0x0\ntsm 16384 1 sev_guest, Live 0x0\n"
    "configfs 65536 2 tsm, Live 0x0\n",
    "proc/cmdline": "console=ttyS0 root=/dev/dm-0 ro rd.shell=0 panic=1\n",
    "proc/misc": "236 device-mapper\n 58 sev-guest\n",
    "proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n",
    "proc/sys/kernel/core_pattern": "|/bin/false\n",
    "proc/self/mountinfo": "22 1 0:21 / / rw - ext4 /dev/vda rw\n"
    "23 22 0:22 / /run rw shared:1 - tmpfs tmpfs rw\n"
    "24 22 0:23 / /sys/kernel/config rw - configfs configfs rw\n",
    "sys/devices/system/cpu/sev/vmpl": "0\n",
    "usr/sbin/cryptsetup": "#!/bin/sh\necho cryptsetup 2.7.5 flags: UDEV BLKID KEYRING\n",
}


@dataclass
class Guest:
    """An emulated guest: its files, its hardware, and what is known of its app."""

    root: Path
    machine: EvidenceSource
    options: EvidenceOptions
    system: System
    config: GuestConfig | None = None
    within: float = 5.0

    def write(self, path: str, text: str | bytes) -> Path:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text.encode() if isinstance(text, str) else text)
        if path.endswith("bin/cryptsetup"):
            place.chmod(0o755)
        return place

    def remove(self, *paths: str) -> None:
        for path in paths:
            (self.root / path).unlink()

    def examine(self) -> dict[str, Finding]:
        found = list(
            examine(
                self.system,
                self.config,
                self.options,
                source=lambda _: self.machine,
                within=self.within,
            )
        )
        names = [each.name for each in found]
        assert len(set(names)) == len(names), "names are stable, and each is there once"
        assert all(each.remedy for each in found if each.status is Status.WARNING)
        return {each.name: each for each in found}

    def see(self, name: str) -> Finding:
        return self.examine()[name]


@pytest.fixture
def guest(tmp_path: Path, machine: SimulatedMachine) -> Guest:
    root = tmp_path / "root"
    options = EvidenceOptions(tsm=root / TSM, device=root / "dev/sev-guest")
    system = System(root=root, release=RELEASE, architecture="x86_64", superuser=True)
    emulated = Guest(root, machine, options, system)
    for path, text in HEALTHY.items():
        emulated.write(path, text)
    (root / TSM).mkdir(parents=True)
    return emulated


@dataclass
class Broken:
    """Hardware that gives no evidence."""

    reason: str
    asked: list[bytes] = field(default_factory=list)

    def evidence(self, report_data: bytes) -> dict[str, JsonValue]:
        self.asked.append(report_data)
        raise EvidenceError("no report; load the module", reason=self.reason)


def test_a_healthy_guest_has_nothing_wrong(guest: Guest) -> None:
    found = guest.examine()
    assert {name for name, each in found.items() if each.status is not Status.OK} == {"server"}
    assert found["server"].status is Status.UNKNOWN


class TestKernel:
    @pytest.mark.parametrize("architecture", ["aarch64", "i686"])
    def test_another_architecture_cannot_be_one(self, guest: Guest, architecture: str) -> None:
        guest.system = replace(guest.system, architecture=architecture)
        assert guest.see("architecture").failed

    @pytest.mark.parametrize(
        ("release", "status"),
        [
            ("6.7.0", Status.OK),
            ("6.18.0-rc1", Status.OK),
            ("10.0", Status.OK),
            ("6.6.9-arch1", Status.WARNING),
            ("5.19.0", Status.WARNING),
            ("5.18.19", Status.FAILED),
            ("4.4", Status.FAILED),
            ("next", Status.UNKNOWN),
            ("", Status.UNKNOWN),
        ],
    )
    def test_versions(self, guest: Guest, release: str, status: Status) -> None:
        guest.system = replace(guest.system, release=release)
        assert guest.see("kernel-version").status is status

    @pytest.mark.parametrize(
        ("option", "name"),
        [
            ("CONFIG_AMD_MEM_ENCRYPT=y\n", "memory-encryption"),
            ("CONFIG_SEV_GUEST=m\n", "sev-guest-module"),
            ("CONFIG_TSM_REPORTS=m\n", "tsm-module"),
            ("CONFIG_CONFIGFS_FS=m\n", "configfs-module"),
        ],
    )
    @pytest.mark.parametrize("packed", [False, True])
    def test_an_option_that_is_not_set_is_named(
        self, guest: Guest, option: str, name: str, *, packed: bool
    ) -> None:
        guest.remove("proc/modules")
        config = HEALTHY[f"boot/config-{RELEASE}"].replace(option, "")
        if packed:
            guest.write("proc/config.gz", gzip.compress(config.encode()))  # and it goes before /boot
        else:
            guest.write(f"boot/config-{RELEASE}", config)
        found = guest.see(name)
        assert found.failed
        assert option.partition("=")[0] in found.remedy

    def test_a_module_that_is_not_loaded_is_to_be_loaded(self, guest: Guest) -> None:
        guest.write("proc/modules", "tsm 16384 1 - Live 0x0\n")
        found = guest.see("sev-guest-module")
        assert found.failed
        assert "modprobe sev-guest" in found.remedy

    def test_the_module_is_named_as_this_kernel_has_it(self, guest: Guest) -> None:
        guest.remove("proc/modules")
        assert guest.see("tsm-module").remedy.startswith("modprobe tsm;")

    def test_a_module_that_the_image_lacks_is_to_be_put_there(self, guest: Guest) -> None:
        guest.remove("proc/modules", f"{MODULES}/modules.dep", f"{MODULES}/modules.builtin")
        found = guest.see("tsm-module")
        assert found.failed
        assert "no module tsm-report" in found.detail

    def test_a_loaded_module_needs_no_list(self, guest: Guest) -> None:
        guest.remove(f"boot/config-{RELEASE}", f"{MODULES}/modules.dep", f"{MODULES}/modules.builtin")
        found = guest.examine()
        assert found["sev-guest-module"].status is Status.OK
        assert found["memory-encryption"].status is Status.UNKNOWN
        assert found["dm-crypt-module"].status is Status.UNKNOWN

    def test_parts_that_are_built_in(self, guest: Guest) -> None:
        guest.remove(f"boot/config-{RELEASE}", "proc/modules")
        guest.write(f"{MODULES}/modules.builtin", "kernel/drivers/virt/coco/guest/tsm_report.ko\n")
        assert guest.see("tsm-module").status is Status.OK

    def test_the_newer_name_of_the_module(self, guest: Guest) -> None:
        guest.write("proc/modules", "sev_guest 1 0 - Live 0x0\ntsm_report 1 0 - Live 0x0\n")
        assert guest.see("tsm-module").status is Status.OK

    @pytest.mark.parametrize(
        "damaged",
        [b"", b"\x1f\x8b", gzip.compress(b"CONFIG_X=y\n" * 99)[:40], b"no"],
        # Not the bytes, which have the time in them: every worker must collect the same names.
        ids=["empty", "magic", "cut", "no"],
    )
    def test_a_damaged_configuration_is_passed_over(self, guest: Guest, damaged: bytes) -> None:
        guest.write("proc/config.gz", damaged)
        assert guest.see("memory-encryption").status is Status.OK

    def test_dm_crypt_is_needed_where_there_are_volumes(self, guest: Guest) -> None:
        config = HEALTHY[f"boot/config-{RELEASE}"].replace("CONFIG_DM_CRYPT=m", "")
        guest.write(f"boot/config-{RELEASE}", config)
        assert guest.see("dm-crypt-module").status is Status.WARNING
        guest.config = configuration(volumes={"data": VOLUME})
        assert guest.see("dm-crypt-module").failed

    def test_the_older_device_needs_no_tsm(self, guest: Guest) -> None:
        guest.write("dev/sev-guest", "")
        guest.write("proc/modules", "sev_guest 1 0 - Live 0x0\n")
        assert guest.see("tsm-module").status is Status.WARNING
        guest.options = replace(guest.options, interface=Interface.TSM)
        assert guest.see("tsm-module").failed


class TestCommandLine:
    @pytest.mark.parametrize(
        "word",
        [
            "rd.break",
            "rd.break=pre-mount",
            "rd.shell",
            "rd.shell=1",
            "break",
            "break=premount",
            "init=/bin/sh",
            "init=/usr/bin/bash",
            "rdinit=/bin/busybox",
            "single",
            "s",
            "S",
            "1",
            "emergency",
            "rescue",
            "-b",
            "systemd.debug_shell",
            "systemd.debug-shell=1",
            "rd.systemd.debug_shell=ttyS0",
            "systemd.unit=rescue.target",
            "rd.systemd.unit=emergency.target",
            "systemd.wants=debug-shell.service",
            "systemd.setenv=SYSTEMD_SULOGIN_FORCE=1",
            "systemd.break=pre-switch-root",
        ],
    )
    def test_words_that_open_a_shell(self, guest: Guest, word: str) -> None:
        guest.write("proc/cmdline", f"console=ttyS0 {word} ro\n")
        found = guest.see("kernel-command-line")
        assert found.status is Status.WARNING
        assert found.detail.endswith(f": {word}")

    @pytest.mark.parametrize(
        "word",
        [
            "rd.shell=0",
            "systemd.debug_shell=no",
            "init=/usr/lib/systemd/systemd",
            "systemd.unit=multi-user.target",
            "root=/dev/single",
            "panic=1",
            "kms.server=https://emergency:8443",
        ],
    )
    def test_words_that_do_not(self, guest: Guest, word: str) -> None:
        guest.write("proc/cmdline", word)
        assert guest.see("kernel-command-line").status is Status.OK

    def test_no_proc(self, guest: Guest) -> None:
        guest.remove("proc/cmdline")
        assert guest.see("kernel-command-line").status is Status.UNKNOWN


class TestSevSnp:
    @pytest.fixture(autouse=True)
    def _older_kernel(self, guest: Guest) -> None:
        """A kernel that has no /sys/devices/system/cpu/sev."""
        guest.remove("sys/devices/system/cpu/sev/vmpl")

    def test_the_platform_device(self, guest: Guest) -> None:
        guest.write("sys/bus/platform/devices/sev-guest/uevent", "")
        assert guest.see("sev-snp").status is Status.OK

    @pytest.mark.parametrize(
        ("line", "status"),
        [
            ("Memory Encryption Features active: AMD SEV SEV-ES SEV-SNP", Status.OK),
            ("AMD Memory Encryption Features active: SEV SEV-ES SEV-SNP", Status.OK),
            ("Memory Encryption Features active: AMD SEV SEV-ES", Status.FAILED),
            ("Memory Encryption Features active: AMD SME", Status.FAILED),
            ("Memory Encryption Features active: Intel TDX", Status.FAILED),
            ("smp: Brought up 1 node, 2 CPUs", Status.FAILED),
        ],
    )
    def test_the_log_of_the_kernel(self, guest: Guest, line: str, status: Status) -> None:
        guest.write(KMSG, f"5,0,0,-;Linux version 6.1\n6,1,20,-;{line}\n")
        assert guest.see("sev-snp").status is status

    def test_a_log_without_its_beginning_says_nothing(self, guest: Guest) -> None:
        guest.write(KMSG, "6,8000,20,-;eth0: link up\n")
        assert guest.see("sev-snp").status is Status.UNKNOWN

    def test_no_log(self, guest: Guest) -> None:
        assert guest.see("sev-snp").status is Status.UNKNOWN


class TestEvidence:
    def test_what_is_signed_is_new_each_time_and_our_own(self, guest: Guest) -> None:
        guest.machine = broken = Broken("tsm-failed")
        guest.examine()
        guest.examine()
        first, second = broken.asked
        assert len(first) == len(second) == 64
        assert first != second

    def test_a_report_is_shown_with_what_a_policy_asks_for(self, guest: Guest) -> None:
        found = guest.see("evidence")
        assert found.status is Status.OK
        assert "VMPL 0" in found.detail
        assert "measurement " in found.detail

    def test_no_report(self, guest: Guest) -> None:
        guest.machine = Broken("tsm-busy")
        found = guest.see("evidence")
        assert found.failed
        assert found.detail == "no report; load the module (tsm-busy)"

    @pytest.mark.parametrize("reason", ["tsm-not-permitted", "device-not-permitted"])
    def test_only_root_can_tell(self, guest: Guest, reason: str) -> None:
        guest.machine = Broken(reason)
        assert guest.see("evidence").failed
        guest.system = replace(guest.system, superuser=False)
        found = guest.see("evidence")
        assert found.status is Status.UNKNOWN
        assert "root" in found.remedy

    def test_configfs_is_not_mounted(self, guest: Guest) -> None:
        (guest.root / TSM).rmdir()
        guest.write("proc/self/mountinfo", "23 22 0:22 / /run rw - tmpfs tmpfs rw\n")
        found = guest.see("configfs-tsm")
        assert found.failed
        assert found.remedy == "mount -t configfs none /sys/kernel/config"

    def test_configfs_without_tsm(self, guest: Guest) -> None:
        (guest.root / TSM).rmdir()
        found = guest.see("configfs-tsm")
        assert found.failed
        assert "modprobe sev-guest" in found.remedy
        guest.write("dev/sev-guest", "")
        assert guest.see("configfs-tsm").status is Status.WARNING

    def test_the_device_that_was_asked_for(self, guest: Guest) -> None:
        guest.options = replace(guest.options, interface=Interface.DEVICE)
        assert guest.see("sev-guest-device").failed
        guest.write("dev/sev-guest", "")
        assert guest.see("sev-guest-device").status is Status.OK

    def test_entries_that_were_left_behind(self, guest: Guest) -> None:
        (guest.root / TSM / "attested-kms-0123").mkdir()
        (guest.root / TSM / "somebody-else").mkdir()
        found = guest.see("left-behind")
        assert found.status is Status.WARNING
        assert "1 entries" in found.detail
        assert "somebody-else" not in found.detail


VOLUME = VolumeConfig(name="data", device=Path("/dev/vdb"), key=KeyRequest.parse("disk", "app"))


def configuration(**changes: object) -> GuestConfig:
    """Give one whose server's address no socket is opened for."""
    return replace(GuestConfig(server="http://kms"), **changes)  # type: ignore[arg-type]


class TestApp:
    DOCUMENT = app_document(compose_hash=sha256(WORKLOAD).hexdigest())

    @pytest.fixture(autouse=True)
    def _launched_for_it(self, guest: Guest, machine: SimulatedMachine) -> None:
        guest.machine = with_host_data(machine, sha256(self.DOCUMENT).digest())
        document = guest.write("app.json", self.DOCUMENT)
        guest.config = configuration(app_document=document, workload=guest.write("workload", WORKLOAD))

    def use(self, guest: Guest, **changes: object) -> None:
        assert guest.config is not None
        guest.config = replace(guest.config, **changes)  # type: ignore[arg-type]

    def test_both_are_right(self, guest: Guest) -> None:
        found = guest.examine()
        assert found["app-document"].status is Status.OK
        assert found["workload"].status is Status.OK

    def test_another_document(self, guest: Guest) -> None:
        guest.write("app.json", self.DOCUMENT + b"\n")
        found = guest.examine()
        assert found["app-document"].failed
        assert "host-data-mismatch" in found["app-document"].detail
        assert found["workload"].status is Status.UNKNOWN

    def test_no_document(self, guest: Guest) -> None:
        guest.remove("app.json")
        found = guest.see("app-document")
        assert found.failed
        assert "qemu_fw_cfg" in found.remedy

    def test_a_document_without_end(self, guest: Guest) -> None:
        guest.write("app.json", b" " * (64 * 1024 + 1))
        assert guest.see("app-document").failed

    def test_without_a_report_nothing_is_proved(self, guest: Guest) -> None:
        guest.machine = Broken("tsm-failed")
        found = guest.examine()
        assert found["app-document"].status is found["workload"].status is Status.UNKNOWN

    def test_another_workload(self, guest: Guest) -> None:
        guest.write("workload", b"services: {evil: {}}\n")
        found = guest.see("workload")
        assert found.failed
        assert "compose-hash-differs" in found.detail

    def test_no_workload(self, guest: Guest) -> None:
        guest.remove("workload")
        assert guest.see("workload").failed

    def test_the_workload_of_a_measured_command_line(self, guest: Guest) -> None:
        claim = AppClaim(app_id=AppId(b"\xa1" * 20), compose_hash=ComposeHash(sha256(WORKLOAD).digest()))
        self.use(guest, app_document=None, app=claim)
        assert guest.see("workload").status is Status.OK
        guest.write("workload", b"")
        assert guest.see("workload").failed

    def test_a_document_for_another_kms(self, guest: Guest, machine: SimulatedMachine) -> None:
        document = app_document(kms_identity=b64url(b"\x01" * 32))
        guest.write("app.json", document)
        guest.machine = with_host_data(machine, sha256(document).digest())
        self.use(guest, identity=b"\x02" * 32)
        assert guest.see("app-document").status is Status.WARNING
        self.use(guest, identity=b"\x01" * 32)
        assert guest.see("app-document").status is Status.OK


class TestStorage:
    @pytest.mark.parametrize(
        ("version", "status"),
        [
            ("2.7.5", Status.OK),
            ("2.4.3", Status.OK),
            ("2.3.7", Status.OK),
            ("2.1.0", Status.OK),
            ("2.4.2", Status.WARNING),
            ("2.4.0", Status.WARNING),
            ("2.3.6", Status.WARNING),
            ("2.2.0", Status.WARNING),
        ],
    )
    def test_cryptsetup_that_decrypts_for_the_host(self, guest: Guest, version: str, status: Status) -> None:
        guest.write("usr/sbin/cryptsetup", f"#!/bin/sh\necho cryptsetup {version}\n")
        found = guest.see("cryptsetup")
        assert found.status is status
        assert ("CVE-2021-4122" in found.detail) is (status is Status.WARNING)

    def test_volumes_need_cryptsetup_and_the_device_mapper(self, guest: Guest) -> None:
        guest.remove("usr/sbin/cryptsetup", "proc/misc")
        found = guest.examine()
        assert found["cryptsetup"].status is found["device-mapper"].status is Status.WARNING
        guest.config = configuration(volumes={"data": VOLUME})
        found = guest.examine()
        assert found["cryptsetup"].failed
        assert found["device-mapper"].failed

    def test_cryptsetup_without_luks2(self, guest: Guest) -> None:
        guest.write("usr/sbin/cryptsetup", "#!/bin/sh\necho cryptsetup 1.7.5\n")
        assert guest.see("cryptsetup").status is Status.WARNING

    def test_a_program_that_is_no_cryptsetup(self, guest: Guest) -> None:
        guest.write("usr/sbin/cryptsetup", "#!/bin/sh\necho hello\n")
        assert guest.see("cryptsetup").status is Status.UNKNOWN
        guest.write("usr/sbin/cryptsetup", "#!/nowhere/sh\n")
        assert guest.see("cryptsetup").status is Status.UNKNOWN

    @pytest.mark.parametrize(
        ("line", "status"),
        [
            ("23 22 0:22 / /run rw - tmpfs tmpfs rw", Status.OK),
            ("23 22 0:22 / /run/lock rw - tmpfs tmpfs rw", Status.WARNING),
            ("23 22 0:22 / /running rw - tmpfs tmpfs rw", Status.WARNING),
            ("23 22 0:22 / /run rw - ext4 /dev/vdb rw", Status.WARNING),
        ],
    )
    def test_run(self, guest: Guest, line: str, status: Status) -> None:
        guest.write("proc/self/mountinfo", f"22 1 0:21 / / rw - ext4 /dev/vda rw\n{line}\n")
        assert guest.see("run-in-memory").status is status

    def test_a_mount_over_a_mount(self, guest: Guest) -> None:
        lines = ("23 22 0:22 / /run rw - tmpfs tmpfs rw", "24 23 8:1 / /run rw - ext4 /dev/vdb rw")
        guest.write("proc/self/mountinfo", "\n".join(lines))
        assert guest.see("run-in-memory").status is Status.WARNING

    def test_nothing_mounted(self, guest: Guest) -> None:
        guest.remove("proc/self/mountinfo")
        assert guest.see("run-in-memory").status is Status.UNKNOWN

    @pytest.mark.parametrize(
        ("place", "files", "status"),
        [
            ("/dev/vda2", {}, Status.WARNING),
            ("/swapfile", {}, Status.WARNING),
            ("/dev/dm-1", {"dm-1/dm/uuid": "CRYPT-PLAIN-swap\n"}, Status.OK),
            ("/dev/dm-1", {"dm-1/dm/uuid": "LVM-x\n"}, Status.WARNING),
            ("/dev/zram0", {}, Status.OK),
            ("/dev/zram0", {"zram0/backing_dev": "none\n"}, Status.OK),
            ("/dev/zram0", {"zram0/backing_dev": "/dev/vdc\n"}, Status.WARNING),
        ],
    )
    def test_swap(self, guest: Guest, place: str, files: dict[str, str], status: Status) -> None:
        guest.write("proc/swaps", f"Filename\tType\tSize\tUsed\tPriority\n{place}\tpartition\t8\t0\t-2\n")
        for path, text in files.items():
            guest.write(f"sys/class/block/{path}", text)
        assert guest.see("swap").status is status

    @pytest.mark.parametrize("pattern", ["core", "/run/core.%p", "", "|/usr/lib/systemd/systemd-coredump %P"])
    def test_core_dumps(self, guest: Guest, pattern: str) -> None:
        guest.write("proc/sys/kernel/core_pattern", pattern)
        assert guest.see("core-dumps").status is Status.WARNING


class TestServerName:
    def ask(self, guest: Guest) -> dict[str, Finding]:
        guest.config = GuestConfig(server="https://kms.example:8443")
        return guest.examine()

    def test_a_name_that_nobody_knows(self, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
        def nobody(*_: object, **__: object) -> NoReturn:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr("kms.guest.doctor.network.getaddrinfo", nobody)
        found = self.ask(guest)
        assert found["server-name"].failed
        assert found["server-name"].detail == "kms.example: Name or service not known"
        assert all(found[step].status is Status.UNKNOWN for step in STEPS[1:])

    def test_a_name_server_that_does_not_answer(self, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
        ended = threading.Event()
        monkeypatch.setattr("kms.guest.doctor.network.getaddrinfo", lambda *_, **__: ended.wait(30))
        guest.within = 0.05
        found = self.ask(guest)
        ended.set()
        assert "no answer within 0.05 s" in found["server-name"].detail


class TestClock:
    def test_before_the_software_was_made(self, guest: Guest, tmp_path: Path) -> None:
        package = tmp_path / "package"
        package.touch()
        os.utime(package, (2_000_000_000, 2_000_000_000))
        assert clock(replace(guest.system, now=lambda: 1_999_999_999.0), package=package).failed
        assert clock(replace(guest.system, now=lambda: 2_000_000_001.0), package=package).status is Status.OK

    def test_before_the_image_was_made(self, guest: Guest) -> None:
        epoch = guest.write("usr/lib/clock-epoch", "")
        os.utime(epoch, (4_000_000_000, 4_000_000_000))
        found = guest.see("clock")
        assert found.failed
        assert "2096" in found.detail


class TestWhatCannotBeLookedAt:
    def test_a_folder_in_the_place_of_a_file_hides_nothing_else(self, guest: Guest) -> None:
        for path in ("proc/swaps", "proc/cmdline", "proc/modules"):
            guest.remove(path)
            (guest.root / path).mkdir()
        found = guest.examine()
        for name in ("swap", "kernel-command-line", "sev-guest-module"):
            assert found[name].status is Status.UNKNOWN
        assert found["core-dumps"].status is found["evidence"].status is Status.OK

    def test_hardware_that_fails_in_a_new_way(self, guest: Guest) -> None:
        class Odd:
            def evidence(self, report_data: bytes) -> dict[str, JsonValue]:
                raise ZeroDivisionError

        guest.machine = Odd()
        found = guest.examine()
        assert found["evidence"].status is Status.UNKNOWN
        assert found["clock"].status is Status.OK

    def test_a_way_to_the_server_that_ends_in_a_new_way(
        self, guest: Guest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fall(*_: object, **__: object) -> NoReturn:
            raise ZeroDivisionError

        monkeypatch.setattr("kms.guest.doctor.examination.way_to_server", fall)
        guest.config = GuestConfig(server="https://kms")
        found = guest.examine()
        assert found["server"].status is Status.UNKNOWN
        assert found["cryptsetup"].status is Status.OK

    @pytest.mark.parametrize("server", ["http://kms", "https://", "nonsense"])
    def test_an_address_that_is_none(self, guest: Guest, server: str) -> None:
        guest.config = GuestConfig(server=server)
        found = guest.see("server")
        assert found.failed
        assert "https://HOST:PORT" in found.remedy

    def test_a_ca_file_that_cannot_be_used(self, guest: Guest) -> None:
        guest.config = GuestConfig(server="https://kms", ca=guest.write("ca.pem", "no"))
        found = guest.see("server")
        assert found.failed
        assert "ca.pem" in found.detail


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Run:
    def run_it(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run(["guest", "doctor", *argv])
        out, err = capsys.readouterr()
        return status, out, err

    return run_it


class TestCommand:
    def test_without_a_server_only_this_machine_is_looked_at(self, command: Run) -> None:
        _, out, _ = command("--json")
        checks = {each["name"]: each for each in json.loads(out)["checks"]}
        assert checks["configuration"]["status"] == checks["server"]["status"] == "unknown"
        assert "sev-snp" in checks
        assert not checks.keys() & set(STEPS)

    def test_a_machine_that_is_no_guest(self, command: Run, tmp_path: Path) -> None:
        nothing = str(tmp_path / "nothing")
        status, out, err = command("--tsm", nothing, "--device", nothing)
        assert status == 1
        assert not err
        assert "failed   evidence" in out
        assert "→" in out
        assert "checks failed" in out.splitlines()[-1]

    def test_a_configuration_that_cannot_be_read(self, command: Run, tmp_path: Path) -> None:
        file = tmp_path / "guest.toml"
        file.write_text("servr = 'https://kms'\n")
        status, out, _ = command("--json", "--config", str(file))
        answer = json.loads(out)
        [configured, *_] = answer["checks"]
        assert status == 1
        assert answer["healthy"] is False
        assert configured["name"] == "configuration"
        assert configured["status"] == "failed"
        assert "server" in configured["detail"] + configured["remedy"]

    def test_options_that_make_no_sense(self, command: Run) -> None:
        assert command("--server", "https://kms")[0] == 2
        assert command("--privlevel", "4")[0] == 2
