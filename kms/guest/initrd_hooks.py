"""Installing the hooks: which file of ours goes where for initramfs-tools(7), dracut(8) and systemd."""

import os
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from kms.errors import ConfigurationError

_HOOKS: Final = Path(__file__).parent / "hooks"
_PROGRAM: Final = 0o755
_DATA: Final = 0o644
# In the units it stands as the guides install it: systemd and the tests can read them as they are.
_COMMAND: Final = re.compile("@KMS@|/opt/attested-kms/bin/kms")
_PLAIN: Final = re.compile(r"/[A-Za-z0-9/._+@-]+")  # what neither a shell nor systemd reads otherwise


class Tool(StrEnum):
    """What makes initrds; and systemd, which starts the agent and the sidecar after the initrd."""

    INITRAMFS_TOOLS = "initramfs-tools"
    DRACUT = "dracut"
    SYSTEMD = "systemd"


@dataclass(frozen=True, slots=True)
class _Hook:
    source: str
    target: str
    mode: int


_AGENT: Final = ("attested-kms-agent.socket", "attested-kms-agent.service")
_SIDECAR: Final = ("attested-kms-keys.socket", "attested-kms-keys.service")
_DRACUT_MODULE: Final = "usr/lib/dracut/modules.d/90attested-kms"
_TARGETS: Final = {
    Tool.INITRAMFS_TOOLS: (
        _Hook("initramfs-tools/hook", "etc/initramfs-tools/hooks/attested-kms", _PROGRAM),
        _Hook("initramfs-tools/local-top", "etc/initramfs-tools/scripts/local-top/attested-kms", _PROGRAM),
    ),
    Tool.DRACUT: (
        _Hook("dracut/module-setup.sh", f"{_DRACUT_MODULE}/module-setup.sh", _PROGRAM),
        _Hook("dracut/modules.conf", f"{_DRACUT_MODULE}/attested-kms-modules.conf", _DATA),
        _Hook("dracut/console.conf", f"{_DRACUT_MODULE}/attested-kms-console.conf", _DATA),
        *(_Hook(f"systemd/{unit}", f"{_DRACUT_MODULE}/{unit}", _DATA) for unit in _AGENT),
    ),
    Tool.SYSTEMD: tuple(
        _Hook(f"systemd/{unit}", f"etc/systemd/system/{unit}", _DATA) for unit in (*_AGENT, *_SIDECAR)
    ),
}
_PROGRAMS: Final = {Tool.INITRAMFS_TOOLS: "usr/sbin/mkinitramfs", Tool.DRACUT: "usr/bin/dracut"}


def installed_tools(root: Path) -> tuple[Tool, ...]:
    """Tell which of the tools that make initrds the system below `root` has."""
    return tuple(tool for tool, program in _PROGRAMS.items() if os.path.lexists(root / program))


def install_hooks(tool: Tool, root: Path, kms: Path) -> tuple[Path, ...]:
    """Write a tool's hooks below `root`, or replace them, and give their paths.

    `kms` is the command that they run, as it is called inside that root.

    Raises:
        ConfigurationError: they cannot be written, or cannot name such a command.

    """
    if _PLAIN.fullmatch(str(kms)) is None:
        raise ConfigurationError(
            f"a hook cannot name {kms}", remedy="install kms in a folder with a plain name"
        )
    written = []
    for hook in _TARGETS[tool]:
        target = root / hook.target
        text = _COMMAND.sub(str(kms), (_HOOKS / hook.source).read_text("utf-8"))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, "utf-8")
            target.chmod(hook.mode)
        except OSError as error:
            raise ConfigurationError(
                f"{error.filename or target}: {error.strerror}", remedy="installing hooks takes root"
            ) from error
        written.append(target)
    return tuple(written)
