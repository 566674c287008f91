"""Bundles: one file, the same for the same store, that any tar opens and that comes back equal."""

import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from kms.database.collateral import CollateralDatabase
from kms.kds.bundle import read_bundle, write_bundle
from kms.kds.importing import import_paths
from kms.kds.judging import Judge
from kms.kds.pieces import Piece
from kms.ports import StoredCertificate
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.endorsement import load_der
from kms.snp.product import Product
from kms.snp.roots import TrustedRoots
from tests.unit.kds.stock import DAY, Amd, open_store, write
from tests.world import NOW

Hierarchies = Mapping[Product, AmdHierarchy]


@pytest.fixture
def fleet(simulated_hierarchies: Hierarchies) -> list[Amd]:
    return [Amd(hierarchy) for hierarchy in simulated_hierarchies.values()]


def roots(fleet: list[Amd]) -> TrustedRoots:
    pins = {pin: product for amd in fleet for pin, product in amd.roots.pins.items()}
    return TrustedRoots(pins=pins)


def files(fleet: list[Amd]) -> dict[str, bytes]:
    """Give chains, lists of both lines, VCEKs at two TCBs, and VLEKs of two providers, of each product."""
    found: dict[str, bytes] = {}
    for amd in fleet:
        name = amd.product.value
        found |= {
            f"{name}/chain.pem": amd.chain + amd.hierarchy.asvk.pem,
            f"{name}/vcek.crl": amd.crl(number=3),
            f"{name}/vlek.crl": amd.crl(number=4),
            f"{name}/1.der": amd.vcek(),
            f"{name}/2.der": amd.vcek(snp=1),
            f"{name}/3.der": amd.vlek(),
            f"{name}/4.der": amd.vlek("other.example"),
        }
    return found


async def bundled(store: CollateralDatabase) -> bytes:
    made = BytesIO()
    write_bundle(made, await store.all_certificates(), await store.revocation_lists())
    return made.getvalue()


async def test_there_and_back(fleet: list[Amd], tmp_path: Path) -> None:
    write(tmp_path / "files", files(fleet))
    async with open_store(tmp_path / "here") as here, open_store(tmp_path / "there") as there:
        report = await import_paths([tmp_path / "files"], here, roots(fleet), NOW)
        assert (report.certificates, report.lists, report.refused) == (21, 6, ())
        bundle = await bundled(here)
        write(tmp_path, {"bundle.tar": bundle})
        report = await import_paths([tmp_path / "bundle.tar"], there, roots(fleet), NOW)
        assert (report.certificates, report.lists, report.new) == (21, 6, 27)
        assert not report.refused + report.unreadable
        for method in ("all_certificates", "revocation_lists"):
            assert [replace(each, source="") for each in await getattr(here, method)()] == [
                replace(each, source="") for each in await getattr(there, method)()
            ]
        assert await bundled(there) == bundle


async def test_the_same_store_gives_the_same_bytes(fleet: list[Amd], tmp_path: Path) -> None:
    write(tmp_path / "files", files(fleet))
    async with open_store(tmp_path / "database") as store:
        await import_paths([tmp_path / "files"], store, roots(fleet), NOW)
        certificates, lists = await store.all_certificates(), await store.revocation_lists()
        one, other = BytesIO(), BytesIO()
        write_bundle(one, certificates, lists)
        write_bundle(other, certificates[::-1], lists[::-1])
        assert one.getvalue() == other.getvalue()


async def test_its_names(simulated_hierarchies: Hierarchies, tmp_path: Path) -> None:
    """AMD's paths, and in a chip's folder Trustee's names."""
    milan, turin = (Amd(simulated_hierarchies[each]) for each in (Product.MILAN, Product.TURIN))
    write(
        tmp_path / "files",
        {
            "chain": milan.chain + turin.chain + milan.hierarchy.asvk.pem,
            "vcek.crl": milan.crl(),
            "1": milan.vcek(bootloader=4, tee=0, snp=24, microcode=219),
            "2": turin.vcek(fmc=1, bootloader=1, tee=1, snp=4, microcode=81),
            "3": milan.vlek(),
        },
    )
    async with open_store(tmp_path / "database") as store:
        await import_paths([tmp_path / "files"], store, roots([milan, turin]), NOW)
        [stored] = await store.vleks(None, None)
        with tarfile.open(fileobj=BytesIO(await bundled(store))) as archive:
            members = archive.getmembers()
    levels = "bl{:02}_tee{:02}_snp{:02}_ucode{:02}".format(*milan.tcb().components().values())
    assert [each.name for each in members] == sorted(
        [
            "vcek/v1/Milan/cert_chain",
            "vcek/v1/Milan/crl",
            f"vcek/v1/Milan/{milan.chip_id().hex()}/bl04_tee00_snp24_ucode219_vcek.der",
            "vcek/v1/Turin/cert_chain",
            f"vcek/v1/Turin/{turin.chip_id().hex()[:16]}/bl01_tee01_snp04_ucode81_fmc01_vcek.der",
            f"vlek/v1/Milan/cert/{levels}_{stored.certificate.fingerprint.hex()[:16]}_vlek.der",
            "vlek/v1/Milan/cert_chain",
        ]
    )
    assert {(each.mode, each.uid, each.uname, each.mtime) for each in members} == {(0o644, 0, "", 0)}


