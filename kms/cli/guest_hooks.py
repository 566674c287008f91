"""``kms guest hooks``: put the guest side into an initrd, with the tools that make one."""

import argparse
from pathlib import Path

from kms.cli.output import OK, Unreadable, WrongUse, print_json
from kms.cli.parsers import Group

_MIB = 1 << 20


def add_hooks(group: Group) -> None:
    """Add ``kms guest hooks``."""
    hooks = Group("kms guest hooks", "Put the guest side into an initrd: it unlocks disks, or powers off.")
    _add_install(hooks)
    _add_files(hooks)
    _add_copy(hooks)
    group.adopt("hooks", hooks.parser, summary="put the guest side into an initrd")


def _add_install(group: Group) -> None:
    command = group.add(
        "install",
        summary="install the hooks of the tools that make initrds, and systemd's units",
        description="Install hooks that put the guest side, and /etc/attested-kms, into every initrd that is"
        " made from then on: for initramfs-tools a script that unlocks the volumes of guest.toml before the"
        " root is mounted, and powers off when it cannot; for dracut the agent that crypttab asks. Make the"
        " initrd anew afterwards: `update-initramfs -u`, or `dracut --force`. --systemd installs the units"
        " that keep the agent's and the sidecar's sockets in the running system, and enables none.",
        example="kms guest hooks install --initramfs-tools",
    )
    add = command.add_argument
    add("--initramfs-tools", action="store_true", help="for Debian's tool (default: whichever is installed)")
    add("--dracut", action="store_true", help="for dracut (default: whichever is installed)")
    add("--systemd", action="store_true", help="units of `kms guest agent` and `kms guest serve`")
    add("--root", metavar="DIR", type=Path, default=Path("/"), help="the system to install into (default /)")
    command.set_defaults(run=_install)


def _add_files(group: Group) -> None:
    command = group.add(
        "files",
        summary="list the files that go into an initrd",
        description="List, one path a line, what the guest side needs: interpreter, modules, shared"
        " libraries, and /etc/attested-kms. cryptsetup and kernel modules are the hooks' to add.",
        example="kms guest hooks files --sizes",
    )
    command.add_argument(
        "--sizes", action="store_true", help="bytes before each path, and the sum at the end"
    )
    command.set_defaults(run=_files)


def _add_copy(group: Group) -> None:
    command = group.add(
        "copy",
        summary="copy those files into a tree, as the hooks do",
        description="Copy what the guest side needs into a tree that becomes an initrd, and print how much it"
        " was. The same installation gives the same bytes and times; what is there already is kept.",
        example="kms guest hooks copy /tmp/initrd-root",
    )
    command.add_argument("tree", metavar="DIR", type=Path, help="the tree, a folder that exists")
    command.set_defaults(run=_copy)


def _install(arguments: argparse.Namespace) -> int:
    from kms.guest.initrd import kms_command
    from kms.guest.initrd_hooks import Tool, install_hooks, installed_tools

    asked = (
        (Tool.INITRAMFS_TOOLS, arguments.initramfs_tools),
        (Tool.DRACUT, arguments.dracut),
        (Tool.SYSTEMD, arguments.systemd),
    )
    tools = tuple(tool for tool, wanted in asked if wanted) or installed_tools(arguments.root)
    if not tools:
        raise WrongUse(f"neither initramfs-tools nor dracut is installed in {arguments.root}")
    written = {tool: install_hooks(tool, arguments.root, kms_command()) for tool in tools}
    if arguments.json:
        print_json({tool: [str(path) for path in paths] for tool, paths in written.items()})
    else:
        for path in (path for paths in written.values() for path in paths):
            print(path)
    return OK


def _files(arguments: argparse.Namespace) -> int:
    from kms.guest.initrd import guest_files

    sizes = {str(path): path.stat().st_size for path in guest_files()}
    if arguments.json:
        print_json({"files": [{"path": path, "bytes": size} for path, size in sizes.items()]})
        return OK
    for path, size in sizes.items():
        print(f"{size:>10} {path}" if arguments.sizes else path)
    if arguments.sizes:
        print(f"{sum(sizes.values()):>10} in all")
    return OK


def _copy(arguments: argparse.Namespace) -> int:
    from kms.guest.initrd import copy_files, guest_files

    tree: Path = arguments.tree
    if not tree.is_dir():
        raise WrongUse(f"{tree} is not a folder")
    try:
        copied = copy_files(guest_files(), tree)
    except OSError as error:
        raise Unreadable(f"{error.filename or tree}: {error.strerror}") from error
    if arguments.json:
        print_json({"files": copied.files, "bytes": copied.size})
    else:
        print(f"attested-kms: {copied.files} files, {copied.size / _MIB:.1f} MiB before compression")
    return OK
