"""The kernel: its version, what it was built with, which modules it has, and how it was started."""

import gzip
import io
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final, NamedTuple, Self

from kms.findings import Finding, failed, ok, unknown, warning
from kms.guest.doctor.finding import missing
from kms.guest.doctor.system import System

_MOST: Final = 4 << 20  # bytes of a configuration; Debian's has 300 KB
_TSM: Final = (6, 7)  # Documentation/ABI/testing/configfs-tsm
_DEVICE: Final = (5, 19)  # the sev-guest driver, Documentation/virt/coco/sev-guest.rst


class Part(NamedTuple):
    """A part of the kernel: the finding's name, its option, and its module under each name that it had.

    `loads_itself`: the kernel asks for the module when it is used.
    """

    name: str
    option: str
    modules: tuple[str, ...]
    loads_itself: bool = False


MEMORY_ENCRYPTION: Final = Part("memory-encryption", "CONFIG_AMD_MEM_ENCRYPT", ())
SEV_GUEST: Final = Part("sev-guest-module", "CONFIG_SEV_GUEST", ("sev_guest",))
# The module was drivers/virt/coco/tsm.c and is drivers/virt/coco/guest/report.c; the option kept its name.
# CONFIG_TSM_GUEST, of newer kernels, stands for that folder and is selected by it: nothing more to look for.
TSM_REPORTS: Final = Part("tsm-module", "CONFIG_TSM_REPORTS", ("tsm_report", "tsm"))
CONFIGFS: Final = Part("configfs-module", "CONFIG_CONFIGFS_FS", ("configfs",))
DM_CRYPT: Final = Part("dm-crypt-module", "CONFIG_DM_CRYPT", ("dm_crypt",), loads_itself=True)


def architecture(system: System) -> Finding:
    """Say whether this can be an SEV-SNP guest at all."""
    name, seen = "architecture", system.architecture
    if seen == "x86_64":
        return ok(name, seen)
    return failed(name, f"{seen}: SEV-SNP is of x86_64 alone", "run the guest on an AMD EPYC host")


def version(system: System) -> Finding:
    """Say which interfaces to the hardware a kernel of this version can have."""
    name, seen = "kernel-version", system.release
    numbers = seen.split("-")[0].split(".")[:2]
    if len(numbers) != 2 or not all(each.isascii() and each.isdigit() for each in numbers):
        return unknown(name, f"{seen} is not a version that can be read")
    found = (int(numbers[0]), int(numbers[1]))
    if found >= _TSM:
        return ok(name, f"{seen}: configfs-tsm since 6.7")
    if found >= _DEVICE:
        remedy = "a kernel from 6.7 on; until then the evidence comes from /dev/sev-guest"
        return warning(name, f"{seen} is older than configfs-tsm", remedy)
    return failed(name, f"{seen} has no driver of SEV-SNP guests", "a kernel from 6.7 on")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """What a kernel was built with. `options` is None where its configuration is nowhere to be read.

    Modules have `_` where their files may have `-`. `listed`: the image has a list of modules for it.
    """

    options: Mapping[str, str] | None
    loaded: frozenset[str]
    built_in: frozenset[str]
    loadable: frozenset[str]
    listed: bool

    @classmethod
    def of(cls, system: System) -> Self:
        """Read what is there. Raises `OSError`."""
        folder = f"/lib/modules/{system.release}"
        built_in, loadable = (system.text(f"{folder}/modules.{kind}") for kind in ("builtin", "dep"))
        loaded = (system.text("/proc/modules") or "").splitlines()
        return cls(
            options=_options(system),
            loaded=frozenset(line.split(" ", 1)[0] for line in loaded),
            built_in=_modules(built_in),
            loadable=_modules(loadable),
            listed=loadable is not None,
        )

    def has(self, part: Part, *, needed: bool) -> Finding:
        """Say whether a part is there, built in or as a module; `needed`: without it no key comes."""
        name, modules = part.name, frozenset(part.modules)
        chosen = None if self.options is None else self.options.get(part.option, "n")
        if modules & self.loaded:
            return ok(name, "its module is loaded")
        if chosen == "y" or modules & self.built_in:
            return ok(name, "it is built into the kernel")
        if chosen == "n":
            detail = f"{part.option} is not set: this kernel has no such part"
            return missing(name, detail, f"a kernel with {part.option}", needed=needed)
        if shipped := next((each for each in part.modules if each in self.loadable), None):
            module = shipped.replace("_", "-")
            if part.loads_itself:
                return ok(name, f"the module {module} is there, and is loaded when it is used")
            return missing(
                name,
                f"the module {module} is there and not loaded",
                f"modprobe {module}; for every boot, name it in /etc/modules-load.d or in the initrd",
                needed=needed,
            )
        if part.modules and (self.listed or chosen == "m"):
            detail = f"this image has no module {part.modules[0].replace('_', '-')}"
            remedy = "put the modules of this very kernel into the image, or the initrd"
            return missing(name, detail, remedy, needed=needed)
        return unknown(name, f"neither {part.option} of the kernel nor its modules can be read")


