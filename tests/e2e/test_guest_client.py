"""The guest's clients against a real KMS, and against those that a guest may meet instead of it, over TLS."""

import asyncio
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from kms.encoding import b64url
from kms.guest import (
    AnswerRejected,
    AsyncKeyClient,
    EvidenceOptions,
    KeyClient,
    KeyRequest,
    evidence_source,
)
from kms.keys.sealing import Suite
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.e2e.guest_client_world import DISK, GuestClientWorld, guest_client_world
from tests.simulated_tsm import needs_fuse

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket, needs_fuse]

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "programs.md").read_text()


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, simulated_hierarchies: Mapping[Product, AmdHierarchy]
) -> Iterator[GuestClientWorld]:
    with guest_client_world(tmp_path_factory.mktemp("guest"), simulated_hierarchies) as world:
        yield world
    assert "Traceback" not in world.genuine.log_text()


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(world: GuestClientWorld) -> Iterator[None]:
    world.relay.replayed = None
    yield
    assert world.left_behind() == []


@pytest.mark.parametrize("suite", Suite)
def test_keys_of_a_real_server(world: GuestClientWorld, suite: Suite) -> None:
    keys = [DISK, KeyRequest.parse("custom:db/main", "app", 1)]
    payload = world.client(world.genuine.url, suite=suite).fetch(keys, app_document=world.guest.document)
    assert [(key.name, key.epoch) for key in payload.keys] == [(key.name, 1) for key in keys]
    assert payload.keys[0].value == world.key()
    assert payload.identity == world.pin


async def test_both_clients_and_many_at_once_get_the_same(world: GuestClientWorld) -> None:
    source = evidence_source(EvidenceOptions(tsm=world.tsm))
    client = AsyncKeyClient(world.genuine.url, ca_file=world.ca, identity=world.pin, source=source)
    fetches = (client.fetch([DISK], app_document=world.guest.document) for _ in range(8))
    payloads = await asyncio.gather(*fetches)
    assert {payload.keys[0].value for payload in payloads} == {await asyncio.to_thread(world.key)}


def test_an_impostor_of_the_same_ca_is_refused(world: GuestClientWorld) -> None:
    """It would give a key, and knows that key: without a pin the guest would write its disk with it."""
    trusting = KeyClient(
        world.impostor.url,
        ca_file=world.ca,
        identity=None,
        source=evidence_source(EvidenceOptions(tsm=world.tsm)),
    )
    [key] = trusting.fetch([DISK], app_document=world.guest.document).keys
    assert key.value != world.key()
    with pytest.raises(AnswerRejected) as error:
        world.client(world.impostor.url).fetch([DISK], app_document=world.guest.document)
    assert error.value.reason == "identity-mismatch"


@pytest.mark.parametrize("suite", Suite)
@pytest.mark.parametrize("whose", ["yesterday's", "another guest's"])
def test_an_answer_to_another_request_is_refused(world: GuestClientWorld, suite: Suite, whose: str) -> None:
    client = world.client(world.relay_url, suite=suite)
    if whose == "yesterday's":
        client.fetch([DISK], app_document=world.guest.document)
        world.relay.replayed = world.relay.released[-1]
    else:
        world.replay_another_guests_answer(suite)
    with pytest.raises(AnswerRejected) as error:
        client.fetch([DISK], app_document=world.guest.document)
    assert error.value.reason == "cannot-open"


def run_example(number: int, here: Mapping[str, str]) -> object:
    """Run one of the guide's programs, with what is elsewhere here; give its key."""
    example = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)[number]
    for written, meant in here.items():
        assert written in example
        example = example.replace(written, meant)
    names: dict[str, object] = {}
    exec(compile(example, "programs.md", "exec"), names)  # noqa: S102 - it is our own page
    return names["disk_key"]


@pytest.mark.parametrize("number", [0, 1], ids=["sync", "asyncio"])
def test_the_guide_for_programs_runs(
    world: GuestClientWorld, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = world.folder / "guest.toml"
    config.write_text(f"""
        server = "{world.genuine.url}"
        ca = "{world.ca}"
        identity = "{b64url(world.pin)}"
        app_document = "{world.document}"
        [evidence]
        tsm = "{world.tsm}"
    """)
    config.chmod(0o644)
    monkeypatch.setattr("kms.guest.config.DEFAULT_CONFIG", config)
    assert run_example(number, {}) == world.key()
    assert capsys.readouterr().out == ""


def test_the_guide_for_programs_without_a_file_runs(
    world: GuestClientWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    (world.folder / "kms.id").write_text(b64url(world.pin) + "\n")
    here = {
        "https://kms:8443": world.genuine.url,
        "/etc/attested-kms/": f"{world.folder}/",
        "/sys/firmware/qemu_fw_cfg/by_name/opt/attested-kms/app-document/raw": str(world.document),
        "EvidenceOptions()": f"EvidenceOptions(tsm=Path({str(world.tsm)!r}))",
    }
    assert run_example(2, here) == world.key()
    assert capsys.readouterr().out == ""
