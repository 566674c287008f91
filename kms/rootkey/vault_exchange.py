"""One exchange with a Vault server, in the calling thread, and the names of everything that can go wrong.

The libraries' exceptions carry the server's text, the URL, and the request with its token. None of them
leaves this module, not even as the context of another one. Whatever a server answers is `RootKeyUnavailable`
or an `Answer`, in time: a hostile one is no more than one that does not work.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, cast

import requests
from hvac.adapters import RawAdapter
from urllib3.exceptions import HTTPError
from urllib3.exceptions import TimeoutError as HTTPTimeout
from urllib3.util import Timeout

from kms.errors import RootKeyUnavailable
from kms.https_client import certificate_fault
from kms.rootkey.vault_access import VaultAccess
from kms.rootkey.vault_bounds import BoundedSession, UnboundedAnswer, read_body
from kms.strict_json import JsonError, parse_object

AT_ONCE: Final = 8  # exchanges; each has a thread, and a connection that is kept

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
    """What Vault answered: the HTTP status, 2xx or 4xx, and the JSON object (empty with 204)."""

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
    """Kept connections to one server. Its methods may be called in many threads at once."""

    def __init__(self, access: VaultAccess) -> None:
        session = BoundedSession(access.address, connections=AT_ONCE)
        session.verify = _trusted(access)
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

        All of it has the time of `VaultAccess.timeout`. Only where connecting is slow is it longer: then each
        of the server's addresses, TLS, and sending end after as much.

        Raises:
            RootKeyUnavailable: no answer, or one that says that this Vault serves nobody now.

        """
        headers = {} if token is None else {"X-Vault-Token": token}
        try:
            with self._adapter.request(
                method, f"/v1/{path}", headers=headers, json=body, stream=True
            ) as response:
                return _answer(response.status_code, read_body(response))
        except RootKeyUnavailable:
            raise
        except (requests.Timeout, HTTPTimeout):
            failure = unavailable("root-key-slow", "Vault did not answer in time")
        except (OSError, HTTPError) as error:
            fault = certificate_fault(error)
            detail = "Vault cannot be reached" if fault is None else f"Vault's certificate: {fault}"
            failure = unavailable("root-key-unreachable", detail)
        except UnboundedAnswer:
            failure = unavailable("root-key-failing", "Vault's answer is compressed or too long")
        except Exception as error:  # noqa: BLE001 -- what else a hostile answer does to the libraries
            failure = unavailable(
                "root-key-failing", f"Vault's answer cannot be read ({type(error).__name__})"
            )
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


def _answer(status: int, content: bytes) -> Answer:
    # What is not Vault's JSON is somebody else's word (a load balancer's 404, say), and says nothing of keys.
    body = {} if status == requests.codes.no_content else _object(content)
    if body is not None and (
        200 <= status < 300 or (400 <= status < 500 and status != requests.codes.too_many_requests)
    ):
        return Answer(status, body)
    if 300 <= status < 400:
        raise unavailable("root-key-standby", "this Vault is a standby that does not pass requests on")
    # A load balancer may answer 503 as well: only Vault itself says that it is sealed.
    if (
        body is not None
        and status == requests.codes.service_unavailable
        and "sealed" in str(body.get("errors"))
    ):
        raise unavailable("root-key-sealed", "Vault is sealed")
    raise unavailable(
        "root-key-failing",
        f"Vault answered with status {status}" + (" and no JSON object" if body is None else ""),
    )


def _object(content: bytes) -> Mapping[str, object] | None:
    try:
        return parse_object(content)
    except JsonError:
        return None
