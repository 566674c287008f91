"""The JSON shapes of key work: epochs, and generations of the identity."""

from datetime import datetime

from kms.administration.office import Json
from kms.encoding import b64url
from kms.keys.epochs import Epoch, EpochTable
from kms.ledger.entries import timestamp
from kms.operator_ports import Generation


def epoch_json(table: EpochTable, epoch: Epoch, now: datetime) -> Json:
    """Give an epoch of a table, and what it is good for."""
    return {
        "epoch": epoch.number,
        "state": table.state(epoch, now).value,
        "made_at": timestamp(epoch.made_at),
        "made_by": epoch.made_by,
        "active_from": timestamp(epoch.active_from),
        "retired_at": None if epoch.retired_at is None else timestamp(epoch.retired_at),
        "retired_by": epoch.retired_by,
    }


def generation_json(number: int, identity: bytes | None, later: Generation | None) -> Json:
    """Give a generation with its public key (32 bytes), None where it is not known.

    `later` is None for the first one, which is as old as the root.
    """
    return {
        "generation": number,
        "identity": None if identity is None else b64url(identity),
        "made_at": None if later is None else timestamp(later.made_at),
        "made_by": None if later is None else later.made_by,
    }
