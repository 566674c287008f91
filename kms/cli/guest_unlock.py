"""``kms guest unlock`` and ``kms guest rekey``: disks."""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kms.cli.asking import telling_refusals
from kms.cli.guest_machine import add_machine_options, fetch_with, guest_config
from kms.cli.output import OK, WrongUse, print_json
from kms.cli.parsers import Group

if TYPE_CHECKING:
    from kms.guest.config import GuestConfig, VolumeConfig
    from kms.guest.luks.volume import Unlocked
    from kms.keys.names import KeyRequest

_COMMAND = "kms guest"


def add_unlock(group: Group) -> None:
    """Add ``kms guest unlock`` and ``kms guest rekey``."""
    _add_unlock(group)
    _add_rekey(group)


def _add_unlock(group: Group) -> None:
    command = group.add(
        "unlock",
        summary="open encrypted disks",
        description="Open a LUKS2 volume with the key that the KMS releases to this machine. Its header is"
        " read once and judged before anything is asked, and the volume is opened from what was read: the"
        " host owns the disk. A volume that is open already is left as it is. After a rotation the volume is"
        " moved to the key of the newer epoch; if that fails, it stays open. Exit status: 0 open, 1 refused"
        " by the server, by the check of its answer, or because of what is on the disk; 2 wrong use, no"
        " evidence, no server, or cryptsetup failed.",
        example="kms guest unlock --config guest.toml /dev/vdb data",
    )
    add = command.add_argument
    add("disk", metavar="DEVICE", nargs="?", type=Path, help="the block device that holds the volume")
    add("name", metavar="NAME", nargs="?", help="what it is called once it is open: /dev/mapper/NAME")
    add("--all", action="store_true", help="all volumes of the configuration, up to the first that fails")
    _add_key(command)
    add(
        "--format-blank",
        action="store_true",
        help="make the volume if the first and the last MiB of the device are zero. The host can present an"
        " empty disk at any time: that it was empty proves nothing",
    )
    add("--no-rotate", action="store_true", help="leave the key slots as they are")
    add_machine_options(command)
    command.set_defaults(run=telling_refusals(_COMMAND, _unlock))


def _add_rekey(group: Group) -> None:
    command = group.add(
        "rekey",
        summary="move a disk to the key of the app's current epoch",
        description="Move a LUKS2 volume to the key of the app's current epoch: add its key slot, then"
        " remove the older one. It may be open meanwhile. After a power cut at any moment the old key opens"
        " the volume, or the new one does. Exit status as with unlock.",
        example="kms guest rekey --config guest.toml /dev/vdb",
    )
    command.add_argument("disk", metavar="DEVICE", type=Path, help="the block device that holds the volume")
    _add_key(command)
    add_machine_options(command)
    command.set_defaults(run=telling_refusals(_COMMAND, _rekey))


def _add_key(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--key",
        metavar="NAME[@SCOPE][#EPOCH]",
        help="disk (default), custom:PATH, dstack:disk@instance; an epoch only where the header names none",
    )


def _unlock(arguments: argparse.Namespace) -> int:
    from kms.guest.luks.cryptsetup import Cryptsetup
    from kms.guest.luks.volume import unlock_volume
    from kms.guest.machine import GuestMachine

    config = guest_config(arguments)
    volumes, machine = _volumes(arguments, config), GuestMachine(config)
    done = []
    for volume in volumes:
        unlocked = unlock_volume(
            volume,
            fetch=partial(fetch_with, machine),
            newest_epoch=machine.newest_epoch,
            cryptsetup=Cryptsetup(),
        )
        done.append(unlocked)
        if not arguments.json:
            _say(unlocked)
    if arguments.json:
        print_json({"volumes": [_document(unlocked) for unlocked in done]})
    return OK


def _rekey(arguments: argparse.Namespace) -> int:
    from kms.guest.luks.cryptsetup import Cryptsetup
    from kms.guest.luks.volume import rekey_volume
    from kms.guest.machine import GuestMachine

    machine = GuestMachine(guest_config(arguments))
    done = rekey_volume(
        arguments.disk,
        _key(arguments),
        fetch=partial(fetch_with, machine),
        cryptsetup=Cryptsetup(),
    )
    if arguments.json:
        print_json({"device": str(done.device), "epoch": done.epoch, "rekeyed_from": done.rekeyed_from})
    elif done.rekeyed_from is None:
        sys.stdout.write(f"{done.device}: its key is of the current epoch, {done.epoch}\n")
    else:
        sys.stdout.write(f"{done.device}: moved from epoch {done.rekeyed_from} to {done.epoch}\n")
    return OK


def _volumes(arguments: argparse.Namespace, config: "GuestConfig") -> "list[VolumeConfig]":
    """Give the volumes that the command line names, or all of the configuration."""
    from dataclasses import replace

    from kms.guest.config import VolumeConfig, volume_name

    if not arguments.all:
        if arguments.name is None:
            raise WrongUse("name a DEVICE and a NAME, or say --all")
        try:
            name = volume_name(arguments.name)
        except ValueError as error:
            raise WrongUse(f"NAME: {error}") from None
        volume = VolumeConfig(
            name=name,
            device=arguments.disk,
            key=_key(arguments),
            format_blank=arguments.format_blank,
            rotate=not arguments.no_rotate,
        )
        return [volume]
    if arguments.disk is not None or arguments.key is not None or arguments.format_blank:
        raise WrongUse("--all takes devices, keys and whether to format from the configuration")
    if not config.volumes:
        raise WrongUse("the configuration names no volumes: [volumes.NAME]")
    return [replace(each, rotate=each.rotate and not arguments.no_rotate) for each in config.volumes.values()]


def _key(arguments: argparse.Namespace) -> "KeyRequest":
    from kms.guest.config import DEFAULT_VOLUME_KEY
    from kms.guest.key_words import parse_key
    from kms.keys.names import Algorithm

    try:
        key = parse_key(arguments.key or DEFAULT_VOLUME_KEY)
    except ValueError as error:
        raise WrongUse(f"--key: {error}") from None
    if key.name.algorithm is not Algorithm.SYMMETRIC_256:
        raise WrongUse("--key: a disk takes a symmetric key: disk, custom:PATH or dstack:disk")
    return key


def _say(unlocked: "Unlocked") -> None:
    said = [f"epoch {unlocked.epoch}"] if unlocked.epoch is not None else []
    if unlocked.already_open:
        said.append("was open already")
    if unlocked.formatted:
        said.append("made on a blank disk")
    if unlocked.rekeyed_from is not None:
        said.append(f"moved from epoch {unlocked.rekeyed_from}")
    about = f" ({', '.join(said)})" if said else ""
    sys.stdout.write(f"{unlocked.device} is open as /dev/mapper/{unlocked.name}{about}\n")
    if unlocked.warning is not None:
        sys.stderr.write(
            f"{_COMMAND}: {unlocked.name} is open; its key slots are not up to date: {unlocked.warning}\n"
        )


def _document(unlocked: "Unlocked") -> dict[str, Any]:
    return {
        "name": unlocked.name,
        "device": str(unlocked.device),
        "epoch": unlocked.epoch,
        "formatted": unlocked.formatted,
        "already_open": unlocked.already_open,
        "rekeyed_from": unlocked.rekeyed_from,
        "warning": unlocked.warning,
    }
