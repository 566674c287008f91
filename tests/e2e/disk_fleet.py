"""Guests of two apps that keep their data on encrypted disks, and the server that has their keys."""

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from kms.cli.demo_scene import COMPOSE_HASH
from kms.encoding import b64url
from kms.evidence.app_document import host_data_of
from kms.guest.client import KeyClient
from kms.identifiers import AppId
from kms.keys.envelope import Payload
from kms.keys.names import KeyName, KeyRequest, Scope
from kms.keys.sealing import Suite
from kms.measurement.images import Binding
from tests.conformance.own_server import Server
from tests.e2e.disks import Disk
from tests.e2e.rack import Guest, Rack
from tests.e2e.wire import Notebook
from tests.servers.ports import free_port

LEDGER = AppId.from_hex("1ed9e2" + "0b" * 17)
DATA = 128 << 10  # bytes on each disk
_DISK = KeyName.parse("disk")
_LONGEST_SLEEP = 0.3  # seconds: less than guests are told, to be done in a test's time


class PinnedApp:
    """A second app in a policy folder, which can be pinned to an epoch."""

    def __init__(self, policies: Path) -> None:
        self._file = policies / "ledger.yaml"
        first = yaml.safe_load((policies / "app.yaml").read_text())
        taken = ("kind", "compose", "images", "chips", "tcb", "guest", "binding")
        own = {"id": LEDGER.hex(), "name": "ledger", "keys": ["disk", "disk@instance", "disk@chip"]}
        self._document = {name: first[name] for name in taken} | own

    def pin(self, epoch: int | None) -> None:
        pinned = {} if epoch is None else {"epoch": epoch}
        self._file.write_text(yaml.safe_dump(self._document | pinned))


@dataclass(frozen=True, kw_only=True)
class Kms:
    """What a guest's image holds: where the KMS is, and who it was when the image was made.

    What it answers goes through the notebook.
    """

    url: str
    ca: Path
    identity: bytes
    notebook: Notebook


@dataclass(frozen=True, slots=True)
class Seen:
    """A guest as the record tells it from others."""

    app_id: str
    instance_id: str
    chip_id: str


class DiskGuest:
    """A guest with a disk, and what it wrote there."""

    def __init__(self, guest: Guest, scope: Scope, kms: Kms, file: Path) -> None:
        self._guest = guest
        self._scope = scope
        self.kms = kms
        self.disk = Disk(file)
        self.data = secrets.token_bytes(DATA)

    @property
    def app_id(self) -> AppId:
        return AppId.from_hex(json.loads(self._guest.document)["app_id"])

    @property
    def seen(self) -> Seen:
        guest = self._guest
        return Seen(self.app_id.hex(), guest.instance_id.hex(), guest.chip_id.hex())

    def fetch(self, *epochs: int | None, pin: bytes | None = None) -> Payload:
        """Fetch its disk key, of all these epochs in one request; None is whatever new disks get."""
        client = KeyClient(
            self.kms.url,
            ca_file=self.kms.ca,
            identity=pin or self.kms.identity,
            source=self._guest,
            suite=Suite.X25519_SEALEDBOX,
            transport=self.kms.notebook,
            sleep=lambda seconds: time.sleep(min(seconds, _LONGEST_SLEEP)),
        )
        wanted = [KeyRequest(_DISK, self._scope, epoch) for epoch in epochs]
        return client.fetch(wanted, app_document=self._guest.document)

    def install(self) -> int:
        """Boot for the first time: encrypt the disk under the key of new disks, and give its epoch."""
        [key] = self.fetch(None).keys
        assert key.epoch is not None
        self.disk.encrypt(key.epoch, key.secret, self.data)
        return key.epoch

    def boot(self) -> Payload:
        """Boot as every time: open the disk with a key of its own epoch, and find everything there."""
        payload = self.fetch(self.disk.epoch)
        assert self.disk.read(payload.keys[0].secret) == self.data
        return payload

    def move(self, epoch: int) -> int:
        """Encrypt the disk under a key of another epoch, and give the bytes written."""
        old, new = self.fetch(self.disk.epoch, epoch).keys
        assert new.epoch == epoch
        return self.disk.encrypt_again(old.secret, epoch, new.secret)


class DiskFleet:
    """Launches guests: three in five of the first app, on all chips, with disks of every scope."""

    def __init__(self, rack: Rack, kms: Kms, folder: Path) -> None:
        folder.mkdir()
        self._rack, self._kms, self._folder = rack, kms, folder

    def guest(self, number: int) -> DiskGuest:
        guest = self._rack.guest(number)
        if number % 5 > 2:
            guest = _of_ledger(guest, self._kms.identity)
        scopes = list(Scope)
        return DiskGuest(guest, scopes[number % len(scopes)], self._kms, self._folder / f"disk{number}")


def _of_ledger(guest: Guest, identity: bytes) -> Guest:
    """Give a guest of the second app, whose documents name the KMS that they want their keys from."""
    document = {
        "version": 1,
        "app_id": LEDGER.hex(),
        "compose_hash": COMPOSE_HASH.hex(),
        "instance_id": guest.instance_id.hex(),
        "kms_identity": b64url(identity),
    }
    content = json.dumps(document).encode("ascii")
    launched = guest.machine.guest.chip.launch(
        guest.machine.guest.measurement, host_data=host_data_of(content, Binding.HOST_DATA)
    )
    return replace(guest, machine=replace(guest.machine, guest=launched, app_document=content))


class LastingServer:
    """A server that can be killed and started again, at the address where guests look for it."""

    def __init__(self, data_dir: Path, settings: Mapping[str, str]) -> None:
        self._data_dir, self._settings, self._port = data_dir, settings, free_port()
        self.now: Server = self._start()

    def start_again(self) -> None:
        self.now = self._start()

    def _start(self) -> Server:
        listen = {"KMS_LISTEN": f"127.0.0.1:{self._port}"}
        server = Server(self._data_dir, {**self._settings, **listen})
        server.port = self._port
        return server.__enter__()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.now.stop()
