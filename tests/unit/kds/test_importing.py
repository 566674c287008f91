"""Import: what AMD signed is taken, wherever it lies and whatever it is called; everything else is said."""

import os
import random
import tarfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs

from kms.database.collateral import CollateralDatabase
from kms.kds import bundle, pieces, reading
from kms.kds.importing import ImportReport, import_folder, import_paths
from kms.ports import Role
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.flags import Signer
from kms.snp.kds_paths import Line
from kms.snp.product import Product
from kms.snp.roots import TrustedRoots
from tests.unit.kds.stock import CSP, DAY, Amd, open_store, write
from tests.world import NOW


@pytest.fixture
def amd(simulated_hierarchies: Mapping[Product, AmdHierarchy]) -> Amd:
    return Amd(simulated_hierarchies[Product.MILAN])


@pytest.fixture
def turin(simulated_hierarchies: Mapping[Product, AmdHierarchy]) -> Amd:
    return Amd(simulated_hierarchies[Product.TURIN])


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[CollateralDatabase]:
    async with open_store(tmp_path / "database") as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "files"
    made.mkdir()
    return made


def summary(report: ImportReport) -> tuple[int, int, int, dict[str, str]]:
    """Give certificates, lists, new, and what was left out: name's end → reason."""
    left_out = {Path(each.name).name: each.reason for each in (*report.refused, *report.unreadable)}
    return report.certificates, report.lists, report.new, left_out


async def stored(store: CollateralDatabase) -> set[bytes]:
    return {
        *(each.certificate.der for each in await store.all_certificates()),
        *(each.list.der for each in await store.revocation_lists()),
    }


def everything(amd: Amd) -> dict[str, bytes]:
    hierarchy = amd.hierarchy
    return {
        "ark": hierarchy.ark.certificate,
        "ask": hierarchy.ask.certificate,
        "asvk": hierarchy.asvk.certificate,
        "vcek": amd.vcek(),
        "older": amd.vcek(snp=1),
        "other": amd.vcek(b"another chip"),
        "vlek": amd.vlek(),
        "crl": amd.crl(),
    }


