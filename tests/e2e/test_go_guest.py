"""The protocol page's guest in Go: it builds, gets what our own client gets, and refuses what it must."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typing_extensions import override

from kms.cli.demo_scene import APP_ID
from kms.encoding import b64url
from kms.guest import KeyRequest, Suite
from kms.identifiers import AppId
from kms.keys.envelope import build_envelope
from kms.keys.identity import Identity
from kms.keys.sealing import seal
from kms.request import ReleaseRequest
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.tsm_fuse import Faults
from kms.snp.product import Product
from tests.certificates import Authority, pem
from tests.e2e.guest_client_world import DISK, GuestClientWorld, guest_client_world
from tests.e2e.impostors import answering
from tests.simulated_tsm import needs_fuse, simulated_tsm
from tests.unit.guest.conftest import (
    OTHER_APP_ID,
    FakeKms,
    app_document,
    problem,
    value_of,
    with_host_data,
)

GO = shutil.which("go")
PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "protocol.md").read_text()
KEY, REFUSED, WRONG_USE = 0, 1, 2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.enable_socket,
    needs_fuse,
    pytest.mark.skipif(GO is None, reason="the page's guest is in Go, which is not installed"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build what the page says, with no module but it, and no network."""
    [source] = re.findall(r"```go\n(.*?)```", PAGE, re.DOTALL)
    folder = tmp_path_factory.mktemp("go")
    (folder / "main.go").write_text(source)
    (folder / "go.mod").write_text("module guest\n\ngo 1.24\n")
    own = {"GOENV": "off", "GOWORK": "off", "GOTOOLCHAIN": "local", "GOPROXY": "off", "CGO_ENABLED": "0"}
    for command in ("vet", "build"):
        done = subprocess.run(
            [str(GO), command, "."],
            cwd=folder,
            env={**os.environ, **own},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    return folder / "guest"


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, simulated_hierarchies: Mapping[Product, AmdHierarchy]
) -> Iterator[GuestClientWorld]:
    with guest_client_world(tmp_path_factory.mktemp("guest"), simulated_hierarchies) as world:
        yield world


class GoGuest:
    """The program, and what it is told unless a test says otherwise."""

    def __init__(self, program: Path, world: GuestClientWorld) -> None:
        self._program = program
        self._told = {
            "server": world.genuine.url,
            "ca": str(world.ca),
            "identity": b64url(world.pin),
            "tsm": str(world.tsm),
            "app-document": str(world.document),
            "deadline": "20s",
        }

    def run(self, **other: str) -> tuple[int, bytes, str]:
        """Give exit status, standard output and standard error."""
        told = self._told | {name.replace("_", "-"): value for name, value in other.items()}
        told["server"] = told["server"].removeprefix("https://")
        arguments = [f"-{name}={value}" for name, value in told.items()]
        done = subprocess.run([self._program, *arguments], capture_output=True, timeout=60, check=False)
        return done.returncode, done.stdout, done.stderr.decode()

    def refuses(self, why: str, status: int = REFUSED, **other: str) -> None:
        """Check that it says why, ends with this status, and shows nothing that could be taken for a key."""
        ended, shown, said = self.run(**other)
        assert (ended, shown) == (status, b""), said
        assert re.search(why, said)


@pytest.fixture
def guest(program: Path, world: GuestClientWorld) -> Iterator[GoGuest]:
    world.relay.replayed = None
    yield GoGuest(program, world)
    assert world.left_behind() == []


def test_it_is_of_one_file_that_can_be_read() -> None:
    [source] = re.findall(r"```go\n(.*?)```", PAGE, re.DOTALL)
    imported = re.search(r"import \((.*?)\)", source, re.DOTALL)
    assert imported
    assert "." not in imported[1]  # a standard package has no host in its path
    assert len(source.splitlines()) < 340


