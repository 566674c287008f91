"""What is recorded reads back as it was, and nothing else reads."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kms.boot_info import BootInfo
from kms.boot_info_reader import read_boot_info
from kms.checks import Check
from kms.evidence.app_document import AppIdentity
from kms.identifiers import AppId, ChipId, ComposeHash, InstanceId, KeyDigest, Measurement, OsImageHash
from kms.keys.certificates import Fingerprint, IssuedCertificate, SerialNumber
from kms.keys.names import KeyRequest
from kms.ledger.entries import DecisionEntry
from kms.ledger.recorded import RecordDamaged, RecordedDecision
from kms.measurement.images import Binding
from kms.policy.decision import AppClaim, Ask
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.advisories import TcbStatus
from kms.snp.flags import GuestPolicy, PlatformInfo, Signer
from kms.snp.product import Cpuid, Product
from kms.snp.report import FirmwareVersion
from kms.snp.tcb import TcbVersion, TcbVersions, component_names
from kms.strict_json import JsonError
from tests.unit.policy.samples import BOOT_INFO, NOW, key
from tests.world import describe_image, open_world

BYTE, BITS = st.integers(0, 255), st.integers(0, 2**64 - 1)
APP_IDS = st.sampled_from([20, 32]).flatmap(lambda size: st.binary(min_size=size, max_size=size)).filter(any)
INSTANCE_IDS = st.binary(min_size=16, max_size=32).filter(any)


def exactly(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


def not_zero(size: int) -> st.SearchStrategy[bytes]:
    return exactly(size).filter(any)


def or_none(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


def levels(product: Product) -> st.SearchStrategy[TcbVersion]:
    return st.fixed_dictionaries(dict.fromkeys(component_names(product), BYTE)).map(
        lambda drawn: TcbVersion(**drawn)
    )


def versions(product: Product) -> st.SearchStrategy[TcbVersions]:
    each = levels(product)
    return st.builds(TcbVersions, current=each, reported=each, committed=each, launch=each)


FIRMWARE = st.builds(FirmwareVersion, major=BYTE, minor=BYTE, build=BYTE)


def boot_infos_of(product: Product) -> st.SearchStrategy[BootInfo]:
    return st.builds(
        BootInfo,
        tee=st.text(max_size=10),
        product=st.just(product),
        cpuid=or_none(st.builds(Cpuid, BYTE, BYTE, BYTE)),
        report_version=st.integers(2, 5),
        signer=st.sampled_from(Signer),
        csp_id=or_none(st.text(max_size=10)),
        measurement=exactly(48).map(Measurement),
        os_image_hash=or_none(not_zero(32).map(OsImageHash)),
        image=or_none(st.text(max_size=10)),
        vcpus=or_none(st.integers(1, 512)),
        vcpu_type=or_none(st.text(max_size=10)),
        guest_features=or_none(BITS),
        app_id=or_none(APP_IDS.map(AppId)),
        compose_hash=or_none(not_zero(32).map(ComposeHash)),
        instance_id=or_none(INSTANCE_IDS.map(InstanceId)),
        binding=or_none(st.sampled_from(Binding)),
        chip_id=or_none(not_zero(64).map(ChipId)),
        tcb=versions(product),
        current_firmware=FIRMWARE,
        committed_firmware=FIRMWARE,
        tcb_status=or_none(st.sampled_from(TcbStatus)),
        advisories=or_none(st.lists(st.text(max_size=12), max_size=3).map(tuple)),
        guest_policy=BITS.map(GuestPolicy.decode),
        platform_info=BITS.map(PlatformInfo),
        launch_mitigations=or_none(BITS),
        current_mitigations=or_none(BITS),
        vmpl=st.integers(0, 3),
        guest_svn=st.integers(0, 2**32 - 1),
        family_id=exactly(16),
        image_id=exactly(16),
        id_key_digest=exactly(48).map(KeyDigest),
        author_key_digest=exactly(48).map(KeyDigest),
        host_data=exactly(32),
        report_id=exactly(32),
    )


BOOT_INFOS = st.sampled_from(Product).flatmap(boot_infos_of)
DOCUMENTS = st.builds(
    AppIdentity,
    app_id=APP_IDS.map(AppId),
    compose_hash=not_zero(32).map(ComposeHash),
    instance_id=or_none(INSTANCE_IDS.map(InstanceId)),
    binding=st.sampled_from(Binding),
    kms_identity=or_none(exactly(32)),
)
CLAIMS = st.builds(
    AppClaim,
    app_id=or_none(APP_IDS.map(AppId)),
    compose_hash=or_none(not_zero(32).map(ComposeHash)),
    instance_id=or_none(INSTANCE_IDS.map(InstanceId)),
)
WITH_OWN_KEY = replace(KeyRequest.parse("tls", "app", 2), certificate_for=b"\x04" * 65)
KEYS = st.sampled_from(
    [
        KeyRequest.parse("disk", "app"),
        KeyRequest.parse("custom:db/a", "chip", 3),
        key("signing"),
        key("tls"),
        KeyRequest.parse("dstack:disk", "instance"),
        WITH_OWN_KEY,
    ]
)
CERTIFICATES = st.builds(
    IssuedCertificate, fingerprint=exactly(32).map(Fingerprint), serial=exactly(20).map(SerialNumber)
)
WORDS = st.text(max_size=20)


def with_key_epochs(entry: DecisionEntry, of_keys: Sequence[int | None]) -> DecisionEntry:
    """Give a release of the keys that `entry` asks for, each of this epoch."""
    if not of_keys:
        return entry
    epochs = sorted({each for each in of_keys if each is not None})
    return replace(entry, epochs=tuple(epochs), key_epochs=tuple(of_keys))


ENTRIES = st.builds(
    DecisionEntry,
    release_id=WORDS,
    decided_at=st.datetimes(datetime(2020, 1, 1), datetime(2050, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    outcome=st.sampled_from(["released", "refused"]),
    code=or_none(WORDS),
    reasons=st.lists(WORDS, max_size=3).map(tuple),
    checks=st.lists(st.builds(Check, WORDS, st.booleans(), WORDS, WORDS), max_size=3).map(tuple),
    boot_info=or_none(BOOT_INFOS),
    document=or_none(DOCUMENTS),
    ask=st.builds(Ask, keys=st.lists(KEYS, max_size=3).map(tuple), app=or_none(CLAIMS)),
    epochs=st.lists(st.integers(1, 9), max_size=2).map(tuple),
    policy_revision=or_none(WORDS),
    challenge=or_none(exactly(16)),
    client=WORDS,
    development=st.booleans(),
    salt=exactly(16),
    certificates=st.lists(CERTIFICATES, max_size=2).map(tuple),
).flatmap(
    lambda entry: (
        st.just(entry)
        | st.lists(
            or_none(st.integers(1, 9)), min_size=len(entry.ask.keys), max_size=len(entry.ask.keys)
        ).map(partial(with_key_epochs, entry))
    )
)
SHORTER = ({"sha256": "0f" * 31}, {"serial": "05" * 19})
CERTIFICATE = IssuedCertificate(Fingerprint(b"\x0f" * 32), SerialNumber(b"\x05" * 20))
ENTRY = DecisionEntry(
    release_id="r1",
    decided_at=NOW,
    outcome="refused",
    code="policy-denied",
    reasons=("chip-not-listed",),
    checks=(Check("chip-listed", False, "chip c7 is not listed", "chip-not-listed"),),
    boot_info=BOOT_INFO,
    document=AppIdentity(
        app_id=AppId(b"\xa1" * 20),
        compose_hash=ComposeHash(b"\xc1" * 32),
        instance_id=InstanceId(b"\x11" * 20),
        binding=Binding.HOST_DATA,
        kms_identity=b"\x02" * 32,
    ),
    ask=Ask((key("disk"),), AppClaim(app_id=AppId(b"\xa1" * 20))),
    epochs=(1,),
    policy_revision="sha256:00",
    challenge=b"challenge",
    client="192.0.2.1",
    development=False,
    salt=bytes(16),
)


@settings(max_examples=150, deadline=None)
@given(BOOT_INFOS)
def test_a_boot_info_reads_back_as_it_was_written(boot_info: BootInfo) -> None:
    written = json.loads(json.dumps(boot_info.to_json()))
    read = read_boot_info(written)
    assert read == boot_info
    names = [each.name for each in fields(BootInfo)]
    assert [type(getattr(read, name)) for name in names] == [type(getattr(boot_info, name)) for name in names]


@settings(max_examples=100, deadline=None)
@given(ENTRIES)
def test_an_entry_reads_back_as_it_was_written(entry: DecisionEntry) -> None:
    read = RecordedDecision.from_json(json.loads(entry.canonical))
    for name in RecordedDecision.__slots__:
        if name != "challenge":
            assert getattr(read, name) == getattr(entry, name), name
    # Every byte of the record follows from what was read, the challenge apart, which is only hashed.
    again = DecisionEntry(
        **{name: getattr(read, name) for name in RecordedDecision.__slots__ if name != "challenge"},
        challenge=entry.challenge,
        salt=entry.salt,
    )
    assert again.canonical == entry.canonical
    assert (read.challenge is None) == (entry.challenge is None)


def damaged(value: Any) -> Iterator[Any]:
    """Give the value with one thing changed, in every place: left out, added, or of another type."""
    if isinstance(value, dict):
        for name, member in value.items():
            yield {other: each for other, each in value.items() if other != name}
            yield from ({**value, name: each} for each in damaged(member))
        yield {**value, "unknown": 1}
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from ([*value[:index], each, *value[index + 1 :]] for each in damaged(item))
        yield [*value, [[]]]
    yield {"another": "type"}
    yield 1.5
    if value is not None and not isinstance(value, str):
        yield "text"


def test_nothing_else_reads() -> None:
    whole = json.loads(ENTRY.canonical)
    RecordedDecision.from_json(whole)
    tried = list(damaged(whole))
    assert len(tried) > 400
    for value in tried:
        with pytest.raises(RecordDamaged):
            RecordedDecision.from_json(value)


def test_certificates_and_own_keys_are_read_as_strictly() -> None:
    entry = replace(ENTRY, ask=Ask((WITH_OWN_KEY,)), certificates=(CERTIFICATE,))
    whole: dict[str, Any] = json.loads(entry.canonical)
    assert whole["certificates"] == [{"sha256": "0f" * 32, "serial": "05" * 20}]
    RecordedDecision.from_json(whole)
    for member in ("certificates", "keys"):
        for value in damaged(whole[member]):
            if value == [{"name": "tls", "scope": "app", "epoch": 2}]:
                continue  # what is recorded of a guest that asked for the app's own key
            with pytest.raises(RecordDamaged):
                RecordedDecision.from_json({**whole, member: value})
    own = whole["keys"][0]["certificate_for"]
    too_short: list[Any] = [[{**whole["certificates"][0], **change}] for change in SHORTER]
    for wrong in ([], *too_short):
        with pytest.raises(RecordDamaged):
            RecordedDecision.from_json({**whole, "certificates": wrong})
    for text in (own[:-2], own + "AA", ""):
        with pytest.raises(RecordDamaged):
            RecordedDecision.from_json({**whole, "keys": [{**whole["keys"][0], "certificate_for": text}]})


def test_the_epochs_of_keys_are_read_as_strictly() -> None:
    asked = Ask((key("disk"), KeyRequest.parse("dstack:env", "app"), key("env")))
    entry = with_key_epochs(replace(ENTRY, ask=asked), [2, None, 1])
    whole: dict[str, Any] = json.loads(entry.canonical)
    assert (whole["epochs"], whole["key_epochs"]) == ([1, 2], [2, None, 1])
    assert RecordedDecision.from_json(whole).key_epochs == (2, None, 1)
    wrong: dict[str, list[Any]] = {
        "key_epochs": [[], [2, 1], [2, None, 1, 1], [2, 1, 1.0], [2, None, 0], [True, None, 2], [2, None, 3]],
        "epochs": [[1], [2, 1], [1, 2, 3], []],
    }
    for member, values in wrong.items():
        for value in values:
            with pytest.raises(RecordDamaged):
                RecordedDecision.from_json({**whole, member: value})


def test_an_entry_of_before_certificates_and_epochs_of_keys_has_the_bytes_that_it_always_had() -> None:
    """Receipts promise digests of entries that older versions wrote."""
    before = "e476cf601b600da83983600c4b04f9af5fb994a240dcc9f10dc99386d1de215f"
    assert sha256(ENTRY.canonical).hexdigest() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"guest_policy": {**BOOT_INFO.to_json()["guest_policy"], "debug": True}},  # type: ignore[dict-item]
        {"measurement": "33" * 47},
        {"measurement": ("3c" * 48).upper()},
        {"guest_features": "0x01"},
        {"vmpl": True},
        {"report_id": "00" * 31},
        {"firmware": {**BOOT_INFO.to_json()["firmware"], "current": {"version": "1.0_55", "build": 22}}},  # type: ignore[dict-item]
        {"product": "naples"},
        {"advisories": [1]},
    ],
)
def test_a_boot_info_that_contradicts_itself_does_not_read(changes: dict[str, Any]) -> None:
    written = BOOT_INFO.to_json()
    read_boot_info(written)
    with pytest.raises(JsonError):
        read_boot_info({**written, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "action"},
        {"decided_at": "2026-11-22T12:00:00Z"},
        {"decided_at": "2026-11-22T12:00:00.000000"},
        {"epochs": [True]},
        {"epochs": [0]},
        {"key_epochs": [None]},
        {"keys": [{"name": "disk", "scope": "app", "epoch": 0}]},
        {"keys": [{"name": "nothing", "scope": "app", "epoch": None}]},
        {"development": 0},
    ],
)
def test_an_entry_that_no_release_writes_does_not_read(changes: dict[str, Any]) -> None:
    with pytest.raises(RecordDamaged):
        RecordedDecision.from_json({**json.loads(ENTRY.canonical), **changes})


def test_a_boot_info_gives_its_launch_only_whole() -> None:
    launch = BOOT_INFO.launch
    assert launch is not None
    assert (launch.image, launch.vcpus, launch.measurement) == ("demo-os-1", 2, BOOT_INFO.measurement)
    for missing in ("os_image_hash", "vcpus", "vcpu_type", "guest_features"):
        changes: dict[str, Any] = {missing: None}
        assert replace(BOOT_INFO, **changes).launch is None
    assert replace(BOOT_INFO, image=None).launch is not None


@pytest.mark.parametrize("product", Product)
@pytest.mark.parametrize("csp_id", [None, "a provider"])
async def test_what_a_server_records_reads_back(
    tmp_path: Path,
    simulated_hierarchies: Mapping[Product, AmdHierarchy],
    product: Product,
    csp_id: str | None,
) -> None:
    """Of every product, signed by a chip's key and by a provider's, released and refused."""
    async with open_world(
        tmp_path, simulated_hierarchies[product], make_chip=lambda chip: replace(chip, csp_id=csp_id)
    ) as world:
        signers = {"signers": ["vcek", "vlek"], "csp": ["a provider"]}
        await world.apply_changed(app={"chips": "any", "guest": "g"}, guest=signers)
        assert (await world.ask()).status == 200
        assert (await world.ask(world.launch(description=describe_image(seed=b"unknown")))).status == 403
        for record in await world.records():
            read = RecordedDecision.from_json(record.entry)
            assert read.boot_info is not None
            assert (read.boot_info.product, read.boot_info.csp_id) == (product, csp_id)
            assert read.boot_info.to_json() == record.entry["boot_info"]
            assert read.reasons == tuple(record.entry["reasons"])
            assert read.document is not None
