"""A server's life in a minute: everything that guests, operators, attackers and faults do to it."""

import json
import sqlite3
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from kms.cli.demo_scene import APP_ID
from kms.encoding import b64url, from_base64
from kms.guest.client import KeyClient
from kms.guest.request import build_request
from kms.keys import challenge as challenges
from kms.keys import root_messages
from kms.keys.apps_ca import AppsCa
from kms.keys.names import Algorithm, KeyRequest
from kms.keys.opening import RecipientKey
from kms.keys.released import ReleasedKey
from kms.keys.sealing import Suite
from kms.request import ReleaseRequest
from tests.e2e.rack import KEYS, Guest, KnownRoot, Rack
from tests.e2e.watched_server import WatchedServer

ASKED = [
    *KEYS,
    KeyRequest.parse("tls", "app"),
    *(KeyRequest.parse(*key) for key in (("dstack:disk", "instance"), ("dstack:env", "app"))),
    KeyRequest.parse("dstack:k256", "app"),
]
DISK = KeyRequest.parse("disk", "app")
# Of all that the server answers with, only 429 is missing: it is said before anything is read.
STATUSES = {200, 201, 400, 401, 403, 404, 405, 409, 410, 413, 415, 422, 500, 503}


class Life(WatchedServer):
    """What happens to a server. `root` is known, and with it the `secrets`."""

    def __init__(self, folder: Path, rack: Rack, settings: Mapping[str, str], root: KnownRoot) -> None:
        listed = {"KMS_RECOVERY_KEYS": str(folder / "recovery.toml")}
        super().__init__(folder, {**rack.settings, **settings, **listed})
        self.rack = rack
        self.root = root
        self.secrets: dict[str, bytes] = {}
        self._guest = rack.guest(0)
        self._refused = ""  # the id of a request that policy refused

    # --- guests ---

    def fetch(self, *keys: KeyRequest, csr: bytes | None = None) -> None:
        """Fetch keys as a guest does, and add them to the secrets."""
        client = KeyClient(
            self.server.url,
            ca_file=self.server.ca,
            identity=self.root.identity.public_key,
            source=self._guest,
            suite=Suite.X25519_SEALEDBOX,
            transport=self.notebook,
        )
        payload = client.fetch(keys, app_document=self._guest.document, csr=csr)
        for key in payload.keys:
            if key.value is not None:
                self.secrets[f"released {key.name}@{key.scope} of epoch {key.epoch}"] = _secret_part(key)

    def release_all(self) -> None:
        """Release every kind of key, in every scope; the private half of one certificate is the guest's."""
        self.fetch(*ASKED)
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        csr = request.sign(ec.generate_private_key(ec.SECP256R1()), SHA256()).public_bytes(Encoding.DER)
        self.fetch(KeyRequest.parse("tls", "app"), csr=csr)

    def ask(
        self,
        keys: list[KeyRequest],
        *,
        guest: Guest | None = None,
        challenge: bytes | None = None,
        report_of: bytes | None = None,
    ) -> tuple[httpx2.Response, bytes]:
        """Ask once for keys that need not come; give the answer and the body that was sent."""
        request = self.request(keys, challenge)
        evidence = (guest or self._guest).evidence(report_of or request.report_data)
        body = json.dumps({"request": b64url(request.raw), "evidence": evidence}).encode()
        return self.post(body), body

    def request(self, keys: list[KeyRequest], challenge: bytes | None = None) -> ReleaseRequest:
        if challenge is None:
            challenge = from_base64(self.http.post("/v1/challenges").json()["challenge"])
        return build_request(challenge, RecipientKey.generate(Suite.X25519_SEALEDBOX), keys)

    def post(self, body: bytes, **headers: str) -> httpx2.Response:
        return self.http.post(
            "/v1/releases", content=body, headers={"content-type": "application/json", **headers}
        )

    def be_refused(self) -> None:
        """Ask for what nobody gets, in every way that has an answer of its own."""
        _, spent = self.ask([DISK])
        assert self.post(spent).status_code == 409
        refused, _ = self.ask([KeyRequest.parse("custom:other", "app")])
        self._refused = refused.json()["request_id"]
        self.ask([KeyRequest.parse("disk", "app", 1000)])
        self.ask([DISK], guest=self.rack.guest(0, cmdline="init=/bin/sh"))
        self.ask([DISK], report_of=bytes(64))
        self.ask([DISK], challenge=bytes(57))
        long_ago = datetime.now(UTC) - timedelta(hours=1)
        mac_key = self.root.prf(1, root_messages.challenge_message())
        stale = challenges.issue(mac_key, bytes(16), long_ago, timedelta(minutes=5))
        self.ask([DISK], challenge=stale.raw)
        for body in (
            b"",
            b"{",
            b'{"request": "AA", "evidence": 1}',
            spent[:-9] + b"}",
            b"[" * 9999,
            b" " * (2 << 20),
        ):
            self.post(body)
        self.post(b"request=1", **{"content-type": "application/x-www-form-urlencoded"})
        self.http.get("/v1/releases/../keys")
        self.http.put("/v1/challenges")
        self.http.get("/nowhere")

    # --- operators ---

    def hire(self, name: str) -> dict[str, str]:
        """Add an operator; give the header with the token, which is one of the secrets."""
        token = self.run("operator", "add", name, "--role", "admin", secret_output=True).strip()
        # What goes before is public: the prefix of all tokens, and the id of this one.
        self.secrets[f"token of {name}"] = token.split(b"_", 2)[2]
        self.private_file(f"{name}.token", token)
        return {"Authorization": f"Bearer {token.decode()}"}

    def administer(self, known: Mapping[str, str]) -> None:
        """Use the operators' routes: what reads, what changes, and what is refused."""
        read = (
            *("/v1/policy", "/v1/policy/changes", "/v1/keys", "/v1/keys/rotation", "/v1/operators"),
            *("/v1/operators/actions", "/v1/releases", "/v1/images"),
        )
        for path in read:
            assert self.http.get(path, headers=known).status_code == 200, path
            assert self.http.get(path).status_code == 401, path
        for entry in self.http.get("/v1/releases", headers=known).json()["releases"]:
            where = f"/v1/releases/{entry['release_id']}"
            assert self.http.get(where, headers=known).status_code == 200
            assert self.http.get(f"{where}/explanation", headers=known).status_code == 200
        files = {file.name: file.read_text() for file in self.rack.policies.glob("*.yaml")}
        request = self.request([DISK])
        evidence = self._guest.evidence(request.report_data)
        changed = {**files, "app.yaml": files["app.yaml"].replace("chips: any", "chips: []")}
        planted = self.planted.hex()
        for path, body, status in (
            ("/v1/policy/what-if", {"files": changed, "since_seconds": 3600}, 200),
            ("/v1/policy/lint", {"files": changed}, 200),
            ("/v1/policy/apply", {"files": {"a.yaml": "kind: ["}, "message": "broken"}, 422),
            ("/v1/policy/apply", {"files": files, "message": planted}, 200),
            ("/v1/policy/revocations", {"kind": "chip", "value": "ab" * 64, "reason": planted}, 200),
            ("/v1/verifications", {"evidence": evidence, "request": b64url(request.raw)}, 200),
            ("/v1/keys/identity", {}, 200),
            ("/v1/keys/epochs/1000/retire", {}, 409),
        ):
            answer = self.http.post(path, json=body, headers=known)
            assert answer.status_code == status, (path, answer.text)
        assert planted in self.http.get("/v1/policy/changes", headers=known).text
        # A token where none belongs: in a query, in a body, in another scheme, and one letter too long.
        token = known["Authorization"].removeprefix("Bearer ")
        self.http.get("/v1/keys", params={"access_token": token})
        self.http.get("/v1/keys", headers={"Authorization": f"Basic {token}"})
        self.http.get("/v1/keys", headers={"Authorization": f"Bearer {token}A"})
        self.http.post("/v1/keys/rotate", json={"at": token}, headers=known)
        self.post(json.dumps({"request": token, "evidence": {"tee": token}}).encode())

    def publish(self) -> None:
        """Read what is there for everybody."""
        app = f"/v1/apps/{APP_ID.hex()}"
        for path in (
            *("/v1/identity", "/v1/ca", f"/v1/ca?app_id={APP_ID.hex()}", f"{app}/env-key"),
            *(f"{app}/signing-key", "/readyz", "/healthz", "/openapi.json", "/docs"),
        ):
            assert self.http.get(path).status_code == 200, path

    def command(self) -> None:
        """Run operators' commands, beside the server and from afar, also such that fail."""
        remote = ("--server", self.server.url, "--ca", str(self.server.ca), "--token-file")
        wrong = self.private_file("wrong.token", b"kmso_wrong")
        readers = [
            ("keys", "list"),
            ("keys", "rotation", *remote, "alice.token"),
            ("keys", "list", *remote, wrong),
            ("operator", "list", *remote, "alice.token"),
            ("operator", "log"),
            ("policy", "history", *remote, "alice.token"),
            ("policy", "explain", self._refused),
            ("serve", "--print-config"),
            ("serve", "--config", wrong),
        ]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda command: self.run(*command), readers))
        self.run("keys", "schedule", "--at", "2900-01-01T00:00:00Z")
        self.run("keys", "retire", "1", *remote, "alice.token")
        self.run("keys", "retire", "1", "--force")

    def back_up(self) -> None:
        """Export the root where it can be had; what is written is sealed, so it may be read by anybody."""
        line = self.run("keys", "recovery-key", "--out", "alice.key")
        (self.folder / "recovery.toml").write_bytes(line)
        (self.folder / "recovery.toml").chmod(0o600)
        self.run("keys", "export", "--all", "--out", "root.backup")
        backup = self.folder / "root.backup"
        if backup.exists():
            self.written.append(("the backup", backup.read_bytes()))
            self.run("keys", "restore", "root.backup", "--key", "alice.key", "--check")

    def import_dstack(self) -> None:
        """Import another KMS's roots."""
        ca = ec.generate_private_key(ec.SECP256R1())
        k256 = ec.generate_private_key(ec.SECP256K1())
        self.secrets["dstack's CA"] = ca.private_numbers().private_value.to_bytes(32, "big")
        self.secrets["dstack's k256"] = k256.private_numbers().private_value.to_bytes(32, "big")
        pem = ca.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        files = (
            *("--ca-key", self.private_file("root-ca.key", pem)),
            *("--k256-key", self.private_file("root-k256.key", self.secrets["dstack's k256"])),
        )
        self.run("keys", "import-dstack", *files)

    # --- faults ---

    def fail(self) -> None:
        """Let a defect of the server come to light while it holds keys."""
        with self.defect():
            answer, _ = self.ask(ASKED)
        assert answer.status_code == 500

    def break_database(self, known: Mapping[str, str]) -> None:
        """Take each of some tables away under the running server, and write into one by hand."""
        with closing(sqlite3.connect(self.server.data_dir / "kms.sqlite3")) as database:
            for table in ("foreign_roots", "spent_challenges", "decisions", "key_epochs", "operators"):
                database.execute(f"alter table {table} rename to away")
                database.commit()
                self.ask(ASKED)
                self.http.get("/v1/releases", headers=known)
                self.http.get("/v1/keys", headers=known)
                database.execute(f"alter table away rename to {table}")
            database.execute("update key_epochs set mac = zeroblob(32)")
            database.commit()
        self.ask(ASKED)
        self.http.get("/v1/keys", headers=known)
        self.run("keys", "list")

    # --- from the root ---

    def derive(self) -> None:
        """Add all that the server derives from the roots that are known here."""
        ask, messages = self.root.prf, root_messages
        apps_ca = AppsCa.from_prf(ask(1, messages.apps_ca_message()))
        self.secrets |= {
            **{f"root of epoch {epoch}": secret for epoch, secret in self.root.secrets.items()},
            **{f"identity {number}": ask(1, messages.identity_message(number)) for number in (1, 2)},
            "challenge key": ask(1, messages.challenge_message()),
            "key of rows": ask(1, messages.rows_message()),
            "key of imported roots": ask(1, messages.foreign_message()),
            "PRF output of the apps' CA": ask(1, messages.apps_ca_message()),
            "apps' CA": _scalar(apps_ca._key),
        }
        for epoch in self.root.secrets:
            app_secret = ask(epoch, messages.app_message(APP_ID))
            self.secrets[f"app secret of epoch {epoch}"] = app_secret
            self.secrets[f"app CA of epoch {epoch}"] = _scalar(apps_ca.app_ca(app_secret, APP_ID, epoch)._key)

    # --- all of it ---

    def live(self, *, commands: bool) -> None:
        """Do everything; `commands` that make no difference to the server can be left out."""
        self.derive()
        self.import_dstack()
        alice = self.hire("alice")
        self.release_all()
        assert self.http.post("/v1/keys/rotate", json={}, headers=alice).status_code == 200
        self.release_all()
        self.fetch(KeyRequest.parse("disk", "app", 1), KeyRequest.parse("disk", "app", 2))
        self.be_refused()
        self.publish()
        self.administer(alice)
        if commands:
            self.command()
        else:
            self.run("keys", "retire", "1", "--force")
        self.back_up()
        self.ask([KeyRequest.parse("disk", "app", 1)])  # retired
        self.keep_files("before the faults")
        self.fail()
        self.break_database(alice)


def _secret_part(key: ReleasedKey) -> bytes:
    """Give the value; of a P-256 key the scalar, for all around it in PKCS#8 is public."""
    assert key.value is not None
    if key.algorithm is not Algorithm.P_256:
        return key.value
    private = load_der_private_key(key.value, None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    return _scalar(private)


def _scalar(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_numbers().private_value.to_bytes(32, "big")