class TestTheKey:
    def test_is_what_our_own_client_gets(self, guest: GoGuest, world: GuestClientWorld) -> None:
        assert guest.run() == (KEY, world.key(), "")

    def test_may_be_any_symmetric_one(self, guest: GoGuest, world: GuestClientWorld) -> None:
        wanted = KeyRequest.parse("custom:db/main", "app", 1)
        payload = world.client(world.genuine.url).fetch([wanted], app_document=world.guest.document)
        assert guest.run(key="custom:db/main", epoch="1") == (KEY, payload.keys[0].value, "")
        wanted = KeyRequest.parse("disk", "instance")
        payload = world.client(world.genuine.url).fetch([wanted], app_document=world.guest.document)
        assert guest.run(scope="instance") == (KEY, payload.keys[0].value, "")

    def test_comes_through_who_only_relays(self, guest: GoGuest, world: GuestClientWorld) -> None:
        assert guest.run(server=world.relay_url) == (KEY, world.key(), "")

    def test_comes_without_certificates_of_the_host(
        self, guest: GoGuest, world: GuestClientWorld, tmp_path: Path
    ) -> None:
        """The server keeps those that it has seen."""
        assert guest.run()[0] == KEY
        with simulated_tsm(tmp_path / "tsm", world.guest.machine, Faults(auxblob=False)):
            assert guest.run(tsm=str(tmp_path / "tsm")) == (KEY, world.key(), "")


class TestRefuses:
    def test_an_impostor_of_the_same_ca(self, guest: GoGuest, world: GuestClientWorld) -> None:
        guest.refuses("not signed by the pinned KMS", server=world.impostor.url)

    def test_yesterdays_answer(self, guest: GoGuest, world: GuestClientWorld) -> None:
        guest.run(server=world.relay_url)
        world.relay.replayed = world.relay.released[-1]
        guest.refuses("does not open", server=world.relay_url)

    def test_another_guests_answer(self, guest: GoGuest, world: GuestClientWorld) -> None:
        world.replay_another_guests_answer(Suite.HPKE_X25519)
        guest.refuses("does not open", server=world.relay_url)

    def test_another_document(self, guest: GoGuest, world: GuestClientWorld, tmp_path: Path) -> None:
        document = tmp_path / "other.json"
        document.write_bytes(world.guest.document + b" ")
        guest.refuses("HOST_DATA", app_document=str(document))

    @pytest.mark.parametrize(
        ("document", "why"),
        [
            (app_document(kms_identity=b64url(b"\x07" * 32)), "another KMS"),
            (b"{", "cannot be read"),
            (b"{}", "cannot be read"),
        ],
    )
    def test_a_document_that_the_host_launched_it_with(
        self, guest: GoGuest, world: GuestClientWorld, tmp_path: Path, document: bytes, why: str
    ) -> None:
        (tmp_path / "app.json").write_bytes(document)
        bound = with_host_data(world.guest.machine, sha256(document).digest())
        with simulated_tsm(tmp_path / "tsm", bound) as tsm:
            guest.refuses(why, tsm=str(tmp_path / "tsm"), app_document=str(tmp_path / "app.json"))
            assert tsm.entries == ()

    def test_a_server_of_another_ca(self, guest: GoGuest, tmp_path: Path) -> None:
        other = tmp_path / "other.pem"
        other.write_text(pem(Authority("Fleet CA", now=datetime.now(UTC)).certificate))
        guest.refuses("certificate", ca=str(other))

    def test_the_servers_no(self, guest: GoGuest) -> None:
        guest.refuses('403 "policy-denied"', key="custom:forbidden")


