"""A real HashiCorp Vault on 127.0.0.1, with a CA of its own, and storage that survives a restart."""

import base64
import os
import re
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Self, cast

import hvac
import jwt
import pytest
import requests
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding

from kms.keys.root_messages import Mode
from kms.rootkey.provider import RootAccess
from kms.rootkey.vault_access import AppRole, Kubernetes, TokenFile, VaultAccess
from tests.certificates import SERVER, Authority, pem, write
from tests.servers.ports import free_port

_MODULE: Final = Path(__file__).with_name("vault_server") / "go.mod"
_VERSION: Final = re.compile(r"^require github\.com/hashicorp/vault v(\S+)$", re.MULTILINE)

_ALL_OF_THE_MOUNTS: Final = """
path "transit/*" { capabilities = ["create", "read", "update"] }
path "team/transit/*" { capabilities = ["create", "read", "update"] }
path "kv/*" { capabilities = ["create", "read", "update"] }
"""
_AUDIENCE: Final = "vault"


def find_vault() -> Path:
    """Give the binary, or skip the test."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    named = os.environ.get("KMS_TEST_VAULT")
    version = _VERSION.findall(_MODULE.read_text())[0]
    binary = Path(named) if named else cache / "attested-kms" / f"vault-{version}"
    if not binary.is_file():
        pytest.skip(
            "there is no Vault, so the providers vault-transit and vault-kv are not tested:"
            " run tests/servers/build_vault.sh (or set KMS_TEST_VAULT)"
        )
    return binary


class VaultServer:
    """A server process, initialised and unsealed.

    Engines: ``transit/``, ``team/transit/`` and ``kv/`` (version 2); logins: ``auth/approle`` and
    ``auth/kubernetes``, which is a JWT login here: the request and the answer are the same.
    """

    def __init__(self, folder: Path) -> None:
        self._binary = find_vault()
        self._folder = folder
        self.port = free_port()
        self.address = f"https://127.0.0.1:{self.port}"
        self.ca = self._write_files()
        self.start()
        session = requests.Session()
        session.trust_env = False  # tests change the environment
        session.verify = str(self.ca)
        client = hvac.Client(self.address, session=session, token="")
        made = client.sys.initialize(secret_shares=1, secret_threshold=1)
        self._unseal_key = made["keys"][0]
        client.token = made["root_token"]
        self.root = client  # hvac, with the root token
        self.unseal()
        self._prepare()

    def start(self) -> None:
        """Start the process on the same port and storage; it is sealed."""
        with (self._folder / "vault.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, "server", f"-config={self._folder / 'vault.hcl'}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "HOME": str(self._folder)},
            )
        wait_until(self._listens)

    def stop(self) -> None:
        """End the process at once, as a crash does."""
        self._process.kill()
        self._process.wait()

    def seal(self) -> None:
        self.root.sys.seal()

    def unseal(self) -> None:
        """Unseal, and wait until it serves."""
        self.root.sys.submit_unseal_key(self._unseal_key)
        # A dict is the answer of an active server; other states come as a response.
        wait_until(lambda: isinstance(self.root.sys.read_health_status(method="GET"), dict))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the process hang: it accepts connections, and answers nothing until the end."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    # --- logins ---

    def policy(self, rules: str) -> str:
        """Make a policy, and give its name."""
        name = f"policy-{secrets.token_hex(4)}"
        self.root.sys.create_or_update_policy(name, rules)
        return name

    def token(self, *policies: str, ttl: str = "1h", **options: object) -> str:
        """Make a token, for all of the mounts by default; `options` as in ``auth/token/create-orphan``."""
        made = self.root.auth.token.create_orphan(policies=policies or ["all"], ttl=ttl, **options)
        return cast("str", made["auth"]["client_token"])

    def token_login(self, *policies: str, ttl: str = "1h", **options: object) -> TokenFile:
        """Give a file with a new token."""
        login = TokenFile(self._folder / f"token-{secrets.token_hex(4)}")
        write_private(login.path, self.token(*policies, ttl=ttl, **options))
        return login

    def approle_login(self, policy: str = "all", *, ttl: str = "1h", **options: object) -> AppRole:
        """Make a role whose tokens live for `ttl`, and give its role id and a file with a secret id."""
        name = f"role-{secrets.token_hex(4)}"
        approle = self.root.auth.approle
        approle.create_or_update_approle(name, token_policies=[policy], token_ttl=ttl, **options)
        role_id = approle.read_role_id(name)["data"]["role_id"]
        login = AppRole(role_id, self._folder / f"secret-id-of-{name}")
        write_private(login.secret_id_file, self.secret_id(login))
        return login

    def secret_id(self, login: AppRole) -> str:
        """Make a secret id for the role."""
        return cast("str", self._of_role(login, "secret-id")["data"]["secret_id"])

    def revoke_secret_id(self, login: AppRole) -> None:
        """Destroy the secret id that is in the file."""
        self._of_role(login, "secret-id/destroy", {"secret_id": login.secret_id_file.read_text()})

    def kubernetes_login(self, policy: str = "all", *, ttl: str = "1h") -> Kubernetes:
        """Make a role for a service account, and give a projected token, which lives for ten minutes."""
        name = f"role-{secrets.token_hex(4)}"
        self.root.write_data(
            f"auth/kubernetes/role/{name}",
            data={
                "role_type": "jwt",
                "user_claim": "sub",
                "bound_audiences": [_AUDIENCE],
                "token_policies": [policy],
                "token_ttl": ttl,
            },
        )
        login = Kubernetes(name, self._folder / f"service-account-{name}")
        login.token_file.write_text(self.service_account_token())
        return login

    def service_account_token(self, life: timedelta = timedelta(minutes=10)) -> str:
        now = datetime.now(UTC)
        claims = {"sub": "system:serviceaccount:kms:kms", "aud": _AUDIENCE, "iat": now, "exp": now + life}
        return jwt.encode(claims, self._account_key, algorithm="ES256")

    # --- roots ---

    def vault_access(
        self, login: TokenFile | AppRole | Kubernetes | None = None, **changes: object
    ) -> VaultAccess:
        """Give how to reach this server; by a token for all of the mounts where no other login is given."""
        values: dict[str, object] = {
            "address": self.address,
            "login": login or self.token_login(),
            "ca": self.ca,
            "timeout": timedelta(seconds=2),
        }
        return VaultAccess(**(values | changes))  # type: ignore[arg-type]

    def access(self, mode: Mode, login: TokenFile | AppRole | Kubernetes | None = None) -> RootAccess:
        """Give what providers take."""
        return RootAccess(mode=mode, vault=self.vault_access(login))

    def fresh_uri(self, scheme: str) -> str:
        """Give the URI of a root that does not exist yet; `scheme` is ``vault-transit`` or ``vault-kv``."""
        name = f"root-{secrets.token_hex(4)}"
        return {"vault-transit": f"vault-transit:transit/{name}", "vault-kv": f"vault-kv:kv/kms/{name}"}[
            scheme
        ]

    def configure_key(self, name: str, **settings: object) -> None:
        self.root.write_data(f"transit/keys/{name}/config", data=settings)

    def delete_key(self, name: str) -> None:
        """Delete a transit key for good."""
        self.configure_key(name, deletion_allowed=True)
        self.root.secrets.transit.delete_key(name)

    def import_hmac_key(self, name: str, key: bytes, *, rotatable: bool = True) -> None:
        """Put a known key into transit, wrapped as Vault's import wants it."""
        wrapping = self.root.read("transit/wrapping_key")["data"]["public_key"].encode()
        public = cast("rsa.RSAPublicKey", serialization.load_pem_public_key(wrapping))
        once = secrets.token_bytes(32)
        oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), label=None)
        wrapped = public.encrypt(once, oaep) + aes_key_wrap_with_padding(once, key)
        self.root.write_data(
            f"transit/keys/{name}/import",
            data={
                "type": "hmac",
                "hash_function": "SHA256",
                "ciphertext": base64.b64encode(wrapped).decode("ascii"),
                "allow_rotation": rotatable,
            },
        )

    # --- making it ---

    def _write_files(self) -> Path:
        now = datetime.now(UTC)
        authority = Authority("Vault CA", now=now)
        certificate = write(self._folder, "server", authority.issue("vault", usages=(SERVER,)))
        (self._folder / "storage").mkdir()
        (self._folder / "vault.hcl").write_text(
            f"""
storage "raft" {{
  path = "{self._folder / "storage"}"
  node_id = "one"
  performance_multiplier = 1
}}
listener "tcp" {{
  address = "127.0.0.1:{self.port}"
  cluster_address = "127.0.0.1:{free_port()}"
  tls_cert_file = "{certificate}"
  tls_key_file = "{certificate}"
}}
api_addr = "{self.address}"
cluster_addr = "https://127.0.0.1:{free_port()}"
disable_mlock = true
"""
        )
        ca = self._folder / "ca.pem"
        ca.write_text(pem(authority.certificate))
        return ca

    def _prepare(self) -> None:
        for path in ("transit", "team/transit"):
            self.root.sys.enable_secrets_engine("transit", path)
        self.root.sys.enable_secrets_engine("kv", "kv", options={"version": "2"})
        self.root.sys.enable_auth_method("approle")
        self.root.sys.enable_auth_method("jwt", path="kubernetes")
        self._account_key = ec.generate_private_key(ec.SECP256R1())
        public = self._account_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.root.write_data(
            "auth/kubernetes/config", data={"jwt_validation_pubkeys": [public.decode("ascii")]}
        )
        self.root.sys.create_or_update_policy("all", _ALL_OF_THE_MOUNTS)

    def _of_role(
        self, login: AppRole, what: str, data: Mapping[str, object] | None = None
    ) -> dict[str, dict[str, object]]:
        role = login.secret_id_file.name.removeprefix("secret-id-of-")
        answer = self.root.write_data(f"auth/approle/role/{role}/{what}", data=dict(data or {}))
        return cast("dict[str, dict[str, object]]", answer)

    def _listens(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(f"Vault ended: see {self._folder / 'vault.log'}")
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False


class SlowProxy:
    """A TCP proxy on 127.0.0.1 that passes each piece on after `delay` seconds."""

    def __init__(self, port: int) -> None:
        self.delay = 0.0
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # What shutdown() wakes, close() alone would leave in accept().
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                time.sleep(self.delay)
                sink.sendall(piece)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


def wait_until(true: Callable[[], bool], *, within: float = 20.0) -> None:
    end = time.monotonic() + within
    while not true():
        if time.monotonic() > end:
            raise TimeoutError("it did not become true")
        time.sleep(0.05)
