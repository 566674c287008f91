"""A release's key work, by suite and by provider of the root, beside the primitives that nobody can save.

The work: ask the root for the app's secret, derive ``disk``, ``env`` and ``signing``, sign statement and
payload, seal the envelope. The floor does the same cryptography with everything lying ready: no framing, no
JSON, no checks. Of a root that answers from elsewhere, one bare request to it is beside that. Vault is a real
one, where `tests/servers/build_vault.sh` has built it; the HSM is SoftHSM, where it is installed.
"""

import asyncio
import base64
import hmac
import os
import secrets
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import pytest
import requests
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from nacl.public import PublicKey, SealedBox
from pkcs11 import Mechanism

from bench.pairs import Case, Work, by_turns
from kms.identifiers import AppId
from kms.keys.derivation import derive
from kms.keys.envelope import build_envelope
from kms.keys.identity import Identity
from kms.keys.names import KeyRequest
from kms.keys.opening import RecipientKey
from kms.keys.root_messages import FOUNDING_EPOCH, Mode, app_message, identity_message
from kms.keys.sealing import HPKE_SUITES, Recipient, Suite, seal
from kms.rootkey import CheckedRoot, RootAccess, create_provider
from kms.rootkey.provider import RootProvider
from tests.roots import StoredValues
from tests.servers.softhsm import find_softhsm, softhsm_in
from tests.servers.vault import VaultServer, find_vault

_NOW: Final = datetime(2026, 11, 21, 12, tzinfo=UTC)
_APP: Final = AppId(b"a" * 20)
_ASKED: Final = tuple(KeyRequest.parse(name, "app") for name in ("disk", "env", "signing"))
_DIGEST: Final = b"d" * 64
_RELEASE: Final = "0" * 32
_BATCH: Final = 20
_PAYLOAD: Final = 1108  # bytes that are signed, and bytes that are sealed, of these three keys
_ENVELOPE: Final = 1650
_AIM: Final = 1.3
_TWO_MESSAGES: Final = (b"c" * 60, app_message(_APP))  # as long as those that the root is asked

T = TypeVar("T")


class Run(Protocol):
    """Runs a coroutine in the event loop of all of these cases."""

    def __call__(self, work: Coroutine[Any, Any, T], /) -> T:
        """Give what it gives."""
        ...


def cases(rounds: int) -> Iterator[Case]:
    """Do the work for each suite with a root key file; then with the other providers that are at hand."""
    with tempfile.TemporaryDirectory() as name, asyncio.Runner() as runner:
        run, folder = runner.run, Path(name)
        provider = _made(f"file:{folder / 'root.json'}", RootAccess(mode=Mode.PRODUCTION), run)
        root = run(_checked(provider))
        identity = Identity.from_prf(run(root.prf(FOUNDING_EPOCH, identity_message(1))))
        [secret] = run(_secrets(provider))
        bench = _Bench(identity, secret, rounds)
        yield from bench.by_suite("file", root, _at_once, batch=_BATCH, aims={"primitives": _AIM})
        run(root.close())
        yield from _in_vault(folder, run, bench)
        yield from _in_hsm(folder, run, bench)


@dataclass(frozen=True, slots=True)
class _Bench:
    """Who does the work; `secret` is what the floor's MACs are made with, wherever the root is."""

    identity: Identity
    secret: bytes
    rounds: int

    def by_suite(
        self,
        where: str,
        root: CheckedRoot,
        run: Run,
        *,
        batch: int = 1,
        beside: tuple[str, Work] | None = None,
        aims: Mapping[str, float] | None = None,
    ) -> Iterator[Case]:
        """Time the work with a root for each suite; `beside` is what only the root's place can do."""
        for suite in Suite:
            key = RecipientKey.generate(suite)
            recipient = Recipient.parse(suite.value, key.public_key)
            floor = _floor(self.secret, recipient, key)
            contestants: dict[str, Work] = {
                "ours": lambda recipient=recipient: run(_work(root, self.identity, recipient)),  # type: ignore[misc]
                "primitives": floor,
            }
            if beside is not None:
                name, work = beside
                del contestants["primitives"]
                contestants[name] = lambda work=work, floor=floor: (work(), floor())  # type: ignore[misc]
            name = f"3 keys derived, signed and sealed: {where}, {suite.value}"
            yield by_turns(name, contestants, rounds=self.rounds, batch=batch, aims=aims)


def _in_vault(folder: Path, run: Run, bench: _Bench) -> Iterator[Case]:
    try:
        find_vault()
    except pytest.skip.Exception as skipped:
        print(skipped)
        return
    server = VaultServer(folder)
    access = server.access(Mode.PRODUCTION)
    try:
        uri = server.fresh_uri("vault-transit")
        root = run(_checked(_made(uri, access, run)))
        request = ("and one request", _bare_request(server, uri))
        yield from bench.by_suite("vault-transit", root, run, beside=request)
        run(root.close())
        root = run(_checked(_made(server.fresh_uri("vault-kv"), access, run)))
        yield from bench.by_suite("vault-kv", root, _at_once, batch=_BATCH)
        run(root.close())
    finally:
        server.stop()


