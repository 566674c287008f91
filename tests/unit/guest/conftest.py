"""A SIMULATED machine, and a KMS that is a function from requests to answers."""

import json
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from kms.encoding import b64url, from_base64
from kms.guest.client import KeyClient
from kms.guest.evidence import EvidenceSource
from kms.identifiers import AppId
from kms.keys.env_key import env_key_text
from kms.keys.envelope import build_envelope
from kms.keys.identity import Identity
from kms.keys.names import DSTACK_KINDS, KeyKind, KeyRequest
from kms.keys.released import ReleasedKey
from kms.keys.sealing import Suite, seal
from kms.keys.signed import Signed
from kms.labels import ENV_KEY
from kms.request import ReleaseRequest, parse_request
from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.firmware import build_firmware
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.machine import SimulatedMachine, describe
from kms.snp.product import Product
from kms.snp.report import Report
from tests.certificates import SERVER, Authority, pem, write

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
APP_ID = AppId(b"\xa1" * 20)
OTHER_APP_ID = AppId(b"\xa2" * 20)
DISK = KeyRequest.parse("disk", "app")
ENV_EPOCH = 3


def app_document(**members: object) -> bytes:
    return json.dumps({"version": 1, "app_id": APP_ID.hex(), "compose_hash": "c3" * 32} | members).encode()


@pytest.fixture(autouse=True)
def _captured_output_is_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """What pytest captures goes to a file on a disk, where keys must not be."""
    monkeypatch.setattr("kms.cli.guest_outputs._is_file", lambda _: False)


@pytest.fixture(scope="session")
def machine() -> SimulatedMachine:
    # 2048 bits: nothing but the time to make them differs.
    hierarchy = AmdHierarchy.generate(Product.MILAN, now=NOW, rsa_bits=2048)
    chip = SimulatedChip.typical(hierarchy, chip_id=simulated_chip_id(Product.MILAN, b"guest"), now=NOW)
    description = describe(firmware=build_firmware(seed=b"guest"), kernel=b"kernel")
    return SimulatedMachine.launch(chip, description, app_document=app_document())


@dataclass
class FakeKms:
    """Answers as the protocol says. `script` comes first: each entry answers one request, whatever it is."""

    identity: Identity = field(default_factory=lambda: Identity.from_prf(b"\x11" * 64))
    signer: Identity | None = None
    app_id: AppId = APP_ID
    script: list[Callable[[httpx2.Request], httpx2.Response]] = field(default_factory=list)
    requests: list[ReleaseRequest] = field(default_factory=list)
    evidence: list[dict[str, object]] = field(default_factory=list)
    challenges: int = 0
    hand_overs: tuple[Signed, ...] = ()
    env_keys: list[httpx2.URL] = field(default_factory=list)
    env_private: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    keys_of: Callable[[ReleaseRequest], Sequence[KeyRequest]] = lambda request: request.ask.keys
    edit: Callable[[dict[str, object]], dict[str, object]] = lambda answer: answer
    digest_of: Callable[[ReleaseRequest], bytes] = lambda request: request.digest

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        answer = self.answer(request)
        # As from a network: not read yet.
        stream = httpx2.ByteStream(answer.content)
        return httpx2.Response(answer.status_code, headers=answer.headers, stream=stream)

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        if self.script:
            return self.script.pop(0)(request)
        if request.url.path == "/v1/challenges":
            self.challenges += 1
            challenge = b64url(bytes([self.challenges]) * 57)
            return httpx2.Response(201, json={"challenge": challenge, "expires_at": "2026-11-21T12:05:00Z"})
        if request.url.path == "/v1/identity":
            answer = {"identity": b64url((self.signer or self.identity).public_key), "tls_ca": None}
            return httpx2.Response(
                200, json=answer | {"previous": [each.to_json() for each in self.hand_overs]}
            )
        if request.url.path == f"/v1/apps/{APP_ID.hex()}/env-key":
            self.env_keys.append(request.url)
            return httpx2.Response(200, json=self.edit({**self.env_key().to_json()}))
        if request.method == "GET":
            return problem(404, "not-found")(request)
        body = json.loads(request.content)
        asked = parse_request(from_base64(body["request"]))
        report = Report.parse(from_base64(body["evidence"]["report"]))
        assert report.report_data == asked.report_data
        self.requests.append(asked)
        self.evidence.append(body["evidence"])
        return httpx2.Response(200, json=self.edit(self.release(asked)))

    def env_key(self) -> Signed:
        public_key = self.env_private.public_key().public_bytes_raw()
        text = env_key_text(self.app_id, ENV_EPOCH, public_key, self.now())
        return Signed.by(self.signer or self.identity, ENV_KEY, text)

    def release(self, asked: ReleaseRequest) -> dict[str, object]:
        keys = [self.released(key) for key in self.keys_of(asked)]
        envelope = build_envelope(
            self.signer or self.identity,
            release_id="r1",
            request_sha512=self.digest_of(asked),
            app_id=self.app_id,
            keys=keys,
        )
        sealed = seal(asked.recipient, envelope, asked.digest)
        return {"release_id": "r1", "suite": asked.recipient.suite.value, "sealed": b64url(sealed)}

    def released(self, key: KeyRequest) -> ReleasedKey:
        value, public_key = value_of(key), None
        if key.name.kind is KeyKind.ENV:
            value = self.env_private.private_bytes_raw()
            public_key = self.env_private.public_key().public_bytes_raw()
        epoch = None if key.name.kind in DSTACK_KINDS else key.epoch or 1
        return ReleasedKey(name=key.name, scope=key.scope, epoch=epoch, value=value, public_key=public_key)


