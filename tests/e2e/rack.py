"""A policy that allows one app every kind of key, SIMULATED guests of that app, and the keys that are right.

What is right is derived here, from a root whose bytes the test chose: a server that answers otherwise has
derived from something else.
"""

import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import yaml

from kms.cli.demo_outage_scene import prepare_open_policy
from kms.cli.demo_scene import APP_ID, COMPOSE_HASH, ImageFiles
from kms.evidence.app_document import host_data_of
from kms.identifiers import AppId, ChipId, InstanceId
from kms.keys.derivation import derive
from kms.keys.identity import Identity
from kms.keys.names import KeyRequest
from kms.keys.released import ReleasedKey
from kms.keys.root_messages import FOUNDING_EPOCH, app_message, identity_message, in_development
from kms.measurement.images import Binding
from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.machine import SimulatedMachine
from kms.strict_json import JsonValue

ALLOWED = {
    "keys": [
        *("disk", "disk@instance", "disk@chip", "env", "signing", "tls", "custom:db/*"),
        *("dstack:disk", "dstack:env", "dstack:k256"),
    ],
    "tls": {"names": ["payments.internal"], "days": 7},
    "compat": "dstack",
}
KEYS = [
    KeyRequest.parse(*key)
    for key in (
        *(("disk", "app"), ("disk", "instance"), ("disk", "chip")),
        *(("env", "app"), ("signing", "app"), ("custom:db/main", "app")),
    )
]


@dataclass(frozen=True, slots=True)
class KnownRoot:
    """The secret of each epoch, and whether the provider keeps the mark of development mode itself."""

    secrets: Mapping[int, bytes]
    marked: bool

    def prf(self, epoch: int, message: bytes) -> bytes:
        """Give what a development server is answered."""
        return hmac.digest(self.secrets[epoch], message if self.marked else in_development(message), "sha512")

    @property
    def identity(self) -> Identity:
        return Identity.from_prf(self.prf(FOUNDING_EPOCH, identity_message(1)))

    def right_keys(
        self, guest: "Guest", keys: Sequence[KeyRequest] = KEYS, epoch: int = FOUNDING_EPOCH
    ) -> tuple[ReleasedKey, ...]:
        """Derive what this guest must be given, without certificates."""
        secret = self.prf(epoch, app_message(APP_ID))
        return tuple(
            derive(
                secret,
                key,
                epoch,
                app_id=APP_ID,
                instance_id=guest.instance_id,
                chip_id=guest.chip_id,
                identity=self.identity,
            )
            for key in keys
        )


@dataclass(frozen=True, slots=True)
class Guest:
    """One instance of the app: `kms.guest.evidence.EvidenceSource`."""

    instance_id: InstanceId
    machine: SimulatedMachine

    @property
    def chip_id(self) -> ChipId:
        return self.machine.guest.chip.chip_id

    @property
    def document(self) -> bytes:
        assert self.machine.app_document is not None
        return self.machine.app_document

    def evidence(self, report_data: bytes) -> dict[str, JsonValue]:
        return self.machine.evidence(report_data)


class Rack:
    """Machines that may run the app, and the settings of a server that knows them."""

    def __init__(self, folder: Path, hierarchy: AmdHierarchy, chips: int) -> None:
        self._files = ImageFiles.build()
        self._measured: dict[str | None, SimulatedMachine] = {}
        product, made = hierarchy.product, datetime.now(UTC) - timedelta(days=1)
        self._chips = [
            SimulatedChip.typical(
                hierarchy, chip_id=simulated_chip_id(product, f"rack {number}".encode()), now=made
            )
            for number in range(chips)
        ]
        roots = folder / "roots.pem"
        roots.write_bytes(hierarchy.ark.pem)
        self.policies = prepare_open_policy(self._files, folder)
        app = self.policies / "app.yaml"
        app.write_text(yaml.safe_dump({**yaml.safe_load(app.read_text()), **ALLOWED}))
        self.settings = {
            "KMS_POLICY_DIR": str(self.policies),
            "KMS_DEVELOPMENT_ROOTS": str(roots),
            "KMS_KDS_URLS": "none",
        }

    def guest(self, number: int, *, cmdline: str | None = None, app_id: AppId = APP_ID) -> Guest:
        """Launch an instance; another `cmdline` is no image of the policy's, `app_id` no app of it."""
        instance_id = InstanceId(sha256(f"instance {number}".encode()).digest()[:20])
        document = {
            "version": 1,
            "app_id": app_id.hex(),
            "compose_hash": COMPOSE_HASH.hex(),
            "instance_id": instance_id.hex(),
        }
        content = json.dumps(document).encode("ascii")
        # Measured once: the measurement knows nothing of the document, nor of the chip.
        machine = self._measured.get(cmdline)
        if machine is None:
            machine = SimulatedMachine.launch(self._chips[0], self._files.description(), cmdline=cmdline)
            self._measured[cmdline] = machine
        launched = self._chips[number % len(self._chips)].launch(
            machine.guest.measurement, host_data=host_data_of(content, Binding.HOST_DATA)
        )
        return Guest(instance_id, replace(machine, guest=launched, app_document=content))
