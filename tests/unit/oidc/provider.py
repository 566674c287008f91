"""An OpenID Connect provider on 127.0.0.1: real HTTP, keys that rotate, and every way to fail."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from typing_extensions import override

from kms.oidc.issuer import Issuer
from kms.operators import Role

AUDIENCE = "attested-kms"
DISCOVERY = "/.well-known/openid-configuration"
KEYS = "/keys"
_ALGORITHMS: Any = {"RSA": RSAAlgorithm, "EC": ECAlgorithm, "OKP": OKPAlgorithm}

# Made once: RSA keys take their time.
RSA_KEY = rsa.generate_private_key(65537, 2048)
OTHER_RSA_KEY = rsa.generate_private_key(65537, 2048)
P256_KEY = ec.generate_private_key(ec.SECP256R1())
P384_KEY = ec.generate_private_key(ec.SECP384R1())
ED25519_KEY = ed25519.Ed25519PrivateKey.generate()

AnyKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def jwk(key: AnyKey, kid: str | None, **members: object) -> dict[str, Any]:
    """Give the public half as a JSON Web Key; a member set to None is left out."""
    kind = {rsa.RSAPrivateKey: "RSA", ec.EllipticCurvePrivateKey: "EC"}
    name = next((kind[each] for each in kind if isinstance(key, each)), "OKP")
    made = _ALGORITHMS[name].to_jwk(key.public_key(), as_dict=True)
    made = {"use": "sig", **made, "kid": kid, **members}
    return {member: value for member, value in made.items() if value is not None}


@dataclass
class Provider:
    """`answers` maps paths to a status and body, or to a status alone; `asked` are paths, in order."""

    url: str
    answers: dict[str, tuple[int, bytes] | int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    pause: float = 0.0

    def publish(self, *keys: dict[str, Any], **discovery: object) -> None:
        document = {"issuer": self.url, "jwks_uri": self.url + KEYS, **discovery}
        self.answers[DISCOVERY] = (200, json.dumps(document).encode())
        self.answers[KEYS] = (200, json.dumps({"keys": keys}).encode())

    def fail(self, status: int = 500) -> None:
        self.answers = {DISCOVERY: status}

    def issuer(self, role_claim: str = "kms_roles") -> Issuer:
        roles = {"kms-admins": Role.ADMIN, "ops": Role.OPERATOR, "audit": Role.AUDITOR, "all": Role.VIEWER}
        return Issuer(url=self.url, audience=AUDIENCE, role_claim=role_claim, roles=roles, plain=True)

    def token(
        self,
        key: Any = RSA_KEY,
        algorithm: str | None = "RS256",
        headers: dict[str, Any] | None = None,
        **claims: object,
    ) -> str:
        """Sign a good token, changed by `claims` and `headers`; a claim set to None is left out."""
        now = int(time.time())
        made = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "alice",
            "iat": now,
            "exp": now + 300,
            "kms_roles": ["ops"],
            **claims,
        }
        present = {name: value for name, value in made.items() if value is not None}
        return jwt.encode(present, key, algorithm, {"kid": "one", **(headers or {})})


@contextmanager
def running_provider() -> Iterator[Provider]:
    """Run a provider that publishes `RSA_KEY` as ``one``."""
    provider = Provider("")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            provider.asked.append(self.path)
            time.sleep(provider.pause)
            answer = provider.answers.get(self.path, 404)
            status, body = (answer, b"") if isinstance(answer, int) else answer
            self.send_response(status)
            if status in {301, 302}:
                self.send_header("Location", provider.url + "/elsewhere")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(OSError):  # it hung up: the answer was too long, or too late
                self.wfile.write(body)

        @override
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    provider.url = f"http://127.0.0.1:{server.server_port}"
    provider.publish(jwk(RSA_KEY, "one"))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
