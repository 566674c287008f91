"""Keys for systemd over its AF_UNIX key protocol: connect, and read until the end.

Which key is in the name that systemd binds its end to (an abstract one, so it begins with NUL):

- ``RANDOM/cryptsetup/VOLUME``: crypttab(5), "AF_UNIX key files"; systemd, src/cryptsetup/cryptsetup.c,
  `make_bindname`. RANDOM is up to 16 hexadecimal digits.
- ``RANDOM/unit/UNIT/ID``: systemd.exec(5), `LoadCredential=`; src/core/exec-credential.c.

The peer chooses that name, so it says what is wanted and proves nothing. What is proof is the uid that the
kernel gives: root's alone. Whoever is refused, or cannot be served, reads an end without a byte.

The header that is judged here is read again by systemd-cryptsetup, and a host may change it in between:
`kms guest unlock` opens with what it judged.
"""

import asyncio
import logging
import re
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final

from kms.errors import KmsError
from kms.guest.config import ServedKey, VolumeConfig
from kms.guest.key_values import value_of
from kms.guest.local_service import send_all
from kms.guest.luks.volume import passphrase
from kms.guest.machine import Fetch
from kms.guest.threads import in_thread
from kms.guest.unix_sockets import Peer, peer_name
from kms.keys.names import KeyRequest, Scope
from kms.keys.wiping import wipe

AT_MOST: Final = 16  # connections; systemd opens one for each volume or credential
_SENT_WITHIN: Final = 10.0  # seconds
# Visible ASCII but the slash.
_VOLUME: Final = re.compile(rb"[0-9a-f]{1,16}/cryptsetup/([!-.0-~]+)")
_CREDENTIAL: Final = re.compile(rb"[0-9a-f]{1,16}/unit/[!-.0-~]+/([!-.0-~]+)")
_log: Final = logging.getLogger(__name__)

# Judges the header on a volume's device, and gives the epochs that it names for the volume's key.
EpochsOf = Callable[[VolumeConfig], Collection[int]]


class AgentRefused(KmsError):
    """Nothing is given to this peer, or under this name.

    Reasons: ``peer-not-root``, ``name-unknown``, ``volume-not-configured``, ``credential-not-configured``,
    ``epoch-impossible``.
    """

    code = "agent-refused"


class KeyAgent:
    """Gives systemd the keys of the volumes and credentials that the configuration names.

    `fetch` and `epochs_of` block, and run in a thread for each connection.
    """

    def __init__(
        self,
        volumes: Mapping[str, VolumeConfig],
        served: Sequence[ServedKey],
        *,
        fetch: Fetch,
        epochs_of: EpochsOf,
    ) -> None:
        self._volumes = volumes
        # A name that the configuration gives goes before one that a key has by itself.
        given = sorted(served, key=lambda each: each.credential is not None)
        self._credentials = {credential_of(each): KeyRequest(each.key, each.scope) for each in given}
        self._fetch = fetch
        self._epochs_of = epochs_of

    async def answer(self, connection: socket.socket, peer: Peer) -> None:
        """Write the key that the peer's name asks for, or nothing."""
        name = peer_name(connection)
        shown = ascii((name or b"").decode("ascii", "backslashreplace"))
        try:
            if peer.uid != 0:
                raise AgentRefused(f"uid {peer.uid} is not root", reason="peer-not-root")
            wanted = self._wanted(name)
            asking = in_thread(lambda: self._secret(wanted), name="key", daemon=False)
            secret = await asyncio.wrap_future(asking)
        except KmsError as error:
            # One line, whatever a server or a disk wrote into the detail.
            _log.warning("no key for %s (pid %d): %s: %s", shown, peer.pid, error.reason, ascii(error.detail))
            return
        try:
            await send_all(connection, secret, within=_SENT_WITHIN)
        finally:
            wipe(secret)
        _log.info("key given for %s (pid %d)", shown, peer.pid)

    def _wanted(self, name: bytes | None) -> VolumeConfig | KeyRequest:
        """Give the volume or the credential that a name means."""
        if name is not None and (match := _VOLUME.fullmatch(name)) is not None:
            volume = self._volumes.get(match[1].decode("ascii"))
            if volume is None:
                raise AgentRefused("no such volume is configured", reason="volume-not-configured")
            return volume
        if name is not None and (match := _CREDENTIAL.fullmatch(name)) is not None:
            credential = self._credentials.get(match[1].decode("ascii"))
            if credential is None:
                raise AgentRefused("no such credential is configured", reason="credential-not-configured")
            return credential
        raise AgentRefused("not the name of a volume or credential as systemd has it", reason="name-unknown")

    def _secret(self, wanted: VolumeConfig | KeyRequest) -> bytearray:
        if isinstance(wanted, VolumeConfig):
            return bytearray(passphrase(self._fetch([self._key_of(wanted)]).keys[0]))
        return bytearray(value_of(self._fetch([wanted]).keys[0]))

    def _key_of(self, volume: VolumeConfig) -> KeyRequest:
        """Judge the header on the volume's device, and give the key of the newest epoch that it names."""
        epoch = max(self._epochs_of(volume), default=None)
        try:
            return replace(volume.key, epoch=epoch)
        except ValueError as error:
            raise AgentRefused(f"the header's epoch: {error}", reason="epoch-impossible") from error


def credential_of(served: ServedKey) -> str:
    """Give the credential's name: its own, or the key's as ``NAME[@SCOPE]``."""
    if served.credential is not None:
        return served.credential
    scope = "" if served.scope is Scope.APP else f"@{served.scope.value}"
    return f"{served.key}{scope}"
