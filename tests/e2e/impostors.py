"""Who a guest may meet in the place of its KMS, behind the same TLS CA: an impostor, and one who relays.

The impostor is a genuine server with another root, and so another identity. The relay sits between guest and
KMS, reads what passes, and answers with what the KMS said to somebody else, or long ago.
"""

import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final, TypeAlias

import httpx2
from typing_extensions import override

from kms.encoding import from_base64
from tests.certificates import SERVER, Authority, pem, write
from tests.conformance.own_server import Server

_WITHIN: Final = 30.0  # seconds, for an answer of a real server
Answer: TypeAlias = Callable[[str, bytes], tuple[int, bytes]]  # path and body -> status and body


class TlsWorld:
    """One CA, and what it certifies."""

    def __init__(self, folder: Path) -> None:
        self._authority = Authority("Fleet CA", now=datetime.now(UTC))
        self._folder = folder
        self.ca = folder / "ca.pem"
        self.ca.write_text(pem(self._authority.certificate))

    def certified(self, name: str) -> Path:
        """Give a server's certificate and key for 127.0.0.1, in one PEM file."""
        path = write(self._folder, name, self._authority.issue(name, usages=[SERVER]))
        path.chmod(0o600)
        return path

    def server(self, name: str, settings: Mapping[str, str]) -> Server:
        """Give a server of this CA that is not waited for yet, with a root of its own."""
        data_dir, tls = self._folder / name / "data", str(self.certified(name))
        # Where tests look for the CA that a server makes itself.
        (data_dir / "tls").mkdir(parents=True, mode=0o700)
        data_dir.chmod(0o700)
        (data_dir / "tls" / "ca.pem").write_bytes(self.ca.read_bytes())
        return Server(data_dir, {**settings, "KMS_TLS_CERT": tls, "KMS_TLS_KEY": tls})


def identity_of(server: Server) -> bytes:
    trust = ssl.create_default_context(cafile=str(server.ca))
    answer = httpx2.get(f"{server.url}/v1/identity", verify=trust, trust_env=False, timeout=_WITHIN)
    return from_base64(answer.json()["identity"])


@contextmanager
def answering(answer: Answer, tls: Path, *, retry_after: int | None = None) -> Iterator[str]:
    """Answer what is posted, over TLS with this certificate and key; give the URL.

    With `retry_after`, in seconds, every answer says so.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            status, body = answer(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if retry_after is not None:
                self.send_header("Retry-After", str(retry_after))
            self.end_headers()
            self.wfile.write(body)

        @override
        def log_message(self, format: str, *arguments: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        try:
            yield f"https://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            serving.join()


class Relay:
    """Passes on what guests ask, and keeps the answers; `answer` is for `answering`.

    Once `replayed` is set, a release is answered with that.
    """

    def __init__(self, behind: Server) -> None:
        self._behind = behind
        self._trust = ssl.create_default_context(cafile=str(behind.ca))
        self.released: list[bytes] = []
        self.replayed: bytes | None = None

    def answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        release = path == "/v1/releases"
        if release and self.replayed is not None:
            return 200, self.replayed
        headers = {"Content-Type": "application/json"}
        answer = httpx2.post(
            self._behind.url + path,
            content=body,
            headers=headers,
            verify=self._trust,
            trust_env=False,
            timeout=_WITHIN,
        )
        if release and answer.status_code == 200:
            self.released.append(answer.content)
        return answer.status_code, answer.content