def value_of(key: KeyRequest) -> bytes:
    return sha256(f"{key.name}@{key.scope}".encode()).digest()


def problem(
    status: int, code: str, *reasons: str, retry_after: str | None = None
) -> Callable[[httpx2.Request], httpx2.Response]:
    body = {"type": "urn:x", "title": "x", "status": status, "code": code, "request_id": "q1"}
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return lambda _: httpx2.Response(status, json=body | {"reasons": list(reasons)}, headers=headers)


def answer_then(kms: FakeKms, request: httpx2.Request) -> httpx2.Response:
    """Answer one request of a script as the server does."""
    rest, kms.script = kms.script, []
    response = kms.answer(request)
    kms.script = rest
    return response


@dataclass
class FakeTime:
    """A clock that moves only when somebody sleeps."""

    now: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def kms() -> FakeKms:
    return FakeKms()


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory."""
    place = Path("/dev/shm")  # noqa: S108 -- where key files are meant to be
    if not place.is_dir():
        pytest.skip("no tmpfs at /dev/shm")
    with TemporaryDirectory(dir=place) as folder:
        yield Path(folder)


@pytest.fixture
def client(kms: FakeKms, machine: SimulatedMachine, time: FakeTime) -> KeyClient:
    return make_client(kms, machine, time)


def make_client(
    kms: FakeKms,
    source: EvidenceSource,
    time: FakeTime,
    *,
    identity: bytes | None = None,
    pinned: bool = True,
    suite: Suite = Suite.HPKE_X25519,
    deadline: float = 60.0,
) -> KeyClient:
    return KeyClient(
        "https://kms.test:8443",
        ca_file=None,
        identity=(identity or kms.identity.public_key) if pinned else None,
        source=source,
        suite=suite,
        deadline=deadline,
        transport=httpx2.MockTransport(kms),
        clock=lambda: time.now,
        sleep=time.sleep,
        jitter=lambda: 1.0,
    )


def with_host_data(machine: SimulatedMachine, host_data: bytes) -> SimulatedMachine:
    return replace(machine, guest=replace(machine.guest, host_data=host_data))


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority("Guest test CA", now=datetime.now(UTC))


@pytest.fixture(scope="session")
def ca(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    path.write_text(pem(authority.certificate))
    return path


@pytest.fixture(scope="session")
def server_tls(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(
        write(tmp_path_factory.mktemp("tls"), "server", authority.issue("server", usages=[SERVER]))
    )
    return context
