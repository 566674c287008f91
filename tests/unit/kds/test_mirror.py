"""The mirror over its ASGI interface: AMD's paths, what is stored, and nothing else."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from kms.database.collateral import CollateralDatabase
from kms.errors import LedgerUnavailable
from kms.identifiers import ChipId
from kms.kds.importing import import_paths
from kms.kds.mirror import create_mirror
from kms.ports import StoredCertificate
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.endorsement import load_pem
from kms.snp.kds_paths import VcekOf
from kms.snp.product import Product
from tests.unit.kds.stock import DAY, Amd, open_store, write
from tests.world import NOW


@dataclass
class Mirror:
    amd: Amd
    store: CollateralDatabase
    client: httpx2.AsyncClient
    folder: Path

    async def keep(self, **files: bytes) -> None:
        for name, data in files.items():
            write(self.folder, {name: data})
            report = await import_paths([self.folder / name], self.store, self.amd.roots, NOW)
            assert not report.refused

    async def get(self, path: str, method: str = "GET") -> httpx2.Response:
        return await self.client.request(method, path)


@pytest.fixture
async def mirror(
    simulated_hierarchies: Mapping[Product, AmdHierarchy], tmp_path: Path
) -> AsyncIterator[Mirror]:
    async with open_store(tmp_path / "database") as store:
        transport = httpx2.ASGITransport(app=create_mirror(store))
        async with httpx2.AsyncClient(transport=transport, base_url="http://mirror") as client:
            yield Mirror(Amd(simulated_hierarchies[Product.MILAN]), store, client, tmp_path / "files")


def path_of(amd: Amd, seed: bytes = b"chip", **levels: int) -> str:
    return VcekOf(amd.product, amd.chip_id(seed), amd.tcb(**levels)).path


async def test_a_vcek(mirror: Mirror) -> None:
    amd = mirror.amd
    vcek = amd.vcek()
    await mirror.keep(chain=amd.chain, vcek=vcek, older=amd.vcek(snp=1))
    answer = await mirror.get(path_of(amd))
    assert (answer.status_code, answer.content) == (200, vcek)
    assert answer.headers["content-type"] == "application/pkix-cert"
    assert answer.headers["cache-control"] == "public, max-age=86400"
    # As others write the same question.
    assert (await mirror.get(path_of(amd).replace("=0", "="))).content == vcek
    upper = path_of(amd).replace(amd.chip_id().hex(), amd.chip_id().hex().upper())
    assert (await mirror.get(upper)).content == vcek


async def test_a_turin_vcek(simulated_hierarchies: Mapping[Product, AmdHierarchy], tmp_path: Path) -> None:
    amd = Amd(simulated_hierarchies[Product.TURIN])
    async with open_store(tmp_path / "database") as store:
        transport = httpx2.ASGITransport(app=create_mirror(store))
        async with httpx2.AsyncClient(transport=transport, base_url="http://mirror") as client:
            mirror = Mirror(amd, store, client, tmp_path / "files")
            vcek = amd.vcek()
            await mirror.keep(chain=amd.chain, vcek=vcek)
            assert f"/{amd.chip_id().hex()[:16]}?fmcSPL=" in path_of(amd)
            assert (await mirror.get(path_of(amd))).content == vcek


async def test_chains(mirror: Mirror) -> None:
    hierarchy = mirror.amd.hierarchy
    await mirror.keep(ark=hierarchy.ark.certificate)
    assert (await mirror.get("/vcek/v1/Milan/cert_chain")).status_code == 404
    await mirror.keep(ask=hierarchy.ask.certificate, asvk=hierarchy.asvk.certificate)
    for kind, authority in {"vcek": hierarchy.ask, "vlek": hierarchy.asvk}.items():
        answer = await mirror.get(f"/{kind}/v1/Milan/cert_chain")
        assert answer.headers["content-type"] == "application/x-pem-file"
        found = [each.der for each in load_pem(answer.content)]
        assert found == [authority.certificate, hierarchy.ark.certificate]


async def test_revocation_lists(mirror: Mirror) -> None:
    amd = mirror.amd
    of_vcek, of_vlek = amd.crl(number=1), amd.crl(number=2)
    await mirror.keep(chain=amd.chain, vcek_crl=of_vcek, vlek_crl=of_vlek)
    for kind, expected in {"vcek": of_vcek, "vlek": of_vlek}.items():
        answer = await mirror.get(f"/{kind}/v1/Milan/crl")
        assert answer.content == expected
        assert answer.headers["content-type"] == "application/pkix-crl"
        assert answer.headers["cache-control"] == "public, max-age=3600"


async def test_the_certificate_that_lives_longest(mirror: Mirror) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    short, long = (mirror.amd.vcek(key=key, not_after=NOW + days * DAY) for days in (100, 2000))
    await mirror.keep(chain=mirror.amd.chain, short=short, long=long)
    assert (await mirror.get(path_of(mirror.amd))).content == long


async def test_head_is_get_without_its_body(mirror: Mirror) -> None:
    await mirror.keep(chain=mirror.amd.chain, vcek=mirror.amd.vcek())
    for path in (path_of(mirror.amd), "/vcek/v1/Milan/cert_chain", "/vcek/v1/Milan/crl"):
        get, head = await mirror.get(path), await mirror.get(path, "HEAD")
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers == get.headers


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/vcek",
        "/vcek/v1/Milan",
        "/vcek/v1/Milan/",
        "/vcek/v1/Rome/cert_chain",
        "/vcek/v1/milan/cert_chain",
        "/VCEK/v1/Milan/cert_chain",
        "/vcek/v2/Milan/cert_chain",
        "/vcek/v1/Milan/cert_chain/",
        "/vcek/v1/Milan/cert_chain?x=1",
        "//vcek/v1/Milan/cert_chain",
        "/vcek/v1/Genoa/cert_chain",
        "/vlek/v1/Milan/cert?blSPL=04&teeSPL=00&snpSPL=24&ucodeSPL=219",
        "/vcek/v1/Milan/../Milan/crl/../x",
        "/vcek/v1/Milan/%2e%2e%2fcert_chain",
        "/{chip}",
        "/vcek/v1/Milan/{chip}",
        "/vcek/v1/Milan/{chip}?{query}&blSPL=04",
        "/vcek/v1/Milan/{chip}?{query}&fmcSPL=00",
        "/vcek/v1/Milan/{chip}?{query}&" + "x" * 300,
        "/vcek/v1/Genoa/{chip}?{query}",
        "/vcek/v1/Milan/{chip}00?{query}",
        "/vcek/v1/Milan/" + "00" * 64 + "?{query}",
        "/vlek/v1/Milan/{chip}?{query}",
    ],
)
async def test_nothing_else_is_there(mirror: Mirror, path: str) -> None:
    amd = mirror.amd
    await mirror.keep(chain=amd.chain, vcek=amd.vcek())
    query = path_of(amd).partition("?")[2]
    answer = await mirror.get(path.format(chip=amd.chip_id().hex(), query=query))
    assert (answer.status_code, answer.content) == (404, b"")
    assert answer.headers["cache-control"] == "no-store"


async def test_another_tcb_or_chip_is_not_there(mirror: Mirror) -> None:
    amd = mirror.amd
    await mirror.keep(chain=amd.chain, vcek=amd.vcek())
    assert (await mirror.get(path_of(amd))).status_code == 200
    assert (await mirror.get(path_of(amd, snp=1))).status_code == 404
    assert (await mirror.get(path_of(amd, b"another"))).status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_it_only_reads(mirror: Mirror, method: str) -> None:
    answer = await mirror.get("/vcek/v1/Milan/cert_chain", method)
    assert (answer.status_code, answer.content) == (405, b"")
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}


async def test_a_body_is_not_read(mirror: Mirror) -> None:
    await mirror.keep(chain=mirror.amd.chain)

    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"

    for body in (b"x", chunks()):
        answer = await mirror.client.request("GET", "/vcek/v1/Milan/cert_chain", content=body)
        assert (answer.status_code, answer.headers["connection"]) == (413, "close")


async def test_a_store_that_does_not_answer(mirror: Mirror) -> None:
    class Broken:
        async def authorities(self) -> tuple[StoredCertificate, ...]:
            raise LedgerUnavailable("the database is locked", retry_after=7)

        async def revocation_lists(self) -> tuple[()]:
            return ()

        async def vceks(self, product: Product | None, chip_id: ChipId) -> tuple[StoredCertificate, ...]:
            return ()

    transport = httpx2.ASGITransport(app=create_mirror(Broken()))
    async with httpx2.AsyncClient(transport=transport, base_url="http://mirror") as client:
        answer = await client.get("/vcek/v1/Milan/cert_chain")
    assert (answer.status_code, answer.headers["retry-after"], answer.content) == (503, "7", b"")
