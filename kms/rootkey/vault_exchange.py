"""One exchange with a Vault server, in the calling thread, and the names of everything that can go wrong.

The library's exceptions carry the server's text, the URL, and the request with its token. None of them
leaves this module, not even as the context of another one.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, cast

import requests
from hvac.adapters import RawAdapter
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError
from urllib3.util import Timeout

from kms.errors import RootKeyUnavailable
from kms.https_client import certificate_fault
from kms.rootkey.vault_access import VaultAccess

AT_ONCE: Final = 8  # exchanges; each has a thread and keeps a connection

# Seconds after which a guest may find it better: soon for what passes by itself, later for what waits for
# somebody.
_RETRY_AFTER: Final[Mapping[str, int]] = {
    "root-key-slow": 2,
    "root-key-unreachable": 2,
    "root-key-standby": 2,
    "root-key-failing": 5,
    "root-key-sealed": 10,
    "root-key-forbidden": 30,
    "root-key-token-expired": 30,
    "root-key-missing": 30,
    "root-key-changed": 30,
    "root-epoch-missing": 30,
}


def unavailable(reason: str, detail: str) -> RootKeyUnavailable:
    """Make the error for one of the reasons above; `detail` is in our own words."""
    return RootKeyUnavailable(detail, reason=reason, retry_after=_RETRY_AFTER[reason])


@dataclass(frozen=True, slots=True)
class Answer:
    """What Vault answered: the HTTP status, and the JSON object (empty where there was none)."""

    status: int
    body: Mapping[str, object] = field(repr=False)

    @property
    def data(self) -> Mapping[str, object]:
        """The member `data`; empty where it is no object."""
        return members(self.body.get("data"))


def members(value: object) -> Mapping[str, object]:
    """Give a JSON object as one; empty for anything else."""
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else {}


def whole(value: object) -> int:
    """Give a JSON integer; 0 for anything else, which is Vault's word for "none" (versions, leases)."""
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


class VaultConnection:
    """Kept connections to one server. Its methods may be called in `AT_ONCE` threads at once."""

    def __init__(self, access: VaultAccess) -> None:
        session = requests.Session()
        # Neither a proxy nor a CA nor a password of the environment's (or of a .netrc): our secrets go where
        # the settings say.
        session.trust_env = False
        session.verify = _trusted(access)
        session.mount(access.address, HTTPAdapter(pool_connections=1, pool_maxsize=AT_ONCE, max_retries=0))
        # Not `hvac.Client`, which takes a token from the environment or from ~/.vault-token.
        self._adapter = RawAdapter(
            base_uri=access.address,
            namespace=access.namespace,
            session=session,
            timeout=Timeout(total=access.timeout.total_seconds()),
            # A redirect would carry the token to wherever it points.
            allow_redirects=False,
            ignore_exceptions=True,
        )

    def exchange(
        self, method: str, path: str, body: Mapping[str, object] | None = None, *, token: str | None = None
    ) -> Answer:
        """Send a request for ``/v1/{path}`` and give the answer, whatever a 2xx or 4xx status it has.

        Raises:
            RootKeyUnavailable: no answer, or one that says that this Vault serves nobody now.

        """
        headers = {} if token is None else {"X-Vault-Token": token}
        try:
            response = self._adapter.request(method, f"/v1/{path}", headers=headers, json=body)
        except requests.Timeout:
            failure = unavailable("root-key-slow", "Vault did not answer in time")
        except (OSError, HTTPError) as error:
            fault = certificate_fault(error)
            detail = "Vault cannot be reached" if fault is None else f"Vault's certificate: {fault}"
            failure = unavailable("root-key-unreachable", detail)
        else:
            return _answer(response)
        raise failure  # here, where the library's exception is no context of it

    def close(self) -> None:
        """Close the connections."""
        self._adapter.close()


def _trusted(access: VaultAccess) -> str:
    if access.ca is not None:
        return str(access.ca)
    # `requests` would trust a list of its own; the system's is what its administrator keeps.
    system = ssl.get_default_verify_paths()
    return system.cafile or system.capath or system.openssl_cafile


def _answer(response: requests.Response) -> Answer:
    try:
        body = members(response.json())
    except ValueError:
        body = {}
    status = response.status_code
    if status < 300 or (400 <= status < 500 and status != requests.codes.too_many_requests):
        return Answer(status, body)
    if status < 400:
        raise unavailable("root-key-standby", "this Vault is a standby that does not pass requests on")
    # A load balancer may answer 503 as well: only Vault itself says that it is sealed.
    if status == requests.codes.service_unavailable and "sealed" in str(body.get("errors")):
        raise unavailable("root-key-sealed", "Vault is sealed")
    raise unavailable("root-key-failing", f"Vault answered with status {status}")