class TestLayouts:
    async def test_any_order_and_any_name(self, amd: Amd, store: CollateralDatabase, folder: Path) -> None:
        """Authorities first, however the files sort; and no name says what a file is."""
        files = everything(amd)
        for seed in range(3):
            names = [f"{number}.txt" for number in range(len(files))]
            random.Random(seed).shuffle(names)
            shuffled = write(folder / str(seed), dict(zip(names, files.values(), strict=True)))
            report = await import_paths([shuffled], store, amd.roots, NOW)
            new = 0 if seed else len(files)
            assert summary(report) == (7, 1, new, {})
        assert await stored(store) == set(files.values())
        assert {each.source for each in await store.all_certificates()} == {"import"}

    async def test_amds_own_paths(self, amd: Amd, store: CollateralDatabase, folder: Path) -> None:
        write(
            folder,
            {
                "vcek/v1/Milan/cert_chain": amd.chain,
                "vcek/v1/Milan/crl": amd.crl(number=5),
                "vlek/v1/Milan/cert_chain": amd.hierarchy.asvk.pem + amd.hierarchy.ark.pem,
                "vlek/v1/Milan/crl": amd.crl(number=6),
                f"vcek/v1/Milan/{amd.chip_id().hex()}?blSPL=04&teeSPL=00": amd.vcek(),
            },
        )
        report = await import_paths([folder], store, amd.roots, NOW)
        assert summary(report) == (4, 2, 6, {})
        numbers = {each.line: each.list.number for each in await store.revocation_lists()}
        assert numbers == {
            Line(Signer.VCEK, Product.MILAN): 5,
            Line(Signer.VLEK, Product.MILAN): 6,
        }
        lines = {each.line for each in await store.revocation_lists() if each.list.line == each.line}
        assert lines == set(numbers)

    async def test_trustees_offline_store(
        self, amd: Amd, turin: Amd, store: CollateralDatabase, folder: Path
    ) -> None:
        roots = replace(amd.roots, pins={**amd.roots.pins, **turin.roots.pins})
        await import_paths(
            [write(folder / "a", {"m.pem": amd.chain, "t.pem": turin.chain})], store, roots, NOW
        )
        write(
            folder / "kds-store",
            {
                f"vcek/{amd.chip_id().hex()}/vcek.der": amd.vcek(),
                f"vcek/{amd.chip_id(b'2').hex()}/bl04_tee00_snp24_ucode219_vcek.der": amd.vcek(b"2"),
                f"vcek/{turin.chip_id().hex()[:16]}/bl01_tee01_snp04_ucode81_fmc01_vcek.der": turin.vcek(),
            },
        )
        report = await import_paths([folder / "kds-store"], store, roots, NOW)
        assert summary(report) == (3, 0, 3, {})
        [found] = await store.vceks(Product.TURIN, turin.chip_id())
        assert found.tcb == turin.tcb()

    async def test_one_pem_file_with_everything(
        self, amd: Amd, store: CollateralDatabase, folder: Path
    ) -> None:
        """Text, keys and a broken block between: the others are taken, the broken one is said."""
        pem = _pem("CERTIFICATE", amd.vcek())
        broken = _pem("CERTIFICATE", b"no certificate")
        key = _pem("PRIVATE KEY", b"not for us")
        crl = _pem("X509 CRL", amd.crl())
        write(folder, {"all.pem": b"Bag\n" + pem + key + b"words" + crl + broken + amd.chain})
        report = await import_paths([folder], store, amd.roots, NOW)
        assert summary(report) == (3, 1, 4, {"all.pem, block 3": "no certificate"})

    async def test_a_vlek_is_kept_with_its_provider(
        self, amd: Amd, store: CollateralDatabase, folder: Path
    ) -> None:
        write(folder, {"asvk": amd.hierarchy.asvk.pem, "ark": amd.hierarchy.ark.pem, "vlek": amd.vlek()})
        await import_paths([folder], store, amd.roots, NOW)
        [vlek] = await store.vleks(Product.MILAN, amd.tcb())
        assert (vlek.csp_id, vlek.role, vlek.chip_id) == (CSP, Role.LEAF, None)

    async def test_the_stores_own_authorities_help(
        self, amd: Amd, store: CollateralDatabase, folder: Path
    ) -> None:
        write(folder, {"chip.der": amd.vcek()})
        report = await import_paths([folder], store, amd.roots, NOW)
        assert summary(report) == (
            0,
            0,
            0,
            {"chip.der": "its issuer SEV-Milan is not known, here or in the store"},
        )
        write(folder, {"chain.pem": amd.hierarchy.ask.pem})
        await import_paths([folder / "chain.pem"], store, amd.roots, NOW)
        assert (await import_paths([folder / "chip.der"], store, amd.roots, NOW)).new == 1


