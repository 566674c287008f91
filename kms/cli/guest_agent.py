"""``kms guest agent``: keys for systemd, by its AF_UNIX key protocol."""

import argparse
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from kms.cli.asking import telling_refusals
from kms.cli.guest_local import ERRORS_AS_JSON, add_socket_options, serve_locally
from kms.cli.guest_machine import add_machine_options, guest_config
from kms.cli.output import OK
from kms.cli.parsers import Group

if TYPE_CHECKING:
    from kms.guest.config import VolumeConfig

_ROOT_ONLY: Final = 0o600


def add_agent(group: Group) -> None:
    """Add ``kms guest agent``."""
    command = group.add(
        "agent",
        summary="give systemd the keys of volumes and credentials",
        description="Listen on a Unix socket that a line of /etc/crypttab, or LoadCredential= of a unit,"
        " names as its key file: systemd connects, and says with its own end's name which volume or"
        " credential it wants. Given are the keys of [volumes] and [[serve.allow]] in the configuration, to"
        " root alone. The header on a volume's device is judged first, and names the epoch. Whoever is"
        " refused reads nothing, and the log says why. Exit status: 0 told to end, or idle, 2 wrong use.",
        as_json=ERRORS_AS_JSON,
        example="kms guest agent --listen /run/attested-kms/agent.sock",
    )
    add_socket_options(command)
    add_machine_options(command)
    command.set_defaults(run=telling_refusals("kms guest", _agent))


def _agent(arguments: argparse.Namespace) -> int:
    from kms.errors import ConfigurationError
    from kms.guest.agent import AT_MOST, KeyAgent
    from kms.guest.machine import GuestMachine

    config = guest_config(arguments)
    if not config.volumes and not config.served:
        raise ConfigurationError(
            "there is nothing to give",
            remedy="name volumes as [volumes.NAME], credentials as [[serve.allow]]",
        )
    machine = GuestMachine(config)
    agent = KeyAgent(config.volumes, config.served, fetch=machine.fetch, epochs_of=_epochs_of)
    serve_locally(arguments, agent.answer, at_most=AT_MOST, mode=_ROOT_ONLY)
    return OK


def _epochs_of(volume: "VolumeConfig") -> Collection[int]:
    from kms.guest.key_words import key_text
    from kms.guest.luks import read_header

    return read_header(volume.device).slots_of(key_text(volume.key)).values()