async def test_what_is_beside_the_chain_is_not_lost(
    simulated_hierarchies: Hierarchies, tmp_path: Path
) -> None:
    """Two ARKs of one product, as with development roots; an ARK whose ASK is not there."""
    milan = Amd(simulated_hierarchies[Product.MILAN])
    other = Amd(AmdHierarchy.generate(Product.MILAN, now=NOW - DAY, rsa_bits=2048))
    turin = Amd(simulated_hierarchies[Product.TURIN])
    fleet = [milan, other, turin]
    chain = milan.chain + other.chain + turin.hierarchy.ark.pem
    write(tmp_path / "files", {"chain.pem": chain, "1.crl": milan.crl(), "2.crl": other.crl(number=7)})
    async with open_store(tmp_path / "here") as here, open_store(tmp_path / "there") as there:
        await import_paths([tmp_path / "files"], here, roots(fleet), NOW)
        write(tmp_path, {"bundle.tar": await bundled(here)})
        report = await import_paths([tmp_path / "bundle.tar"], there, roots(fleet), NOW)
        assert (report.certificates, report.lists, report.new) == (5, 2, 7)
        [pair] = [
            each.data
            for each in read_bundle(BytesIO(await bundled(there)), "")
            if isinstance(each, Piece) and each.name.endswith("cert_chain")
        ]
        # As the service gives it: two certificates that fit each other.
        assert pair in {milan.chain, other.chain}


def test_only_the_certificate_that_lives_longest(simulated_hierarchies: Hierarchies) -> None:
    """AMD signs a chip's certificate anew whenever it is asked: one key, one TCB, many dates."""
    amd = Amd(simulated_hierarchies[Product.MILAN])
    key = ec.generate_private_key(ec.SECP384R1())
    authorities = [load_der(each.certificate) for each in (amd.hierarchy.ask, amd.hierarchy.ark)]
    judge = Judge(roots=amd.roots, now=NOW, source="test").knowing(authorities)
    stored = []
    for days in (100, 2000, 400):
        judged = judge.certificate(load_der(amd.vcek(key=key, not_after=NOW + days * DAY)))
        assert isinstance(judged, StoredCertificate)
        stored.append(judged)
    made = BytesIO()
    assert write_bundle(made, stored, ()) == 1
    [member] = read_bundle(made, "")
    assert isinstance(member, Piece)
    assert member.data == stored[1].certificate.der


async def test_an_auditor_needs_no_tool_of_ours(simulated_hierarchies: Hierarchies, tmp_path: Path) -> None:
    """GNU tar unpacks it; renamed as the guide says it is Trustee's offline store."""
    amd = Amd(simulated_hierarchies[Product.MILAN])
    vcek = amd.vcek(bootloader=4, tee=0, snp=24, microcode=219)
    write(tmp_path / "files", {"chain": amd.chain, "1": vcek})
    async with open_store(tmp_path / "database") as store:
        await import_paths([tmp_path / "files"], store, amd.roots, NOW)
        write(tmp_path, {"bundle.tar": await bundled(store)})
    (tmp_path / "store").mkdir()
    subprocess.run(  # noqa: ASYNC221 -- a moment
        ["tar", "-xf", "bundle.tar", "-C", "store", "--transform=s,^vcek/v1/[A-Za-z]*/,vcek/,"],
        cwd=tmp_path,
        check=True,
    )
    unpacked = tmp_path / "store" / "vcek" / amd.chip_id().hex() / "bl04_tee00_snp24_ucode219_vcek.der"
    assert unpacked.read_bytes() == vcek
