"""Every anchor keeps what was seen: forward only, shared, and never mistaken for an empty one."""

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Final, cast

import pytest
from typing_extensions import override

from kms.anchor import Anchor, AnchorUnusable, FileAnchor, Seen
from kms.errors import ConfigurationError, LedgerUnavailable
from kms.keys.epochs import KeyProgress
from kms.keys.root_messages import Mode
from kms.ledger_ports import ROLLED_BACK, AnchoredLedger, SeenLedger
from kms.policy.history import Head
from kms.policy_authority import PolicyUntrusted
from kms.rootkey import RootAccess
from kms.settings import load_settings
from kms.vault_anchor import VaultAnchor
from kms.wiring import open_kms
from tests.servers.vault import VaultServer

pytestmark = [pytest.mark.enable_socket, pytest.mark.xdist_group("vault")]

A, B = "sha256:" + "aa" * 32, "sha256:" + "bb" * 32
KEYS: Final = KeyProgress(epochs=3, in_use=2, retired=frozenset({1}), generations=2)
LEDGER: Final = SeenLedger(size=12, root=b"\x01" * 32, place=14)


class Place(ABC):
    """Where anchors are, and what others can do to one there."""

    @abstractmethod
    def anchor(self) -> Anchor:
        """Give that of a server that starts now."""

    @abstractmethod
    def content(self) -> object:
        """Give what is kept, as JSON."""

    @abstractmethod
    def overwrite(self, content: object) -> None:
        """Put something else there."""


class FilePlace(Place):
    def __init__(self, folder: Path) -> None:
        self._path = folder / "anchor.json"

    @override
    def anchor(self) -> Anchor:
        return FileAnchor(self._path)

    @override
    def content(self) -> object:
        return json.loads(self._path.read_bytes())

    @override
    def overwrite(self, content: object) -> None:
        self._path.write_text(json.dumps(content))
        self._path.chmod(0o600)


class VaultPlace(Place):
    def __init__(self, vault: VaultServer) -> None:
        self._kv = vault.root.secrets.kv.v2
        self.uri = vault.fresh_uri("vault-kv")
        self._path = self.uri.removeprefix("vault-kv:kv/")
        self._access = vault.access(Mode.PRODUCTION)

    @override
    def anchor(self) -> VaultAnchor:
        return VaultAnchor.from_setting(f"kv/{self._path}", self._access)

    @override
    def content(self) -> object:
        answer = self._kv.read_secret_version(self._path, mount_point="kv", raise_on_deleted_version=True)
        return answer["data"]["data"]

    @override
    def overwrite(self, content: object) -> None:
        self._kv.create_or_update_secret(self._path, cast("dict[str, object]", content), mount_point="kv")

    def delete(self) -> None:
        """Delete the newest version, as ``vault kv delete`` does."""
        self._kv.delete_latest_version_of_secret(self._path, mount_point="kv")


