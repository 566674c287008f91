"""What is tried with the machine, and how each boot must end."""

from dataclasses import dataclass
from typing import Final

# `root` is what the demo's workload waits for; there is no other root file system.
CMDLINE: Final = "console=ttyS0 loglevel=3 panic=-1 ip=dhcp root=/dev/mapper/data"
# What a host would add: a shell in the initrd once the disk is open (initramfs-tools(7)).
SHELL_CMDLINE: Final = CMDLINE + " break=bottom"

SYSTEMD_CMDLINE: Final = CMDLINE + " ro"

WRITTEN: Final = "vm-demo: a secret was written to the volume"
READ: Final = "vm-demo: the secret on the volume is "
# Each ends in a fingerprint of the disk's key.
SENT: Final = "vm-demo: credential from the agent's socket: "
STORED: Final = "vm-demo: credential from /run/credstore: "
KEYRING: Final = "vm-demo: cryptsetup --token-only took the key from the keyring"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A boot, and how it must end.

    `console` must be shown there; without any, nothing at all may be. `released` and `refused` are what the
    server must have recorded meanwhile; with neither, it must not have been asked. `opens`: the disk is
    opened; `writes`: and written to. `systemd`: the image that dracut makes.
    """

    name: str
    title: str
    console: tuple[str, ...]
    opens: bool = False
    writes: bool = False
    released: int = 0
    refused: str | None = None
    cmdline: str = CMDLINE
    measured_cmdline: str = CMDLINE
    other_workload: bool = False
    systemd: bool = False
    impostor: bool = False


SCENES: Final = (
    Scene(
        name="first-boot",
        title="First boot, with a blank disk: it becomes a LUKS2 volume",
        console=(WRITTEN,),
        opens=True,
        writes=True,
        released=1,
    ),
    Scene(
        name="second-boot",
        title="Second boot: the same key, and what is on the disk",
        console=(READ,),
        opens=True,
        writes=True,
        released=1,
    ),
    Scene(
        name="systemd",
        title="The same disk by systemd: crypttab, two credentials, and a key in the kernel's keyring",
        console=(SENT, STORED, KEYRING, READ),
        opens=True,
        released=4,
        cmdline=SYSTEMD_CMDLINE,
        measured_cmdline=SYSTEMD_CMDLINE,
        systemd=True,
    ),
    Scene(
        name="other-command-line",
        title="The host adds `break=bottom`, a shell beside the open disk: another measurement",
        console=("measurement-unknown",),
        refused="measurement-unknown",
        cmdline=SHELL_CMDLINE,
        measured_cmdline=SHELL_CMDLINE,
    ),
    Scene(
        name="unmeasured-command-line",
        title="The same, and the host has the allowed command line measured: the firmware does not start it",
        console=(),
        cmdline=SHELL_CMDLINE,
    ),
    Scene(
        name="other-workload",
        title="The right app document, another workload: the guest refuses itself",
        console=("is another workload than this machine was launched for",),
        other_workload=True,
    ),
    Scene(
        name="impostor",
        title="Another KMS at the same address, with the same TLS certificate, that releases gladly",
        console=("signed by another KMS than the pinned one",),
        released=1,
        impostor=True,
    ),
)
