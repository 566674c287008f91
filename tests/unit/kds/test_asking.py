"""What comes back over HTTP, and what of it is believed."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace

import httpx2
import pytest
from structlog.testing import capture_logs
from typing_extensions import override

from kms import __version__
from kms.errors import CollateralUnavailable, ConfigurationError
from kms.kds.asking import Answer, Body, Failed, KdsHttp, Missing, Throttled
from kms.kds.client import KdsClient
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.kds_paths import ChainOf
from kms.snp.product import Product
from tests.unit.kds.scene import MILAN, OTHER_URL, START, URL, Scene, report_of, wanted_of
from tests.unit.kds.virtual_time import in_virtual_time, now

Hierarchies = Mapping[Product, AmdHierarchy]
GUEST = "192.0.2.1"


class Pieces(httpx2.AsyncByteStream):
    """A body in pieces, with pauses before each, that may break off."""

    def __init__(self, piece: bytes, count: int, pause: float = 0.0, error: Exception | None = None) -> None:
        self.piece, self.count, self.pause, self.error = piece, count, pause, error
        self.sent = 0

    @override
    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self.count):
            await asyncio.sleep(self.pause)
            self.sent += 1
            yield self.piece
        if self.error is not None:
            raise self.error


async def get(response: httpx2.Response | Exception | Callable[[], None], most: int = 1_000) -> Answer:
    async def answer(_: httpx2.Request) -> httpx2.Response:
        if isinstance(response, Exception):
            raise response
        if not isinstance(response, httpx2.Response):
            await asyncio.sleep(3_600)
            raise TypeError
        return response

    http = KdsHttp(lambda: START, transport=httpx2.MockTransport(answer))
    try:
        return await http.get(URL + "/x", most=most)
    finally:
        await http.close()


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (httpx2.Response(200, content=b"x" * 1_000), Body(b"x" * 1_000)),
        (httpx2.Response(200, content=b"x" * 1_001), Failed("too-large")),
        (httpx2.Response(200, stream=Pieces(b"x" * 1_000, 1_000_000)), Failed("too-large")),
        (httpx2.Response(200, content=b""), Failed("empty")),
        (httpx2.Response(200, content=b"x", headers={"Content-Encoding": "br"}), Failed("compressed")),
        (httpx2.Response(204), Failed("status-204")),
        (httpx2.Response(206, content=b"x"), Failed("status-206")),
        (httpx2.Response(404, content=b"x" * 5_000), Missing()),
        (httpx2.Response(400), Failed("status-400", healthy=True)),
        (httpx2.Response(401), Failed("status-401")),
        (httpx2.Response(403), Failed("status-403")),
        (httpx2.Response(410), Failed("status-410")),
        (httpx2.Response(429, headers={"Retry-After": "7"}), Throttled(7.0)),
        (httpx2.Response(429), Throttled(10.0)),
        (httpx2.Response(500, headers={"Retry-After": "7"}), Failed("status-500")),
        (httpx2.Response(503), Failed("status-503")),
        (httpx2.Response(503, headers={"Retry-After": "7"}), Failed("status-503", hold=7.0)),
        (httpx2.Response(302, headers={"Location": "https://elsewhere.test/"}), Failed("redirect")),
        (httpx2.Response(301, headers={"Location": "/"}), Failed("redirect")),
        (httpx2.ConnectError("refused"), Failed("connection")),
        (httpx2.RemoteProtocolError("cut"), Failed("connection")),
        (httpx2.ConnectTimeout("slow"), Failed("timeout")),
        (OSError("gone"), Failed("connection")),
        (
            httpx2.Response(200, stream=Pieces(b"x", 3, error=httpx2.ReadError("cut"))),
            Failed("connection"),
        ),
    ],
    ids=str,
)
def test_answers(response: httpx2.Response | Exception, answer: Answer) -> None:
    @in_virtual_time
    async def check() -> None:
        assert await get(response) == answer

    check()


@in_virtual_time
async def test_a_certificate_that_does_not_verify_is_said() -> None:
    error = httpx2.ConnectError("x")
    error.__cause__ = ssl.SSLCertVerificationError("self-signed certificate")
    assert await get(error) == Failed("tls-untrusted")


@in_virtual_time
async def test_a_body_that_drips_ends_with_the_deadline() -> None:
    body = Pieces(b"x", 900, pause=1.0)
    began = now()
    assert await get(httpx2.Response(200, stream=body)) == Failed("timeout")
    assert now() - began == pytest.approx(10.0, abs=0.01)
    assert body.sent < 11


@in_virtual_time
async def test_a_service_that_is_silent_ends_with_the_deadline() -> None:
    began = now()
    assert await get(lambda: None) == Failed("timeout")
    assert now() - began == pytest.approx(10.0, abs=0.01)


@in_virtual_time
async def test_what_we_send() -> None:
    seen: list[httpx2.Request] = []

    async def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(404, headers={"Set-Cookie": "tracked=1"})

    http = KdsHttp(lambda: START, transport=httpx2.MockTransport(answer))
    for _ in range(2):
        await http.get(URL + "/vcek/v1/Milan/00?blSPL=04", most=1)
    await http.close()
    for request in seen:
        assert request.method == "GET"
        assert str(request.url) == "https://kds.test/vcek/v1/Milan/00?blSPL=04"
        assert request.headers["User-Agent"] == f"attested-kms/{__version__}"
        assert request.headers["Accept-Encoding"] == "identity"
        assert "Cookie" not in request.headers
        assert "Authorization" not in request.headers


@pytest.mark.parametrize(
    "url",
    [
        "kdsintf.amd.com",
        "ftp://kds.test",
        "https://",
        "https://user:secret@kds.test",
        "https://kds.test/?x=1",
        "https://kds.test/#x",
        "https://kds.test:port",
        "http://[::1",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as told:
        KdsClient([url], clock=lambda: START)
    assert "secret" not in str(told.value)


def test_no_url_is_an_error_and_a_double_one_is_one() -> None:
    with pytest.raises(ConfigurationError):
        KdsClient([], clock=lambda: START)
    client = KdsClient([URL, URL + "/", OTHER_URL], clock=lambda: START)
    assert [each.url for each in client.status()] == [URL, OTHER_URL]


def other_chip(scene: Scene, own: bytes) -> bytes:
    return scene.chip(99).certificates()[0]


def other_root(scene: Scene, own: bytes) -> bytes:
    chip = replace(scene.chips[0], hierarchy=AmdHierarchy.generate(Product.MILAN, now=START, rsa_bits=2048))
    return chip.certificates()[0]


def other_tcb(scene: Scene, own: bytes) -> bytes:
    chip = scene.chips[0]
    return replace(chip, reported_tcb=replace(chip.reported_tcb, snp=1)).certificates()[0]


def changed(scene: Scene, own: bytes) -> bytes:
    return own[:-1] + bytes([own[-1] ^ 1])


@pytest.mark.parametrize(
    ("answer", "failure", "healthy"),
    [
        (other_chip, "wrong-certificate", True),
        (other_tcb, "wrong-certificate", True),
        (other_root, "unverified", False),
        (changed, "unverified", False),
        (lambda _, own: own[:-1], "unreadable", False),
        (lambda *_: b"<html>maintenance</html>", "unreadable", False),
        (lambda scene, _: scene.hierarchies[Product.MILAN].ask.certificate, "wrong-certificate", True),
        (lambda scene, _: scene.hierarchies[Product.MILAN].ark.pem, "wrong-certificate", True),
    ],
    ids=["chip", "tcb", "root", "signature", "cut", "html", "authority", "ark"],
)
def test_what_does_not_verify_is_not_kept_and_the_next_service_is_asked(
    simulated_hierarchies: Hierarchies,
    answer: Callable[[Scene, bytes], bytes],
    failure: str,
    *,
    healthy: bool,
) -> None:
    @in_virtual_time
    async def check() -> None:
        scene = Scene(simulated_hierarchies)

        async def lie(request: httpx2.Request) -> httpx2.Response:
            own = scene.kds.body(request)
            if own is None or request.url.host != "kds.test" or "SPL=" not in str(request.url):
                return await scene.kds.genuine(request)
            return httpx2.Response(200, content=answer(scene, own))

        scene.kds.answer = lie
        chip = scene.chips[0]
        async with scene.service(URL, OTHER_URL) as service:
            with capture_logs() as logs:
                await service.fetch(wanted_of(chip), GUEST)
            [leaf] = await service.leaves(report_of(chip))
            assert leaf.der == chip.certificates()[0]
            assert len(scene.store.certificates) == 3
            failed = [line for line in logs if line["event"] == "collateral-failed"]
            assert {(line["host"], line["failure"]) for line in failed} == {("kds.test", failure)}
            liar = service.status().services[0]
            assert (liar.last_failure_kind is None) == healthy

    check()


@in_virtual_time
async def test_wrong_genuine_certificates_open_no_breaker(simulated_hierarchies: Hierarchies) -> None:
    scene = Scene(simulated_hierarchies)

    async def lie(request: httpx2.Request) -> httpx2.Response:
        if "SPL=" not in str(request.url):
            return await scene.kds.genuine(request)
        return httpx2.Response(200, content=other_chip(scene, b""))

    scene.kds.answer = lie
    async with scene.service(URL) as service:
        for _ in range(5):
            with pytest.raises(CollateralUnavailable):
                await service.fetch(wanted_of(scene.chips[0]), GUEST)
        assert len(scene.kds.vceks_asked()) == 10
        assert scene.store.leaves() == []


@pytest.mark.parametrize("what", ["another root", "only the ark", "another line", "garbage", "reversed"])
def test_chains(simulated_hierarchies: Hierarchies, what: str) -> None:
    @in_virtual_time
    async def check() -> None:
        scene = Scene(simulated_hierarchies)
        milan, genoa = simulated_hierarchies[Product.MILAN], simulated_hierarchies[Product.GENOA]
        stranger = AmdHierarchy.generate(Product.MILAN, now=START, rsa_bits=2048)
        body = {
            "another root": stranger.ask.pem + stranger.ark.pem,
            "only the ark": milan.ark.pem,
            "another line": genoa.ask.pem + genoa.ark.pem,
            "garbage": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "reversed": stranger.ask.pem + milan.ark.pem + milan.ask.pem,
        }[what]

        async def answer(_: httpx2.Request) -> httpx2.Response:
            return httpx2.Response(200, content=body)

        scene.kds.answer = answer
        async with scene.service(URL) as service:
            if what == "reversed":
                await service.fetch(ChainOf(MILAN), GUEST)
                assert {each.certificate.der for each in scene.store.certificates.values()} == {
                    milan.ask.certificate,
                    milan.ark.certificate,
                }
            else:
                with pytest.raises(CollateralUnavailable):
                    await service.fetch(ChainOf(MILAN), GUEST)
                assert scene.store.certificates == {}
                assert await service.authorities() == ()

    check()


@in_virtual_time
async def test_400_says_nothing_against_a_service_nor_that_a_chip_is_unknown(
    simulated_hierarchies: Hierarchies,
) -> None:
    scene = Scene(simulated_hierarchies)

    async def answer(request: httpx2.Request) -> httpx2.Response:
        if "SPL=" in str(request.url):
            return httpx2.Response(400)
        return await scene.kds.genuine(request)

    scene.kds.answer = answer
    async with scene.service(URL) as service:
        for _ in range(5):
            with pytest.raises(CollateralUnavailable):
                await service.fetch(wanted_of(scene.chips[0]), GUEST)
        assert len(scene.kds.vceks_asked()) == 10