class TestRefused:
    """Exit 1: it was read, and it is nothing that may be kept."""

    @pytest.fixture
    def other(self, simulated_hierarchies: Mapping[Product, AmdHierarchy]) -> Amd:
        """A hierarchy of AMD's form that nobody pins (field lesson 2)."""
        return Amd(simulated_hierarchies[Product.GENOA])

    async def test_a_hierarchy_that_is_not_pinned(
        self, amd: Amd, other: Amd, store: CollateralDatabase, folder: Path
    ) -> None:
        write(folder, {f"{name}.der": data for name, data in everything(other).items()})
        report = await import_paths([folder], store, amd.roots, NOW)
        certificates, lists, new, left_out = summary(report)
        assert (certificates, lists, new, len(left_out)) == (0, 0, 0, 8)
        assert left_out["ark.der"] == "ARK-Genoa: its key is not pinned, as a root or anything else"
        assert left_out["ask.der"] == "no pinned ARK of Genoa is known, here or in the store"
        assert left_out["crl.der"] == "no pinned ARK signed it; its issuer is ARK-Genoa"
        assert await stored(store) == set()

    async def test_in_amds_name_and_not_by_amd(
        self, amd: Amd, other: Amd, store: CollateralDatabase, folder: Path
    ) -> None:
        """Names, lines and places of Milan, signed by somebody else's ASK and ARK."""
        forger = AmdHierarchy(
            Product.MILAN, ark=other.hierarchy.ark, ask=other.hierarchy.ask, asvk=other.hierarchy.asvk
        )
        forged = amd.hierarchy.revocation_list(
            this_update=NOW - DAY, next_update=NOW + DAY, signer=other.hierarchy.ark
        )
        key = ec.generate_private_key(ec.SECP384R1()).public_key()
        leaf = amd.hierarchy.vcek_certificate(
            key, amd.tcb(), amd.chip_id(), not_before=NOW - DAY, not_after=NOW + DAY
        ).signed(forger.ask.key)
        write(
            folder,
            {
                "vcek/v1/Milan/cert_chain": amd.chain,
                "vcek/v1/Milan/crl": forged,
                "vcek/v1/Milan/chip.der": leaf,
            },
        )
        report = await import_paths([folder], store, amd.roots, NOW)
        assert summary(report)[:3] == (2, 0, 2)
        assert summary(report)[3] == {
            "crl": "no pinned ARK signed it; its issuer is ARK-Milan",
            "chip.der": "leaf-signature: SEV-VCEK is signed by SEV-Milan",
        }

    async def test_dates(self, amd: Amd, store: CollateralDatabase, folder: Path) -> None:
        write(
            folder,
            {
                "chain": amd.chain,
                "asvk": amd.hierarchy.asvk.pem,
                "expired": amd.vlek(not_after=NOW - DAY / 2),
                "early": amd.vcek(not_before=NOW + DAY),
                "early-list": amd.crl(this_update=NOW + DAY),
                "stale-list": amd.crl(this_update=NOW - 90 * DAY, next_update=NOW - 60 * DAY),
            },
        )
        report = await import_paths([folder], store, amd.roots, NOW)
        certificates, lists, _, left_out = summary(report)
        # Whom a stale list names is still revoked: it is kept.
        assert (certificates, lists) == (3, 1)
        assert set(left_out) == {"expired", "early", "early-list"}
        assert left_out["expired"].startswith("certificate-validity: SEV-VLEK is valid from")
        assert left_out["early-list"] == f"issued {NOW + DAY:%Y-%m-%d %H:%M} UTC, which is still to come"

    async def test_what_is_neither(self, amd: Amd, store: CollateralDatabase, folder: Path) -> None:
        write(
            folder,
            {
                "README": b"certificates",
                "empty": b"",
                "key.pem": _pem("PRIVATE KEY", b"key"),
                "open.pem": b"-----BEGIN CERTIFICATE-----\nMII",
                "report.bin": bytes(1184),
                "\x1b[2Jred\n.der": b"x",
                "tls.pem": _pem("CERTIFICATE", _somebodys_certificate()),
            },
        )
        report = await import_paths([folder], store, amd.roots, NOW)
        neither = "neither a certificate nor a revocation list"
        assert summary(report)[3] == {
            "README": neither,
            "empty": neither,
            "key.pem": "PEM without a certificate or revocation list",
            "open.pem": "no certificate",
            "report.bin": neither,
            "\\x1b[2Jred\\n.der": neither,
            "tls.pem": "somebody: its key is not pinned, as a root or anything else",
        }
        assert not report.unreadable

    async def test_what_cannot_be_a_file_of_ours(
        self,
        amd: Amd,
        store: CollateralDatabase,
        folder: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A pipe that nobody writes to, links that lead out or nowhere, a file without an end."""
        monkeypatch.setattr(reading, "LARGEST_FILE", 10_000)
        secret = write(tmp_path / "elsewhere", {"chain": amd.chain})
        os.mkfifo(folder / "pipe")
        (folder / "out").symlink_to(secret / "chain")
        (folder / "away").symlink_to(secret)
        (folder / "nowhere").symlink_to("gone")
        (folder / "round").symlink_to(folder)
        with (folder / "endless").open("wb") as file:
            file.truncate(1 << 40)
        report = await import_paths([folder], store, amd.roots, NOW)
        out = "a link that leads out of the folder, or nowhere"
        assert summary(report)[3] == {
            "pipe": "neither a file nor a folder",
            "out": out,
            "away": out,
            "nowhere": out,
            "endless": "longer than 10000 bytes",
        }
        assert await stored(store) == set()

    async def test_a_mounted_kubernetes_secret(
        self, amd: Amd, store: CollateralDatabase, folder: Path
    ) -> None:
        """Its files are links to links inside the folder."""
        write(folder, {"..2026_11_21/chain.pem": amd.chain})
        (folder / "..data").symlink_to("..2026_11_21")
        (folder / "chain.pem").symlink_to("..data/chain.pem")
        report = await import_paths([folder], store, amd.roots, NOW)
        assert summary(report) == (2, 0, 2, {})


class TestUnreadable:
    """Exit 2: nobody knows what it was."""

    async def test_what_is_not_there(self, amd: Amd, store: CollateralDatabase, folder: Path) -> None:
        os.mkfifo(folder / "pipe")
        paths = [folder / "nothing", folder / "pipe", Path("/dev/zero"), Path("with\0zero")]
        report = await import_paths(paths, store, amd.roots, NOW)
        assert not report.refused
        assert [each.reason for each in report.unreadable] == [
            "No such file or directory",
            "neither a file nor a folder",
            "neither a file nor a folder",
            "cannot be read",
        ]

    async def test_too_many_files(
        self, amd: Amd, store: CollateralDatabase, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pieces, "MOST_FILES", 2)
        write(folder, {f"{number}": amd.chain for number in range(4)})
        report = await import_paths([folder], store, amd.roots, NOW)
        assert [each.reason for each in report.unreadable] == ["more than 2 files: the rest was left out"]
        assert report.certificates == 2

    async def test_a_file_that_becomes_a_pipe(self, folder: Path) -> None:
        """Between looking and opening: nobody waits for a writer."""
        path = folder / "file"
        os.mkfifo(path)
        with pytest.raises(OSError, match="not a regular file"):
            pieces.OpenFile(str(path), follow=False).open()
        link = folder / "link"
        link.symlink_to(path)
        with pytest.raises(OSError, match="symbolic"):
            pieces.OpenFile(str(link), follow=False).open()


class TestArchives:
    async def test_any_tar(self, amd: Amd, store: CollateralDatabase, folder: Path) -> None:
        """Also those of GNU tar and Python, whose names of this length need headers of their own."""
        files = {f"kds/vcek/v1/Milan/{'0' * 128}/{'x' * 60}.der": amd.vcek(), "cert_chain": amd.chain}
        for format_ in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            path = folder / f"{format_}.tar"
            path.write_bytes(tar(files, format_=format_))
            report = await import_paths([path], store, amd.roots, NOW)
            assert (report.certificates, report.refused, report.unreadable) == (3, (), ())

    async def test_members_that_are_no_files(self, amd: Amd, store: CollateralDatabase, folder: Path) -> None:
        def member(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
            made = tarfile.TarInfo(name)
            made.type, made.linkname = kind, link
            return made

        stranger = [
            member("folder", tarfile.DIRTYPE),
            member("link", tarfile.SYMTYPE, "/etc/passwd"),
            member("hard", tarfile.LNKTYPE, "cert_chain"),
            member("fifo", tarfile.FIFOTYPE),
            member("device", tarfile.CHRTYPE),
        ]
        files = {"../out": amd.chain, "/absolute": amd.chain, "a/../../b": amd.chain, "\x1b[2J": b"x"}
        path = folder / "odd.tar"
        path.write_bytes(tar(files, stranger))
        report = await import_paths([path], store, amd.roots, NOW)
        neither, out = "neither a file nor a folder", "a path that leads out of the archive"
        assert [(each.name.removeprefix(f"{path}: "), each.reason) for each in report.refused] == [
            ("link", neither),
            ("hard", neither),
            ("fifo", neither),
            ("device", neither),
            ("../out", out),
            ("/absolute", out),
            ("a/../../b", out),
            ("\\x1b[2J", "neither a certificate nor a revocation list"),
        ]
        assert await stored(store) == set()

    async def test_sizes(
        self, amd: Amd, store: CollateralDatabase, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bundle, "LARGEST_FILE", 10_000)
        path = folder / "large.tar"
        path.write_bytes(tar({"large": bytes(10_001), "chain": amd.chain}))
        report = await import_paths([path], store, amd.roots, NOW)
        assert [each.reason for each in report.refused] == ["longer than 10000 bytes"]
        assert report.certificates == 2
        monkeypatch.setattr(bundle, "MOST_FILES", 1)
        report = await import_paths([path], store, amd.roots, NOW)
        assert [each.reason for each in report.unreadable] == ["more than 1 members: the rest was left out"]

    async def test_cut_off_anywhere(self, amd: Amd, store: CollateralDatabase, folder: Path) -> None:
        """`tarfile` would take the first half of an archive for all of it."""
        files = {"cert_chain": amd.chain, "one": amd.vcek(), "two": amd.vcek(b"2")}
        whole = tar(files).rstrip(b"\0")
        end = len(whole) + -len(whole) % 512 + 512  # the first block of zeros
        path = folder / "cut.tar"
        for length in range(512, end, 256):
            path.write_bytes(tar(files)[:length])
            report = await import_paths([path], store, amd.roots, NOW)
            assert len(report.unreadable) == 1, length
            assert "damaged" in report.unreadable[0].reason
        path.write_bytes(tar(files)[:end])
        assert (await import_paths([path], store, amd.roots, NOW)).unreadable == ()

    async def test_any_damage_is_said_and_never_a_crash(
        self, amd: Amd, store: CollateralDatabase, folder: Path
    ) -> None:
        chance = random.Random(20261121)
        wholes = [
            tar({"cert_chain": amd.chain, "x" * 200: amd.vcek()}, format_=format_)
            for format_ in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
        ]
        path = folder / "odd.tar"
        for _ in range(1500):
            data = bytearray(chance.choice(wholes))
            for _ in range(chance.randint(1, 4)):
                # Headers, not contents.
                place = chance.choice([chance.randrange(512), chance.randrange(len(data))])
                data[place] = chance.choice([0, 0x80, 0xFF, 0x20, 0x30, 0x37, chance.randrange(256)])
            path.write_bytes(data)
            reading.read_all([path])

    @pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
    @pytest.mark.parametrize("size", ["77777777777", "-1"])
    async def test_headers_that_claim_gigabytes(
        self, kind: bytes, size: str, amd: Amd, store: CollateralDatabase, folder: Path
    ) -> None:
        header = tarfile.TarInfo("././@LongLink")
        header.type = kind
        block = bytearray(header.tobuf(tarfile.USTAR_FORMAT)[:512])
        block[124:136] = size.encode().ljust(12, b"\0") if size != "-1" else b"\xff" * 12
        block[148:156] = b" " * 8
        block[148:156] = f"{sum(block):06o}\0 ".encode()
        path = folder / "headers.tar"
        with path.open("wb") as file:
            file.write(block)
            file.truncate(1 << 31)
        report = await import_paths([path], store, amd.roots, NOW)
        if kind == tarfile.REGTYPE and size != "-1":
            assert [each.reason for each in report.refused] == [f"longer than {pieces.LARGEST_FILE} bytes"]
        [unreadable] = report.unreadable
        assert unreadable.reason.removeprefix("the archive is damaged: ") in {
            "headers too long",
            "end of file header",
            "a negative size",
            "unexpected end of data",
        }


class TestFolderAtStart:
    async def test_what_verifies_is_stored_the_rest_is_logged(
        self, amd: Amd, store: CollateralDatabase, folder: Path
    ) -> None:
        write(folder, {"chain.pem": amd.chain, "sub/chip.der": amd.vcek(), "notes.txt": b"hello"})
        with capture_logs() as logs:
            report = await import_folder(folder, store, amd.roots, NOW)
        assert (report.certificates, report.new) == (3, 3)
        assert {each.source for each in await store.all_certificates()} == {"folder"}
        warning, info = logs
        assert (warning["event"], warning["log_level"]) == ("collateral-file-not-taken", "warning")
        assert warning["file"].endswith("notes.txt")
        assert (info["event"], info["certificates"]) == ("collateral-folder-imported", 3)

    async def test_no_folder_is_an_empty_one(self, amd: Amd, store: CollateralDatabase, folder: Path) -> None:
        with capture_logs() as logs:
            report = await import_folder(folder / "nothing", store, amd.roots, NOW)
        assert (report.files, logs) == (0, [])

    async def test_many_odd_files_do_not_fill_the_log(
        self, amd: Amd, store: CollateralDatabase, folder: Path
    ) -> None:
        write(folder, {f"{number}.txt": f"{number}".encode() for number in range(30)})
        with capture_logs() as logs:
            await import_folder(folder, store, amd.roots, NOW)
        events = [line["event"] for line in logs]
        assert events.count("collateral-file-not-taken") == 20
        assert [line["count"] for line in logs if line["event"] == "collateral-files-not-taken"] == [30]


async def test_progress_and_portions(amd: Amd, store: CollateralDatabase, folder: Path) -> None:
    """A large import is written in portions: the server writes meanwhile."""
    key = ec.generate_private_key(ec.SECP384R1())
    write(folder, {f"{number}": amd.vcek(b"%d" % number, key=key) for number in range(205)})
    write(folder, {"chain": amd.chain})
    told: list[tuple[int, int]] = []
    report = await import_paths(
        [folder], store, amd.roots, NOW, progress=lambda done, of: told.append((done, of))
    )
    assert told == [(200, 207), (207, 207)]
    assert report.new == 207


@pytest.mark.real_evidence
async def test_genuine_certificates(shared: Path, store: CollateralDatabase) -> None:
    """AMD's chains and the endorsement certificates of real machines; the VLEK has expired."""
    report = await import_paths([shared / "evidence" / "kds"], store, TrustedRoots(), NOW)
    assert (report.certificates, report.refused, report.unreadable) == (9, (), ())
    leaves = sorted((shared / "evidence").glob("*/v*ek.der"))
    report = await import_paths(leaves, store, TrustedRoots(), NOW)
    assert report.certificates == len(leaves) - 1
    [vlek] = report.refused
    assert vlek.reason.startswith("certificate-validity: SEV-VLEK is valid from")


def tar(
    files: dict[str, bytes],
    members: list[tarfile.TarInfo] | None = None,
    *,
    format_: int = tarfile.GNU_FORMAT,
) -> bytes:
    """Give a tar archive of members without content, then files."""
    made = BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=format_) as archive:
        for member in members or []:
            archive.addfile(member)
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, BytesIO(data))
    return made.getvalue()


def _pem(label: str, data: bytes) -> bytes:
    import base64

    return (
        f"-----BEGIN {label}-----\n".encode() + base64.encodebytes(data) + f"-----END {label}-----\n".encode()
    )


def _somebodys_certificate() -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(NOW - DAY).not_valid_after(NOW + DAY)
    return builder.sign(key, hashes.SHA384()).public_bytes(Encoding.DER)
