"""What the SIMULATED key distribution service has to give: certificates, chains and revocation lists."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Final

from kms.identifiers import ChipId
from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.flags import Signer
from kms.snp.kds_paths import ChainOf, Line, RevocationListOf, VcekOf, Wanted
from kms.snp.product import Product

_LIST_MADE: Final = timedelta(hours=1)  # before now, as with AMD's certificates: clocks differ
_LIST_LIFE: Final = timedelta(days=30)

# RFC 2585, section 4; PEM has no registered type, this is what servers commonly send.
_CERTIFICATE_TYPE: Final = "application/pkix-cert"
_LIST_TYPE: Final = "application/pkix-crl"
_PEM_TYPE: Final = "application/x-pem-file"


@dataclass(frozen=True, slots=True)
class Document:
    """A body and its media type."""

    content_type: str
    body: bytes


class Shelf:
    """Hierarchies by product, chips by id, revocation lists by line. It may be changed while it is asked.

    Of a chip there is a VCEK for every TCB up to the current one, as a chip can report any of them; the key
    of each is the chip's own. Without a list of its own, a line has one that revokes nothing.
    """

    def __init__(self, hierarchies: Iterable[AmdHierarchy], clock: Callable[[], datetime]) -> None:
        self._clock = clock
        # Also so that one certificate asked for twice is the same bytes: its signature has a random salt.
        self._lock = threading.Lock()
        self._hierarchies = {hierarchy.product: hierarchy for hierarchy in hierarchies}
        self._chips: dict[tuple[Product, ChipId], SimulatedChip] = {}
        self._certificates: dict[VcekOf, bytes] = {}
        self._lists: dict[Line, bytes] = {}

    def add(self, chip: SimulatedChip) -> None:
        """Take a chip into the books, or in place of what was known of it."""
        with self._lock:
            self._chips[chip.hierarchy.product, chip.chip_id] = chip
            self._certificates = {
                wanted: certificate
                for wanted, certificate in self._certificates.items()
                if wanted.chip_id != chip.chip_id
            }

    def publish(self, line: Line, revocation_list: bytes | None) -> None:
        """Serve this list (DER, or whatever it is) for a line; None: one that revokes nothing."""
        with self._lock:
            self._lists.pop(line, None)
            if revocation_list is not None:
                self._lists[line] = revocation_list

    def find(self, wanted: Wanted | None) -> Document | None:
        """Give what a path names; None for what is not there."""
        with self._lock:
            match wanted:
                case VcekOf():
                    certificate = self._certificate(wanted)
                    return None if certificate is None else Document(_CERTIFICATE_TYPE, certificate)
                case ChainOf(line=line):
                    hierarchy = self._hierarchies.get(line.product)
                    return None if hierarchy is None else Document(_PEM_TYPE, _chain(hierarchy, line.signer))
                case RevocationListOf(line=line):
                    revocation_list = self._list(line)
                    return None if revocation_list is None else Document(_LIST_TYPE, revocation_list)
                case None:
                    return None

    def of_another_chip(self, wanted: VcekOf) -> Document | None:
        """Give the genuine VCEK of a chip of the same hierarchy that nobody asked for, at the same TCB."""
        with self._lock:
            hierarchy = self._hierarchies.get(wanted.product)
            if hierarchy is None:
                return None
            other = simulated_chip_id(wanted.product, b"somebody else's\x00" + wanted.chip_id)
            chip = SimulatedChip.typical(hierarchy, chip_id=other, now=self._clock())
            chip = replace(chip, reported_tcb=wanted.tcb, secret=sha256(other).digest())
            return Document(_CERTIFICATE_TYPE, chip.endorsement.certificate)

    def _certificate(self, wanted: VcekOf) -> bytes | None:
        if wanted in self._certificates:
            return self._certificates[wanted]
        chip = self._chips.get((wanted.product, wanted.chip_id))
        if chip is None or not chip.current_tcb.covers(wanted.tcb):
            return None
        if (chip.reported_tcb, chip.signer) != (wanted.tcb, Signer.VCEK):
            chip = replace(chip, reported_tcb=wanted.tcb, csp_id=None)
        return self._certificates.setdefault(wanted, chip.endorsement.certificate)

    def _list(self, line: Line) -> bytes | None:
        hierarchy = self._hierarchies.get(line.product)
        if line not in self._lists and hierarchy is not None:
            made = self._clock() - _LIST_MADE
            self._lists[line] = hierarchy.revocation_list(this_update=made, next_update=made + _LIST_LIFE)
        return self._lists.get(line)


def _chain(hierarchy: AmdHierarchy, signer: Signer) -> bytes:
    authority = hierarchy.ask if signer is Signer.VCEK else hierarchy.asvk
    return authority.pem + hierarchy.ark.pem