def _in_hsm(folder: Path, run: Run, bench: _Bench) -> Iterator[Case]:
    try:
        find_softhsm()
    except pytest.skip.Exception as skipped:
        print(skipped)
        return
    with softhsm_in(folder) as hsm:
        provider = _made(hsm.fresh_uri(), hsm.access(Mode.PRODUCTION), run)
        root = run(_checked(provider))
        yield from bench.by_suite("pkcs11", root, run, beside=("and two MACs there", _bare_macs(provider)))
        run(root.close())


def _bare_macs(provider: RootProvider) -> Work:
    """Give two MACs by the token itself, in this thread: nobody else asks it meanwhile."""
    opened = provider._keys._token._open  # type: ignore[attr-defined] # noqa: SLF001
    key = opened.keys[FOUNDING_EPOCH]
    return lambda: [key.sign(each, mechanism=Mechanism.SHA512_HMAC) for each in _TWO_MESSAGES]


def _bare_request(server: VaultServer, uri: str) -> Work:
    """Give the request that asks Vault for two MACs, over a connection that is open."""
    mount, _, key = uri.partition(":")[2].rpartition("/")
    batch = [{"input": base64.b64encode(each).decode("ascii")} for each in _TWO_MESSAGES]
    session = requests.Session()
    session.trust_env = False
    session.verify = str(server.ca)
    session.headers["X-Vault-Token"] = server.root.token
    url = f"{server.address}/v1/{mount}/hmac/{key}/sha2-512"
    body: dict[str, Any] = {"batch_input": batch, "key_version": 1}

    def ask() -> object:
        answer = session.post(url, json=body, timeout=10)
        answer.raise_for_status()
        return answer.json()

    return ask


def _made(uri: str, access: RootAccess, run: Run) -> RootProvider:
    return run(create_provider(uri, access, now=_NOW, random=secrets.token_bytes))


async def _checked(provider: RootProvider) -> CheckedRoot:
    root = CheckedRoot(provider, StoredValues(), mode=Mode.PRODUCTION, random=secrets.token_bytes)
    await root.verify_all()
    return root


async def _secrets(provider: RootProvider) -> list[bytes]:
    return list((await provider.secrets()).values())


async def _work(root: CheckedRoot, identity: Identity, recipient: Recipient) -> bytes:
    secret = await root.prf(FOUNDING_EPOCH, app_message(_APP))
    keys = [
        derive(secret, each, FOUNDING_EPOCH, app_id=_APP, instance_id=None, chip_id=None, identity=identity)
        for each in _ASKED
    ]
    envelope = build_envelope(identity, release_id=_RELEASE, request_sha512=_DIGEST, app_id=_APP, keys=keys)
    return seal(recipient, envelope, _DIGEST)


def _at_once(work: Awaitable[T]) -> T:
    """Drive what never waits, without the event loop's share."""
    steps = work.__await__()
    try:
        next(steps)
    except StopIteration as done:
        result: T = done.value
        return result
    raise RuntimeError("a root in memory made somebody wait")


def _floor(secret: bytes, recipient: Recipient, key: RecipientKey) -> Work:
    """Give the cryptography alone: two MACs (one is the key check), three keys, two signatures, a seal."""
    message, info = app_message(_APP), b"i" * 96
    payload, envelope = os.urandom(_PAYLOAD), os.urandom(_ENVELOPE)
    signer = Ed25519PrivateKey.generate()
    sealing = _sealing(recipient, key)

    def work() -> object:
        hmac.digest(secret, message, "sha512")
        app_secret = hmac.digest(secret, message, "sha512")
        disk, env, signing = (HKDFExpand(SHA512(), 32, info).derive(app_secret) for _ in range(3))
        X25519PrivateKey.from_private_bytes(env).public_key().public_bytes_raw()
        Ed25519PrivateKey.from_private_bytes(signing).public_key().public_bytes_raw()
        signer.sign(disk)
        signer.sign(payload)
        return sealing(envelope)

    return work


def _sealing(recipient: Recipient, key: RecipientKey) -> Callable[[bytes], object]:
    if recipient.suite is Suite.X25519_SEALEDBOX:
        box = SealedBox(PublicKey(key.public_key))
        return box.encrypt
    suite, public, info = HPKE_SUITES[recipient.suite], recipient._key, b"i" * 88  # noqa: SLF001  # as `seal` has it
    return lambda plaintext: suite.encrypt(plaintext, public, info)  # type: ignore[arg-type]
