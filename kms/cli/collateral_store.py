"""What the commands of ``kms collateral`` share: the settings' database, and names for what is in it."""

import argparse
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kms.ports import Role, StoredCertificate, StoredRevocationList
from kms.snp.flags import Signer
from kms.snp.kds_paths import Line, VcekOf

if TYPE_CHECKING:
    from kms.settings import Settings
    from kms.wiring import Stores

_Result = TypeVar("_Result")


def add_config(command: argparse.ArgumentParser) -> None:
    """Let a command take `--config`: its database is that of the settings."""
    command.add_argument(
        "--config", metavar="FILE", type=Path, help="path of kms.toml (default: KMS_CONFIG, else none)"
    )


def with_stores(settings: "Settings", work: "Callable[[Stores], Awaitable[_Result]]") -> _Result:
    """Open the settings' database, and do the work.

    Raises:
        ConfigurationError: the database cannot be used.

    """
    import asyncio

    from kms.wiring import open_stores

    async def run() -> _Result:
        async with open_stores(settings) as stores:
            return await work(stores)

    return asyncio.run(run())


def line_name(line: Line) -> str:
    """Give a line as commands name it: `vcek/milan`."""
    return f"{line.signer.value}/{line.product.value}"


def place_of(stored: StoredCertificate | StoredRevocationList) -> str:
    """Say what something stored is: the KDS path that asks for it, or a name where there is none."""
    if isinstance(stored, StoredRevocationList):
        return f"{stored.line.folder}/crl"
    if stored.role is not Role.LEAF or stored.tcb is None:
        return f"{stored.line.folder}: {stored.certificate.subject_name}"
    if stored.line.signer is Signer.VCEK and stored.chip_id is not None:
        return VcekOf(stored.line.product, stored.chip_id, stored.tcb).path
    levels = ", ".join(f"{name} {level}" for name, level in stored.tcb.components().items())
    return f"{stored.line.folder}: VLEK of {stored.csp_id} at {levels}"


def day(moment: datetime) -> str:
    """Give a time for people."""
    return f"{moment:%Y-%m-%d %H:%M} UTC"
