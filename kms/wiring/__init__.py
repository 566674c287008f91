"""The only place that builds concrete objects: from settings to a server that can release keys."""

from kms.wiring.core import collateral_service, revocation_rules
from kms.wiring.ledger import LocalLedger, open_ledger
from kms.wiring.office import LocalKeys, open_key_stores, open_office
from kms.wiring.restoring import open_restoring
from kms.wiring.server import Kms, ToldToStop, open_kms
from kms.wiring.stores import Stores, new_id, open_stores, utc_now

__all__ = [
    "Kms",
    "LocalKeys",
    "LocalLedger",
    "Stores",
    "ToldToStop",
    "collateral_service",
    "new_id",
    "open_key_stores",
    "open_kms",
    "open_ledger",
    "open_office",
    "open_restoring",
    "open_stores",
    "revocation_rules",
    "utc_now",
]
