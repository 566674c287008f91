"""The guest's side: evidence from its hardware, a request that the hardware signs, and the keys.

``from kms.guest import KeyClient, TsmSource`` is the whole of it for programs. A guest must never let others
choose its raw REPORT_DATA: whoever does can ask for its keys (protocol section 1). So nothing here signs
bytes that it was given; the request, and a fresh public key in it, are made here.
"""

from kms.guest.client import KeyClient
from kms.guest.tsm import TsmSource

__all__ = ["KeyClient", "TsmSource"]