@dataclass
class LyingKms(FakeKms):
    """A KMS of the right identity that answers wrongly: each binding of an answer is checked for itself."""

    app_id: AppId = APP_ID
    forged: bool = False

    def posted(self, path: str, body: bytes) -> tuple[int, bytes]:
        answer = self.answer(httpx2.Request("POST", f"https://kms{path}", content=body))
        return answer.status_code, answer.content

    @override
    def release(self, asked: ReleaseRequest) -> dict[str, object]:
        answer = super().release(asked)
        if self.forged:
            answer["sealed"] = b64url(seal(asked.recipient, self._forgery(asked), asked.digest))
        return answer

    def _forgery(self, asked: ReleaseRequest) -> bytes:
        """Name the right identity under another one's signature."""
        envelope = build_envelope(
            Identity.from_prf(b"\x22" * 64),
            release_id="r1",
            request_sha512=asked.digest,
            app_id=self.app_id,
            keys=[self.released(DISK)],
        )
        return json.dumps(json.loads(envelope) | {"identity": b64url(self.identity.public_key)}).encode()


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        ({}, None),
        ({"forged": True}, "not signed by the pinned KMS"),
        ({"digest_of": lambda _: bytes(64)}, "another request"),
        ({"edit": lambda answer: answer | {"release_id": "r2"}}, "another request"),
        ({"edit": lambda answer: answer | {"suite": "x25519-sealedbox"}}, "another suite"),
        ({"edit": lambda answer: answer | {"sealed": ""}}, "too short"),
        ({"edit": lambda answer: answer | {"sealed": b64url(bytes(99))}}, "low order"),
        ({"edit": lambda answer: answer | {"sealed": 7}}, "cannot be read"),
        ({"app_id": OTHER_APP_ID}, "another app"),
        ({"keys_of": lambda _: [KeyRequest.parse("custom:other", "app", 2)]}, "another key"),
        ({"keys_of": lambda _: [KeyRequest.parse("disk", "chip", 2)]}, "another key"),
        ({"keys_of": lambda _: [KeyRequest.parse("disk", "app", 1)]}, "another key"),
        ({"keys_of": lambda _: [DISK, KeyRequest.parse("disk", "chip")]}, "one key"),
        ({"script": [problem(503, "x")] * 9}, "503"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_every_binding_of_the_answer(
    guest: GoGuest, world: GuestClientWorld, lie: dict[str, Any], why: str | None
) -> None:
    kms = LyingKms(**lie)
    with answering(kms.posted, world.tls.certified("liar"), retry_after=60) as url:
        told = {"server": url, "identity": b64url(kms.identity.public_key), "epoch": "2"}
        if why is None:
            assert guest.run(**told) == (KEY, value_of(DISK), "")
        elif why == "503":
            guest.refuses(why, WRONG_USE, **told, deadline="5s")
        else:
            guest.refuses(why, REFUSED, **told)


class TestWithoutEvidenceOrServer:
    @pytest.mark.parametrize(
        ("faults", "why"),
        [
            (Faults(provider="tdx_guest"), "not sev_guest"),
            (Faults(generation_step=2), "somebody else wrote"),
            (Faults(cut=100), "not over what was asked"),
            (Faults(other_report_data=True), "not over what was asked"),
            (Faults(deny_mkdir=True), "permission denied"),
            (Faults(busy_for=60), "busy"),
        ],
        ids=str,
    )
    def test_hardware_that_fails(
        self, guest: GoGuest, world: GuestClientWorld, tmp_path: Path, faults: Faults, why: str
    ) -> None:
        with simulated_tsm(tmp_path / "tsm", world.guest.machine, faults) as tsm:
            guest.refuses(why, WRONG_USE, tsm=str(tmp_path / "tsm"))
            assert tsm.entries == ()

    def test_no_hardware(self, guest: GoGuest, tmp_path: Path) -> None:
        guest.refuses("no such file", WRONG_USE, tsm=str(tmp_path / "missing"))

    def test_a_server_that_is_not_there(self, guest: GoGuest) -> None:
        guest.refuses("connection refused", WRONG_USE, server="127.0.0.1:1", deadline="2s")

    def test_what_makes_no_sense(self, guest: GoGuest, tmp_path: Path) -> None:
        guest.refuses("-identity", WRONG_USE, identity="AAAA")
        guest.refuses("-ca", WRONG_USE, ca=str(tmp_path / "missing.pem"))
        guest.refuses("not defined", WRONG_USE, unheard_of="1")
