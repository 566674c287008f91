"""A key distribution service of its own, so that no test asks AMD's."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from typing_extensions import override

from tests.conformance.own_authority import Authority, Chip
from tests.conformance.own_certificate import pem

PARAMETERS = ("fmcSPL", "blSPL", "teeSPL", "snpSPL", "ucodeSPL")


@dataclass(slots=True)
class Shelf:
    """What the service knows; tests may change it while it runs."""

    authorities: Mapping[str, Authority]
    chips: Mapping[str, Chip]  # served, by name
    broken: Mapping[str, Chip]  # asked for: 500
    crls: dict[str, bytes] = field(default_factory=dict)  # by product
    asked: list[str] = field(default_factory=list)

    def answer(self, path: str, query: Mapping[str, str]) -> tuple[int, bytes]:
        """Return status and body for a GET."""
        self.asked.append(path)
        match path.strip("/").split("/"):
            case ["vcek", "v1", product, "cert_chain"] if product in self.authorities:
                authority = self.authorities[product]
                return 200, (pem(authority.ask) + pem(authority.ark)).encode()
            case ["vlek", "v1", product, "cert_chain"] if product in self.authorities:
                authority = self.authorities[product]
                return 200, (pem(authority.asvk) + pem(authority.ark)).encode()
            case ["vcek" | "vlek", "v1", product, "crl"] if product in self.crls:
                return 200, self.crls[product]
            case ["vcek", "v1", product, hardware_id]:
                return self._vcek(product, hardware_id.lower(), query)
            case _:
                return 404, b"Not Found"

    def _vcek(self, product: str, hardware_id: str, query: Mapping[str, str]) -> tuple[int, bytes]:
        if any(chip.hardware_id.hex() == hardware_id for chip in self.broken.values()):
            return 500, b"Internal Server Error"
        for chip in self.chips.values():
            tcb = chip.product.tcb
            numbers = (tcb.fmc, tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode)
            expected = dict(zip(PARAMETERS, numbers, strict=True))
            if not chip.product.turin:
                del expected["fmcSPL"]
            known = chip.product.name == product and chip.hardware_id.hex() == hardware_id
            if known and {name: int(value) for name, value in query.items()} == expected:
                return 200, chip.genuine_vcek
        return 404, b"Not Found"


@contextmanager
def serving(shelf: Shelf) -> Iterator[str]:
    """Serve the shelf over HTTP; yield the base URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            try:
                status, body = shelf.answer(url.path, dict(parse_qsl(url.query)))
            except ValueError:
                status, body = 400, b"Bad Request"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        @override
        def log_message(self, format: str, *args: object) -> None:
            """Keep the test output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
