"""What TLS keeps to itself, sent without an end: a fetch still ends at its deadline."""

import hmac
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from hashlib import sha384
from itertools import repeat
from pathlib import Path
from typing import Final, Protocol

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from kms.guest.errors import ServerUntrusted
from kms.guest.transport import Connection, NoAnswer
from tests.certificates import SERVER, Authority, pem, write
from tests.unit.guest.slow_servers import serving

pytestmark = pytest.mark.enable_socket

DEADLINE = 2.0  # seconds
AT_MOST = 10.0  # on a machine that is busy
FLOOD = 20.0  # longer than that
HANDSHAKE, DATA = 22, 23  # content types of records (RFC 8446, section 5.1)
LONGEST = 16000  # bytes of a record, or a little more


def message(kind: int, content: bytes = b"") -> bytes:
    """Frame a handshake message (RFC 8446, section 4)."""
    return bytes([kind]) + len(content).to_bytes(3) + content


# NewSessionTicket (RFC 8446, section 4.6.1): lifetime, age, nonce, ticket, extensions.
TICKET: Final = message(4, bytes(4) + bytes(4) + b"\1\0" + b"\0\1t" + b"\0\0")
KEY_UPDATE: Final = message(24, b"\1")  # and the client is to update its own (section 4.6.3)
HELLO_REQUEST: Final = message(0)  # TLS 1.2 (RFC 5246, section 7.4.1.1)


class Records(Protocol):
    def seal(self, kind: int, content: bytes) -> bytes: ...


class Records13:
    """Records of a TLS 1.3 server with TLS_AES_256_GCM_SHA384, after the handshake."""

    def __init__(self, secret: bytes) -> None:
        self._use(secret)

    def seal(self, kind: int, content: bytes) -> bytes:
        head = b"\x17\x03\x03" + (len(content) + 17).to_bytes(2)
        nonce = (self._iv ^ self._count).to_bytes(12)
        self._count += 1
        return head + self._key.encrypt(nonce, content + bytes([kind]), head)

    def update(self) -> None:
        self._use(self._expand("traffic upd", 48))

    def _use(self, secret: bytes) -> None:
        self._secret = secret
        self._key = AESGCM(self._expand("key", 32))
        self._iv = int.from_bytes(self._expand("iv", 12))
        self._count = 0

    def _expand(self, name: str, length: int) -> bytes:
        label = f"tls13 {name}".encode()
        info = length.to_bytes(2) + bytes([len(label)]) + label + b"\0"
        return HKDFExpand(SHA384(), length, info).derive(self._secret)


class Records12:
    """Records of a TLS 1.2 server with AES-256-GCM and SHA-384, after the handshake."""

    def __init__(self, master: bytes, client_random: bytes, server_random: bytes) -> None:
        seed = b"key expansion" + server_random + client_random
        block, step = b"", seed
        while len(block) < 72:
            step = hmac.digest(master, step, sha384)
            block += hmac.digest(master, step + seed, sha384)
        self._key, self._salt = AESGCM(block[32:64]), block[68:72]
        self._count = 1  # its Finished was the first

    def seal(self, kind: int, content: bytes) -> bytes:
        count = self._count.to_bytes(8)
        self._count += 1
        head = bytes([kind]) + b"\3\3"
        sealed = self._key.encrypt(self._salt + count, content, count + head + len(content).to_bytes(2))
        return head + (8 + len(sealed)).to_bytes(2) + count + sealed


class FloodingServer:
    """Shakes hands genuinely, with OpenSSL, and then sends what `flood` makes of the connection's keys."""

    def __init__(self, tls: ssl.SSLContext, flood: Callable[[Records], Iterator[bytes]]) -> None:
        self._tls = tls
        self._flood = flood
        self.sent = 0  # bytes

    def __call__(self, connection: socket.socket, _: ssl.SSLContext, __: threading.Event) -> None:
        records = self._shake_hands(connection)
        end = time.monotonic() + FLOOD
        for each in self._flood(records):
            connection.sendall(each)
            self.sent += len(each)
            if time.monotonic() > end:
                return

    def _shake_hands(self, connection: socket.socket) -> Records:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = self._tls.wrap_bio(incoming, outgoing, server_side=True)
        hello = b""
        while True:
            try:
                server.do_handshake()
            except ssl.SSLWantReadError:
                said = outgoing.read()
                hello = hello or said
                connection.sendall(said)
                incoming.write(connection.recv(65536))
            else:
                break
        connection.sendall(outgoing.read())
        lines = map(str.split, Path(self._tls.keylog_filename).read_text().splitlines()[1:])
        secrets = {name: (bytes.fromhex(random), bytes.fromhex(secret)) for name, random, secret in lines}
        if server.version() == "TLSv1.3":
            return Records13(secrets["SERVER_TRAFFIC_SECRET_0"][1])
        client_random, master = secrets["CLIENT_RANDOM"]
        return Records12(master, client_random, hello[11:43])


