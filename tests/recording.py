"""A recorder for tests that are about something else than the ledger."""

from kms.database.recording import Recorder
from kms.keys.root_messages import entries_message, root_prf
from kms.ledger.sealed_entry import EntrySeal
from tests.roots import ROOT_SECRET

SERVER = "server-1"


def entry_seal() -> EntrySeal:
    """Give the seal of the root that tests use."""
    return EntrySeal(root_prf(ROOT_SECRET, entries_message()))


def recorder() -> Recorder:
    """Give a recorder that has seen nothing yet."""
    return Recorder(entry_seal(), SERVER)