def _options(system: System) -> Mapping[str, str] | None:
    text = _unpack(system.bytes("/proc/config.gz") or b"")
    for path in (f"/boot/config-{system.release}", f"/lib/modules/{system.release}/config"):
        text = text or system.text(path) or ""
    settings = (line.partition("=") for line in text.splitlines() if line.startswith("CONFIG_"))
    return {option: value for option, _, value in settings} or None


def _unpack(packed: bytes) -> str:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            return file.read(_MOST).decode("ascii", "replace")
    except (OSError, EOFError, zlib.error):
        return ""


def _modules(listing: str | None) -> frozenset[str]:
    """Read ``modules.builtin``, or the first of each line of ``modules.dep``: modprobe(8), depmod(8)."""
    paths = (PurePath(line.split(":", 1)[0]) for line in (listing or "").splitlines())
    return frozenset(path.name.split(".", 1)[0].replace("-", "_") for path in paths)


# kernel-command-line(7), systemd-debug-generator(8), dracut.cmdline(7), initramfs-tools(7).
_ALONE: Final = frozenset(
    {"emergency", "rescue", "rd.emergency", "rd.rescue", "single", "s", "S", "1", "-b", "break"}
)
_SWITCHES: Final = frozenset(
    {
        "rd.shell",
        "rd.break",
        "systemd.debug_shell",
        "rd.systemd.debug_shell",
        "systemd.crash_shell",
        "systemd.break",
        "rd.systemd.break",
    }
)
_UNITS: Final = frozenset({"systemd.unit", "rd.systemd.unit", "systemd.wants", "rd.systemd.wants"})
_OFF: Final = frozenset({"0", "no", "n", "false", "f", "off"})
_SHELLS: Final = frozenset({"sh", "ash", "bash", "busybox", "dash", "zsh"})


def command_line(system: System) -> Finding:
    """Look for what gives somebody at the console a shell: the console is the host's."""
    name, text = "kernel-command-line", system.text("/proc/cmdline")
    if text is None:
        return unknown(name, "there is no /proc/cmdline", "mount -t proc proc /proc")
    if found := [word for word in text.split() if _opens_a_shell(word)]:
        return warning(
            name,
            f"it gives whoever has the console, which is the host, a shell: {' '.join(found)}",
            "take it out of the measured command line: from a shell every key can be read",
        )
    return ok(name, "nothing in it opens a shell")


def _opens_a_shell(word: str) -> bool:
    option, equals, value = word.partition("=")
    plain = option.replace("-", "_")  # systemd takes either
    if option in {"init", "rdinit"}:
        return PurePath(value).name in _SHELLS
    if option == "break" or (word in _ALONE and not equals):
        return True
    if plain in _UNITS:
        return value.startswith(("emergency.", "rescue.", "debug-shell."))
    if plain == "systemd.setenv":
        return value.startswith("SYSTEMD_SULOGIN_FORCE=")
    return plain in _SWITCHES and value not in _OFF