@pytest.fixture
def tls(authority: Authority, tmp_path: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(write(tmp_path, "server", authority.issue("server", usages=[SERVER])))
    context.keylog_filename = str(tmp_path / "secrets")
    context.num_tickets = 0
    return context


def tickets(records: Records) -> Iterator[bytes]:
    many = TICKET * (LONGEST // len(TICKET))
    for _ in repeat(None):
        yield b"".join(records.seal(HANDSHAKE, many) for _ in range(16))


def key_updates(records: Records) -> Iterator[bytes]:
    assert isinstance(records, Records13)
    for _ in repeat(None):
        part = b""
        for _ in range(100):
            part += records.seal(HANDSHAKE, KEY_UPDATE)
            records.update()
        yield part


def empty_records(records: Records) -> Iterator[bytes]:
    for _ in repeat(None):
        yield b"".join(records.seal(DATA, b"") for _ in range(100))


def tickets_and_empty_records(records: Records) -> Iterator[bytes]:
    for _ in repeat(None):
        yield b"".join(records.seal(DATA, b"") + records.seal(HANDSHAKE, TICKET * 100) for _ in range(100))


def hello_requests(records: Records) -> Iterator[bytes]:
    many = HELLO_REQUEST * (LONGEST // len(HELLO_REQUEST))
    for _ in repeat(None):
        yield b"".join(records.seal(HANDSHAKE, many) for _ in range(16))


@pytest.mark.parametrize("flood", [tickets, key_updates, tickets_and_empty_records, empty_records])
def test_the_deadline_holds_against_tls_13(
    tls: ssl.SSLContext, ca: Path, flood: Callable[[Records], Iterator[bytes]]
) -> None:
    ends_at_its_deadline(FloodingServer(tls, flood), ca, by_itself=flood is empty_records)


def test_the_deadline_holds_against_requests_to_shake_hands_again(tls: ssl.SSLContext, ca: Path) -> None:
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    tls.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
    ends_at_its_deadline(FloodingServer(tls, hello_requests), ca)


def ends_at_its_deadline(server: FloodingServer, ca: Path, *, by_itself: bool = False) -> None:
    """It ends then, and not before because of an error; `by_itself`: OpenSSL does not bear it at all."""
    with serving(server, server._tls) as url, Connection(url, ca_file=ca, timeout=60) as connection:
        began = time.monotonic()
        with pytest.raises(NoAnswer, match=None if by_itself else "in time"):
            connection.get("/", remaining=lambda: began + DEADLINE - time.monotonic())
        assert time.monotonic() - began < AT_MOST
    assert server.sent > 0


@pytest.mark.parametrize("with_tls_end", [True, False])
def test_a_large_answer_arrives_whole(server_tls: ssl.SSLContext, ca: Path, *, with_tls_end: bool) -> None:
    body = bytes(range(256)) * 8000  # 2 MB

    def serve(connection: socket.socket, tls: ssl.SSLContext, _: threading.Event) -> None:
        with closing(tls.wrap_socket(connection, server_side=True)) as server:
            server.recv(65536)
            # Without a length: its end is the connection's.
            server.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body)
            if with_tls_end:
                server.unwrap()

    with serving(serve, server_tls) as url, Connection(url, ca_file=ca, timeout=60) as connection:
        assert connection.get("/", remaining=lambda: 60.0).body == body


def test_a_server_is_told_why_its_certificate_is_refused(server_tls: ssl.SSLContext, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_text(pem(Authority("another CA", now=datetime.now(UTC)).certificate))
    told: list[str] = []

    def serve(connection: socket.socket, tls: ssl.SSLContext, _: threading.Event) -> None:
        try:
            tls.wrap_socket(connection, server_side=True).close()
        except ssl.SSLError as error:
            told.append(error.reason)

    with (
        serving(serve, server_tls) as url,
        Connection(url, ca_file=other, timeout=60) as connection,
        pytest.raises(ServerUntrusted),
    ):
        connection.get("/", remaining=lambda: 60.0)
    assert told == ["TLSV1_ALERT_UNKNOWN_CA"]
