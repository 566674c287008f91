"""What the tests of files, bundles and the mirror keep: simulated certificates, and a store for them."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from kms.database.collateral import CollateralDatabase
from kms.database.engine import open_engine, sqlite_url
from kms.database.migrate import migrate
from kms.identifiers import ChipId
from kms.packaged import packaged_folder
from kms.simulator.chip import simulated_chip_id
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.platforms import TYPICAL
from kms.snp.endorsement import load_der
from kms.snp.product import Product
from kms.snp.roots import TrustedRoots
from kms.snp.tcb import TcbVersion
from tests.world import NOW

DAY = timedelta(days=1)
CSP = "cloud.example"


@dataclass(frozen=True)
class Amd:
    """Signs what is to be kept, all of it DER, as of `now`."""

    hierarchy: AmdHierarchy
    now: datetime = NOW

    @property
    def product(self) -> Product:
        return self.hierarchy.product

    @property
    def roots(self) -> TrustedRoots:
        return TrustedRoots.with_development([load_der(self.hierarchy.ark.certificate)])

    @property
    def chain(self) -> bytes:
        """`cert_chain` of VCEKs: PEM, ASK then ARK."""
        return self.hierarchy.ask.pem + self.hierarchy.ark.pem

    def chip_id(self, seed: bytes = b"chip") -> ChipId:
        return simulated_chip_id(self.product, seed)

    def tcb(self, **levels: int) -> TcbVersion:
        return replace(TYPICAL[self.product].tcb, **levels)

    def vcek(
        self,
        seed: bytes = b"chip",
        *,
        key: ec.EllipticCurvePrivateKey | None = None,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        **levels: int,
    ) -> bytes:
        key = key or ec.generate_private_key(ec.SECP384R1())
        return self.hierarchy.issue_vcek(
            key.public_key(),
            self.tcb(**levels),
            self.chip_id(seed),
            not_before=not_before or self.now - DAY,
            not_after=not_after or self.now + 2555 * DAY,
        )

    def vlek(self, csp_id: str = CSP, not_after: datetime | None = None, **levels: int) -> bytes:
        key = ec.generate_private_key(ec.SECP384R1()).public_key()
        ends = not_after or self.now + 365 * DAY
        return self.hierarchy.issue_vlek(
            key, self.tcb(**levels), csp_id, not_before=self.now - DAY, not_after=ends
        )

    def crl(
        self,
        *serials: int,
        number: int = 1,
        this_update: datetime | None = None,
        next_update: datetime | None = None,
    ) -> bytes:
        return self.hierarchy.revocation_list(
            serials,
            number=number,
            this_update=this_update or self.now - DAY,
            next_update=next_update or self.now + 30 * DAY,
        )


@asynccontextmanager
async def open_store(folder: Path, now: datetime = NOW) -> AsyncIterator[CollateralDatabase]:
    """Open a store on a new database in `folder`."""
    os.makedirs(folder, exist_ok=True)  # noqa: PTH103 -- a moment
    engine = open_engine(sqlite_url(folder))
    try:
        await migrate(engine, packaged_folder("migrations"))
        yield CollateralDatabase(engine, lambda: now)
    finally:
        await engine.dispose()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files below a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder
