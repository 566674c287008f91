"""What a real Vault does not do on demand: other answers, a clock that a test moves, hostile names."""

import base64
import http.server
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final, cast

import pytest
from typing_extensions import override

from kms.errors import ConfigurationError, RootKeyUnavailable
from kms.keys.root_messages import Mode
from kms.rootkey import RootAccess, check_uri
from kms.rootkey.vault_access import AppRole, TokenFile, VaultAccess
from kms.rootkey.vault_breaker import Breaker
from kms.rootkey.vault_exchange import Answer, VaultConnection, unavailable
from kms.rootkey.vault_location import Location
from kms.rootkey.vault_session import VaultSession
from kms.rootkey.vault_transit import TransitRootKey
from tests.rootkey.vault_roots import reason
from tests.servers.vault import write_private

_OUTPUT: Final = base64.b64encode(bytes(range(64))).decode("ascii")


class _SaysOneThing:
    """A session that gives one answer to everything."""

    def __init__(self, *results: Mapping[str, object], status: int = 200) -> None:
        self._answer = Answer(status, {"data": {"batch_results": list(results)}})

    async def post(self, path: str, body: Mapping[str, object]) -> Answer:
        return self._answer


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"hmac": f"vault:v2:{_OUTPUT}"}, "root-key-changed"),
        ({"hmac": f"vault:v11:{_OUTPUT}"}, "root-key-changed"),
        ({"hmac": _OUTPUT}, "root-key-changed"),
        ({"hmac": "vault:v1:" + base64.b64encode(bytes(32)).decode("ascii")}, "root-key-changed"),
        ({"hmac": f"vault:v1:{_OUTPUT[:-1]}*"}, "root-key-changed"),
        ({"hmac": f"vault:v1:{_OUTPUT}é"}, "root-key-changed"),
        ({"error": "unable to decode input as base64"}, "root-key-changed"),
    ],
)
async def test_an_answer_of_another_version_or_hash_is_not_taken(
    result: Mapping[str, object], expected: str
) -> None:
    root = TransitRootKey(cast("VaultSession", _SaysOneThing(result)), Location("transit", "root"))
    assert await reason(root) == expected


async def test_an_answer_for_another_number_of_questions_is_not_taken() -> None:
    result = {"hmac": f"vault:v1:{_OUTPUT}"}
    root = TransitRootKey(cast("VaultSession", _SaysOneThing(result, result)), Location("transit", "root"))
    assert await reason(root) == "root-key-failing"
    right = TransitRootKey(cast("VaultSession", _SaysOneThing(result)), Location("transit", "root"))
    assert await right.outputs(1, [b"a"]) == (bytes(range(64)),)


class _Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _refused(breaker: Breaker) -> bool:
    try:
        breaker.check()
    except RootKeyUnavailable as error:
        return error.reason == "root-key-slow"
    return False


def test_the_breaker_opens_after_failures_in_a_row_and_lets_one_a_second_look() -> None:
    clock = _Time()
    breaker, failure = Breaker(clock=clock), unavailable("root-key-slow", "")
    breaker.failed(failure)
    breaker.failed(failure)
    breaker.succeeded()
    for _ in range(2):
        breaker.failed(failure)
        assert not _refused(breaker)
    breaker.failed(failure)
    assert _refused(breaker)
    clock.now = 1.0
    assert [_refused(breaker) for _ in range(3)] == [False, True, True]
    # The one that looked hangs: a second later, the next one may look all the same.
    clock.now = 2.0
    assert [_refused(breaker) for _ in range(2)] == [False, True]
    breaker.failed(failure)
    assert _refused(breaker)
    breaker.succeeded()
    assert not _refused(breaker)


class _Handler(http.server.BaseHTTPRequestHandler):
    status: int
    body: bytes
    seen: list[str | None]

    def do_GET(self) -> None:
        self.seen.append(self.headers["X-Vault-Token"])
        self.send_response(self.status)
        self.send_header("Location", "/v1/elsewhere")
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    @override
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def _server(status: int, body: bytes) -> Iterator[tuple[str, list[str | None]]]:
    seen: list[str | None] = []
    handler = type("Handler", (_Handler,), {"status": status, "body": body, "seen": seen})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()


@pytest.mark.enable_socket
@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (307, b"", "root-key-standby"),
        (302, b"", "root-key-standby"),
        (429, b"", "root-key-failing"),
        (500, b"{}", "root-key-failing"),
        (502, b"<html>", "root-key-failing"),
        (503, b"<html>busy</html>", "root-key-failing"),
        (503, b'{"errors":["Vault is sealed"]}', "root-key-sealed"),
    ],
)
def test_each_answer_that_serves_nobody_has_its_reason(status: int, body: bytes, expected: str) -> None:
    with _server(status, body) as (address, seen):
        connection = VaultConnection(VaultAccess(address=address, login=TokenFile(Path("unused"))))
        with pytest.raises(RootKeyUnavailable) as caught:
            connection.exchange("get", "transit/keys/root", token="hvs.canary")
        connection.close()
    assert caught.value.reason == expected
    assert "canary" not in repr(caught.value)
    assert seen == ["hvs.canary"]  # no redirect was followed


@pytest.mark.enable_socket
@pytest.mark.parametrize(
    ("status", "body"), [(200, b"{}"), (200, b'{"data": [1]}'), (404, b'{"errors":[]}'), (204, b"")]
)
def test_data_that_is_no_object_is_an_empty_one(status: int, body: bytes) -> None:
    with _server(status, body) as (address, _):
        connection = VaultConnection(VaultAccess(address=address, login=TokenFile(Path("unused"))))
        assert connection.exchange("get", "transit/keys/root").data == {}
        connection.close()


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "transit",
        "transit/",
        "/root",
        "a//b",
        "../root",
        "a/..",
        "a/b?c",
        "a/b c",
        "a/%2e",
        "a/b#c",
        "a/ß",
        "a/-b",
        f"a/{'b' * 255}",
    ],
)
def test_a_place_that_could_mean_another_is_refused(rest: str, tmp_path: Path) -> None:
    access = _access(tmp_path)
    for scheme in ("vault-transit", "vault-kv"):
        with pytest.raises(ConfigurationError):
            check_uri(f"{scheme}:{rest}", access)


def test_a_mount_of_keys_and_a_path_of_secrets_may_have_slashes(tmp_path: Path) -> None:
    assert Location.of_key("team/transit/root") == Location("team/transit", "root")
    assert Location.of_secret("kv/team/root") == Location("kv", "team/root")
    check_uri("vault-transit:team/transit/root.2-b", _access(tmp_path))


def test_a_root_in_vault_needs_a_vault(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no Vault is named"):
        check_uri("vault-kv:kv/root", RootAccess(mode=Mode.PRODUCTION))
    with pytest.raises(ConfigurationError, match="CA file"):
        check_uri("vault-kv:kv/root", _access(tmp_path, ca=tmp_path / "none.pem"))


def _access(folder: Path, ca: Path | None = None) -> RootAccess:
    secret_id = folder / "secret-id"
    if not secret_id.exists():
        write_private(secret_id, "s.1")
    login = AppRole("role", secret_id)
    vault = VaultAccess(
        address="https://vault.example:8200", login=login, ca=ca, timeout=timedelta(seconds=1)
    )
    return RootAccess(mode=Mode.PRODUCTION, vault=vault)