@pytest.fixture(params=["file", "vault-kv"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "file":
        return FilePlace(tmp_path)
    return VaultPlace(request.getfixturevalue("vault"))


@pytest.fixture
def vault_place(vault: VaultServer) -> VaultPlace:
    return VaultPlace(vault)


@pytest.fixture
async def anchor(place: Place) -> AsyncIterator[Anchor]:
    made = place.anchor()
    yield made
    await made.close()


@pytest.fixture
async def another(place: Place) -> AsyncIterator[Anchor]:
    """Another server's, or another process's."""
    made = place.anchor()
    yield made
    await made.close()


async def test_nothing_was_seen_before_the_first_time(anchor: Anchor, tmp_path: Path) -> None:
    assert await anchor.read() is None
    assert await anchor.read_keys() == KeyProgress()
    assert await anchor.read_ledger() is None
    await anchor.require_usable(made_later=tmp_path)


async def test_what_one_keeps_the_other_reads(place: Place, anchor: Anchor, another: Anchor) -> None:
    await anchor.remember(Head(7, A))
    await another.remember_keys(KEYS)
    await anchor.remember_ledger(LEDGER)
    for each in (anchor, another):
        assert await each.read() == Head(7, A)
        assert await each.read_keys() == KEYS
        assert await each.read_ledger() == LEDGER
    assert place.content() == {
        "policy": {"sequence": 7, "revision": A},
        "keys": {"epochs": 3, "in_use": 2, "retired": [1], "generations": 2},
        "ledger": {"size": 12, "root": "01" * 32, "place": 14},
    }


async def test_policies_only_go_forward(anchor: Anchor, another: Anchor) -> None:
    await anchor.remember(Head(7, A))
    for head in (Head(6, A), Head(7, B)):
        with pytest.raises(PolicyUntrusted, match="this server has used"):
            await another.remember(head)
    await another.remember(Head(8, B))
    assert await anchor.read() == Head(8, B)


async def test_keys_are_united(anchor: Anchor, another: Anchor) -> None:
    await anchor.remember_keys(KEYS)
    await another.remember_keys(KeyProgress(epochs=2, retired=frozenset({2})))
    assert await anchor.read_keys() == replace(KEYS, retired=frozenset({1, 2}))


async def test_of_ledgers_the_larger_one_is_kept(anchor: Anchor, another: Anchor) -> None:
    await anchor.remember_ledger(LEDGER)
    await another.remember_ledger(SeenLedger(size=11, root=b"\x02" * 32, place=13))
    assert await anchor.read_ledger() == LEDGER
    larger = SeenLedger(size=13, root=b"\x03" * 32, place=15)
    await another.remember_ledger(larger)
    assert await anchor.read_ledger() == larger


@pytest.mark.parametrize("other", [replace(LEDGER, root=b"\x02" * 32), replace(LEDGER, place=15)])
async def test_another_ledger_of_the_same_size_is_refused(anchor: Anchor, other: SeenLedger) -> None:
    await anchor.remember_ledger(LEDGER)
    with pytest.raises(LedgerUnavailable) as refused:
        await anchor.remember_ledger(other)
    assert refused.value.reason == ROLLED_BACK
    assert await anchor.read_ledger() == LEDGER


async def test_what_an_operator_accepts_goes_back(anchor: Anchor, another: Anchor) -> None:
    await anchor.remember(Head(7, A))
    await anchor.remember_ledger(LEDGER)
    await another.accept_ledger(SeenLedger.nothing())
    assert await anchor.read_ledger() == SeenLedger.nothing()
    assert await anchor.read() == Head(7, A)


async def test_what_an_operator_accepts_is_counted(place: Place, anchor: Anchor, another: Anchor) -> None:
    assert await anchor.anchored_ledger() == AnchoredLedger(ledger=SeenLedger.nothing(), accepted=0)
    await anchor.remember_ledger(LEDGER)
    for _ in range(2):
        await another.accept_ledger(SeenLedger.nothing())
    await anchor.remember_ledger(LEDGER)
    assert await another.anchored_ledger() == AnchoredLedger(ledger=LEDGER, accepted=2)
    assert place.content() == {"ledger": {"size": 12, "root": "01" * 32, "place": 14, "accepted": 2}}


async def test_members_of_others_are_kept(place: Place, anchor: Anchor) -> None:
    place.overwrite({"later": {"more": [1]}, "policy": {"sequence": 1, "revision": A}})
    await anchor.remember_ledger(LEDGER)
    assert place.content() == {
        "later": {"more": [1]},
        "policy": {"sequence": 1, "revision": A},
        "ledger": {"size": 12, "root": "01" * 32, "place": 14},
    }


@pytest.mark.parametrize(
    "content",
    [
        {"later": 1},
        {"ledger": None},
        {"ledger": {}},
        {"ledger": {"size": 12, "root": "01" * 32}},
        {"ledger": {"size": 12, "root": "01" * 31, "place": 14}},
        {"ledger": {"size": -1, "root": "01" * 32, "place": 14}},
        {"ledger": {"size": "12", "root": "01" * 32, "place": 14}},
        {"ledger": {"size": 12, "root": "01" * 32, "place": 14, "more": 1}},
        {"ledger": {"size": 12, "root": "01" * 32, "place": 14, "accepted": -1}},
        {"policy": {"sequence": 7, "revision": A}, "keys": {}},
    ],
    ids=json.dumps,
)
async def test_a_damaged_one_never_means_that_nothing_was_seen(
    place: Place, anchor: Anchor, content: object, tmp_path: Path
) -> None:
    place.overwrite(content)
    for attempt in (
        anchor.read,
        anchor.read_keys,
        anchor.read_ledger,
        lambda: anchor.remember_ledger(LEDGER),
        lambda: anchor.remember(Head(8, A)),
    ):
        with pytest.raises(AnchorUnusable, match="damaged"):
            await attempt()
    with pytest.raises(ConfigurationError, match="damaged"):
        await anchor.require_usable(made_later=tmp_path / "elsewhere")
    assert place.content() == content


async def test_of_many_at_once_none_takes_back_what_another_wrote(place: Place) -> None:
    anchors = [place.anchor() for _ in range(4)]

    async def work(number: int) -> None:
        for turn in range(5):
            size = 1 + 4 * turn + number
            await anchors[number].remember_ledger(SeenLedger(size=size, root=bytes(32), place=size))
            await anchors[number].remember_keys(KeyProgress(retired=frozenset({size})))
            seen = await anchors[number].read_ledger()
            assert seen is not None
            assert seen.size >= size

    await asyncio.gather(*map(work, range(4)))
    kept = await anchors[0].read_ledger()
    assert kept is not None
    assert kept.size == 20
    assert (await anchors[1].read_keys()).retired == frozenset(range(1, 21))
    for each in anchors:
        await each.close()


class TestVault:
    async def test_without_vault_what_was_read_last_is_known_and_nothing_is_kept(
        self, vault: VaultServer, vault_place: VaultPlace
    ) -> None:
        anchor, fresh = vault_place.anchor(), vault_place.anchor()
        await anchor.remember_ledger(LEDGER)
        vault.seal()
        try:
            assert await anchor.read_ledger() == LEDGER
            for attempt in (
                lambda: anchor.remember_ledger(replace(LEDGER, size=13)),
                fresh.read_ledger,
                fresh.read,
            ):
                with pytest.raises(LedgerUnavailable) as refused:
                    await attempt()
                assert refused.value.reason == "anchor-unavailable"
                assert not isinstance(refused.value, AnchorUnusable)
        finally:
            vault.unseal()
        assert await fresh.read_ledger() == LEDGER
        await anchor.close()
        await fresh.close()

    async def test_an_answer_that_was_overtaken_makes_nothing_forgotten(
        self, vault: VaultServer, vault_place: VaultPlace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Vault goes away right after it; what was seen last still is what this server knows."""
        anchor, another = vault_place.anchor(), vault_place.anchor()
        await another.remember_ledger(LEDGER)
        read, answered, go_on = VaultAnchor._read, asyncio.Event(), asyncio.Event()

        async def held_up(each: VaultAnchor) -> tuple[int, Seen]:
            answer = await read(each)
            if not answered.is_set():
                answered.set()
                await go_on.wait()
            return answer

        monkeypatch.setattr(VaultAnchor, "_read", held_up)
        older = asyncio.create_task(anchor.read_ledger())
        await answered.wait()
        larger = SeenLedger(size=13, root=b"\x03" * 32, place=15)
        await another.remember_ledger(larger)
        assert await anchor.read_ledger() == larger
        go_on.set()
        assert await older == larger
        vault.seal()
        try:
            assert await anchor.read_ledger() == larger
        finally:
            vault.unseal()
        await anchor.close()
        await another.close()

    async def test_one_that_was_deleted_is_not_a_new_one(self, vault_place: VaultPlace) -> None:
        anchor = vault_place.anchor()
        await anchor.remember_ledger(LEDGER)
        vault_place.delete()
        for attempt in (anchor.read_ledger, lambda: anchor.remember_ledger(replace(LEDGER, size=13))):
            with pytest.raises(AnchorUnusable, match="deleted"):
                await attempt()
        await anchor.close()

    async def test_it_can_be_used_again_after_it_was_closed(self, vault_place: VaultPlace) -> None:
        anchor = vault_place.anchor()
        await anchor.remember_ledger(LEDGER)
        await anchor.close()
        assert await anchor.read_ledger() == LEDGER
        await anchor.close()

    async def test_an_engine_of_version_1_is_refused(
        self, vault: VaultServer, vault_place: VaultPlace
    ) -> None:
        vault.root.sys.enable_secrets_engine("kv", "kv-one", options={"version": "1"})
        try:
            policy = vault.policy('path "kv-one/*" { capabilities = ["create", "read", "update"] }')
            access = vault.access(Mode.PRODUCTION, vault.token_login(policy))
            anchor = VaultAnchor.from_setting("kv-one/anchor", access)
            with pytest.raises(AnchorUnusable, match="as a KV engine of version 2 does"):
                await anchor.remember_ledger(LEDGER)
            await anchor.close()
        finally:
            vault.root.sys.disable_secrets_engine("kv-one")

    async def test_one_who_may_not_write_says_so(self, vault: VaultServer, vault_place: VaultPlace) -> None:
        policy = vault.policy('path "kv/*" { capabilities = ["read"] }')
        access = vault.access(Mode.PRODUCTION, vault.token_login(policy))
        anchor = VaultAnchor.from_setting(vault_place.uri.removeprefix("vault-kv:"), access)
        assert await anchor.read_ledger() is None
        with pytest.raises(LedgerUnavailable, match="policies do not let us post"):
            await anchor.remember_ledger(LEDGER)
        await anchor.close()


async def test_a_server_keeps_its_anchor_in_vault(
    vault: VaultServer, vault_place: VaultPlace, tmp_path: Path
) -> None:
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "revoked.yaml").write_text("kind: revoked\nname: none\n")
    environment = {
        "KMS_DATA_DIR": str(tmp_path / "data"),
        "KMS_POLICY_DIR": str(policies),
        "KMS_LEDGER_ANCHOR": vault_place.uri,
        "KMS_VAULT_ADDR": vault.address,
        "KMS_VAULT_CA": str(vault.ca),
        "KMS_VAULT_TOKEN_FILE": str(vault.token_login().path),
    }
    settings, _ = load_settings(None, environment)
    for _ in range(2):
        async with open_kms(settings, asyncio.Event()) as kms:
            await kms.desk.epochs.epochs()
    kept = cast("dict[str, dict[str, object]]", vault_place.content())
    assert kept["policy"]["sequence"] == 1
    # The first one recorded the folder's policy; at the latest, the second one sequenced that at its start.
    assert kept["ledger"]["size"] == 1
    assert kept["keys"]["epochs"] == 1
    assert not (tmp_path / "data" / "anchor.json").exists()


@pytest.mark.parametrize("rest", ["", "kv", "kv/", "kv/../x", "kv/a b", "/kv/a"])
def test_a_place_that_is_none_is_refused_by_the_name_of_its_setting(rest: str) -> None:
    with pytest.raises(ConfigurationError, match="KMS_LEDGER_ANCHOR names no place") as refused:
        VaultAnchor.from_setting(rest, RootAccess(mode=Mode.PRODUCTION))
    assert "transit" not in refused.value.remedy


def test_one_in_vault_needs_a_vault() -> None:
    with pytest.raises(ConfigurationError, match="KMS_LEDGER_ANCHOR is in Vault, and no Vault is named"):
        VaultAnchor.from_setting("kv/kms/anchor", RootAccess(mode=Mode.PRODUCTION))
