"""Client certificates in real TLS handshakes on this machine, from the server's door to the application."""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from kms.errors import ConfigurationError
from kms.http.client_certificates import client_certificate
from kms.http.connections import Door
from kms.http.guarded import GuardedServer
from kms.http.tls import server_context
from tests.certificates import CLIENT, SERVER, Authority, pem, write

NOW = datetime.now(UTC)


async def show(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with what the application is told of the client."""
    found = client_certificate(scope)
    body = {
        "tls": scope.get("extensions", {}).get("tls"),
        "subject": None if found is None else found.subject,
        "valid": None if found is None else found.is_valid_at(datetime.now(UTC)),
        "header": Request(scope).headers.get("x-client-certificate"),
    }
    await JSONResponse(body)(scope, receive, send)


@dataclass
class House:
    """A server's certificate, the operators' CA, another CA, and their files in a folder."""

    folder: Path
    server: Authority
    operators: Authority
    strangers: Authority

    def context(self, minimum: str = "1.2", *, ca: str | None = "operators.pem") -> ssl.SSLContext:
        server = self.folder / "server.pem"
        return server_context(server, server, minimum, None if ca is None else self.folder / ca)

    def client(self, certificate: Path | None, version: str = "1.3") -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=pem(self.server.certificate))
        context.minimum_version = context.maximum_version = ssl.TLSVersion[f"TLSv{version.replace('.', '_')}"]
        if certificate is not None:
            context.load_cert_chain(certificate)
        return context


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    folder = tmp_path_factory.mktemp("tls")
    made = House(folder, *(Authority(name, now=NOW) for name in ("Server CA", "Operators CA", "Strangers")))
    write(folder, "server", made.server.issue("kms", usages=[SERVER]))
    (folder / "operators.pem").write_text(pem(made.operators.certificate))
    return made


@asynccontextmanager
async def serving(context: ssl.SSLContext) -> AsyncIterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = GuardedServer(
        show,
        listener,
        context,
        door=Door(most=20, most_of_one=20),
        malformed=lambda: Response(status_code=400),
        keep_alive=5,
        grace=1,
    )
    task = asyncio.create_task(server.serve())
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def ask(port: int, context: ssl.SSLContext, times: int = 1) -> dict[str, Any]:
    """Make requests on one connection and give the last answer; OSError where the server hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        body = b""
        for _ in range(times):
            writer.write(b"GET / HTTP/1.1\r\nHost: kms\r\nX-Client-Certificate: CN=root\r\n\r\n")
            header = await reader.readuntil(b"\r\n\r\n")
            [length] = [
                line.split(b":")[1]
                for line in header.lower().splitlines()
                if line.startswith(b"content-length")
            ]
            body = await reader.readexactly(int(length))
    except asyncio.IncompleteReadError:
        raise ConnectionResetError from None
    finally:
        writer.transport.abort()
    answer: dict[str, Any] = json.loads(body)
    return answer


@pytest.mark.enable_socket
@pytest.mark.parametrize(("version", "number"), [("1.3", 0x0304), ("1.2", 0x0303)])
async def test_a_verified_certificate_reaches_the_application(
    house: House, version: str, number: int
) -> None:
    bob = write(house.folder, "bob", house.operators.issue("bob"))
    async with serving(house.context()) as port:
        answer = await ask(port, house.client(bob, version), times=3)
    assert (answer["subject"], answer["valid"]) == ("CN=bob,O=Example", True)
    assert answer["tls"]["client_cert_name"] == "CN=bob,O=Example"
    [sent] = answer["tls"]["client_cert_chain"]
    assert x509.load_pem_x509_certificate(sent.encode()).subject.rfc4514_string() == "CN=bob,O=Example"
    assert answer["tls"]["tls_version"] == number
    assert answer["tls"]["client_cert_error"] is None


@pytest.mark.enable_socket
@pytest.mark.parametrize("ca", ["operators.pem", None])
@pytest.mark.parametrize("version", ["1.3", "1.2"])
async def test_a_guest_needs_no_certificate(house: House, version: str, ca: str | None) -> None:
    async with serving(house.context(ca=ca)) as port:
        answer = await ask(port, house.client(None, version))
    assert answer["subject"] is None
    assert answer["tls"]["client_cert_chain"] == []
    assert answer["header"] == "CN=root"  # whatever a header says


@pytest.mark.enable_socket
async def test_without_a_ca_nobody_is_asked_for_a_certificate(house: House) -> None:
    bob = write(house.folder, "bob", house.operators.issue("bob"))
    async with serving(house.context(ca=None)) as port:
        answer = await ask(port, house.client(bob))
    assert answer["subject"] is None


def bad(house: House, kind: str) -> Path:
    """Make a certificate that must not do."""
    if kind == "of a stranger":
        issued = house.strangers.issue("bob")
    elif kind == "expired":
        issued = house.operators.issue("bob", life=-timedelta(days=1))
    elif kind == "for servers":
        issued = house.operators.issue("bob", usages=[SERVER])
    elif kind == "of the server's own CA":
        issued = house.server.issue("bob")
    else:
        certificate, key = house.operators.issue("bob")
        of_an_operator = Authority("bob", now=NOW)
        of_an_operator.name, of_an_operator._key = certificate.subject, key
        issued = of_an_operator.issue("root")
        path = write(house.folder, "chain", issued)
        path.write_text(path.read_text() + pem(certificate))
        return path
    return write(house.folder, "bad", issued)


BAD = ["of a stranger", "expired", "for servers", "of the server's own CA", "issued by an operator"]


@pytest.mark.enable_socket
@pytest.mark.parametrize("version", ["1.3", "1.2"])
@pytest.mark.parametrize("kind", BAD)
async def test_an_untrusted_certificate_fails_the_handshake(house: House, kind: str, version: str) -> None:
    """It is no guest either: whoever shows one means to be somebody."""
    async with serving(house.context()) as port:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await ask(port, house.client(bad(house, kind), version))
        assert (await ask(port, house.client(None, version)))["subject"] is None


@pytest.mark.enable_socket
@pytest.mark.parametrize("usages", [[], [CLIENT], [SERVER, CLIENT]])
async def test_an_extended_key_usage_must_name_clients_if_there_is_one(
    house: House, usages: list[x509.ObjectIdentifier]
) -> None:
    bob = write(house.folder, "bob", house.operators.issue("bob", usages=usages))
    async with serving(house.context()) as port:
        assert (await ask(port, house.client(bob)))["subject"] == "CN=bob,O=Example"


@pytest.mark.enable_socket
async def test_an_intermediate_ca_alone_lets_in_only_its_own(house: House) -> None:
    below = Authority("Operators below", now=NOW, parent=house.operators)
    (house.folder / "below.pem").write_text(pem(below.certificate))
    own = write(house.folder, "own", below.issue("carol"))
    of_the_root = write(house.folder, "of-the-root", house.operators.issue("bob"))
    async with serving(house.context(ca="below.pem")) as port:
        assert (await ask(port, house.client(own)))["subject"] == "CN=carol,O=Example"
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await ask(port, house.client(of_the_root))


@pytest.mark.parametrize("content", [None, b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_ca_that_cannot_be_loaded_is_said(house: House, tmp_path: Path, content: bytes | None) -> None:
    ca, server = tmp_path / "ca.pem", house.folder / "server.pem"
    if content is not None:
        ca.write_bytes(content)
    with pytest.raises(ConfigurationError, match="CA of operators") as refused:
        server_context(server, server, "1.3", ca)
    assert "KMS_OPERATOR_CA" in refused.value.remedy
