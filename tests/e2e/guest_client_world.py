"""What tests of a guest's client share: a fleet of one app, its KMS, and the servers that are not its KMS."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kms.guest import KeyClient, KeyRequest
from kms.guest.tsm import TsmSource
from kms.keys.sealing import Suite
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.conformance.own_server import Server
from tests.e2e.impostors import Relay, TlsWorld, answering, identity_of
from tests.e2e.rack import Guest, Rack
from tests.simulated_tsm import simulated_tsm

DISK = KeyRequest.parse("disk", "app")


@dataclass(frozen=True, slots=True)
class GuestClientWorld:
    """One guest with a SIMULATED configfs-tsm, and whom it may ask; `pin` is the genuine KMS's identity."""

    folder: Path
    guest: Guest
    other_guest: Guest
    tsm: Path
    tls: TlsWorld
    genuine: Server
    impostor: Server
    relay: Relay
    relay_url: str
    pin: bytes

    @property
    def ca(self) -> Path:
        """The only CA that the guest trusts."""
        return self.tls.ca

    @property
    def document(self) -> Path:
        """The app document as the host delivers it, in a file."""
        return self.folder / "app.json"

    def left_behind(self) -> list[str]:
        """Name the entries of configfs-tsm that nobody removed."""
        return [entry.name for entry in self.tsm.iterdir()]

    def client(self, url: str, *, suite: Suite = Suite.HPKE_X25519) -> KeyClient:
        """Give a client of this guest, on its configfs-tsm."""
        return KeyClient(
            url, ca_file=self.ca, identity=self.pin, source=TsmSource(self.tsm), suite=suite, deadline=60
        )

    def replay_another_guests_answer(self, suite: Suite) -> None:
        """Let the relay answer with what the KMS sealed for another guest of the app."""
        other = KeyClient(
            self.relay_url, ca_file=self.ca, identity=self.pin, source=self.other_guest, suite=suite
        )
        other.fetch([DISK], app_document=self.other_guest.document)
        self.relay.replayed = self.relay.released[-1]

    def key(self) -> bytes:
        """Fetch the disk key as our own client does."""
        [key] = self.client(self.genuine.url).fetch([DISK], app_document=self.guest.document).keys
        assert key.value is not None
        return key.value


@contextmanager
def guest_client_world(
    folder: Path, hierarchies: Mapping[Product, AmdHierarchy]
) -> Iterator[GuestClientWorld]:
    """Start it all; it takes some seconds, and root for the SIMULATED configfs-tsm."""
    rack = Rack(folder, hierarchies[Product.MILAN], chips=1)
    tls = TlsWorld(folder)
    guest, tsm = rack.guest(1), folder / "tsm"
    (folder / "app.json").write_bytes(guest.document)
    with ExitStack() as stack:
        genuine, impostor = (tls.server(name, rack.settings) for name in ("genuine", "impostor"))
        stack.enter_context(genuine)
        stack.enter_context(impostor)
        relay = Relay(genuine)
        relay_url = stack.enter_context(answering(relay.answer, tls.certified("relay")))
        stack.enter_context(simulated_tsm(tsm, guest.machine))
        yield GuestClientWorld(
            folder=folder,
            guest=guest,
            other_guest=rack.guest(2),
            tsm=tsm,
            tls=tls,
            genuine=genuine,
            impostor=impostor,
            relay=relay,
            relay_url=relay_url,
            pin=identity_of(genuine),
        )
