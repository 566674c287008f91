"""One policy and one guest that it allows; every test changes one thing."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from kms.boot_info import BootInfo
from kms.identifiers import AppId, ChipId, ComposeHash, InstanceId, KeyDigest, Measurement, OsImageHash
from kms.keys.names import KeyName, KeyRequest, Scope
from kms.measurement.images import Binding
from kms.policy.compiled import Policy
from kms.policy.decision import Ask, Context, Decision, decide
from kms.policy.revision import Revision
from kms.snp.advisories import TcbStatus
from kms.snp.advisory_file import parse_advisories
from kms.snp.flags import GuestPolicy, PlatformInfo, Signer
from kms.snp.product import Cpuid, Product
from kms.snp.report import FirmwareVersion
from kms.snp.tcb import TcbVersion, TcbVersions

POLICIES = Path(__file__).parents[2] / "golden" / "policies"
VALID = {f"valid/{path.name}": path.read_bytes() for path in sorted((POLICIES / "valid").iterdir())}
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)

APP_ID = AppId.from_hex("86e59625be93207bc2351c4d1bba20037cec8e16")
COMPOSE = ComposeHash(b"\xc0" * 32)
CHIP = ChipId(b"\xc7" * 64)
IMAGE_HASH = OsImageHash.from_hex("10e411b39e0b5e0ba5680059d38a10d397d7231ce59dc2f41f164e457a45b9a1")
HASH_ALONE = OsImageHash(bytes.fromhex("ee00" * 16))  # listed by the app, documented nowhere
IDENTITY = b"\x01" * 32
SMT_AND_RESERVED_ONE = 1 << 16 | 1 << 17
ALIAS_CHECK_COMPLETE = 1 << 5

# Not AMD's figures: one bulletin of each standing for the guest below, whatever else a test changes of it.
ADVISORIES = parse_advisories(
    """
    [[advisory]]
    id = "AMD-SB-3015"
    title = "fixed"
    url = "https://example.com/3015"
    genoa = {figure = [{firmware = "1.0.0", source = "this test"}]}

    [[advisory]]
    id = "AMD-SB-3016"
    title = "open"
    url = "https://example.com/3016"
    genoa = {figure = [{firmware = "255.0.0", source = "this test"}]}

    [[advisory]]
    id = "AMD-SB-3034"
    title = "not attestable"
    url = "https://example.com/3034"
    genoa = {not_attestable = "AMD took the figures back"}

    [[advisory]]
    id = "AMD-SB-3027"
    title = "with a figure for another CPU only"
    url = "https://example.com/3027"
    genoa = {figure = [{firmware = "1.0.0", cpus = ["0x19/0xa0/2"], source = "this test"}]}

    [[advisory]]
    id = "AMD-SB-3045"
    title = "of another product"
    url = "https://example.com/3045"
    milan = {not_attestable = "forged reports show anything"}
    """
)

Document = dict[str, Any]


def documents() -> dict[str, Document]:
    """Give the valid documents by kind, as plain values that a test may change."""
    loaded = [each for data in VALID.values() for each in yaml.load_all(data, Loader=yaml.BaseLoader)]
    assert {each["kind"] for each in loaded} == {"app", "image", "tcb", "guest", "chips", "revoked"}
    return {each["kind"]: _typed(each) for each in loaded}


def _typed(value: Any, key: str = "") -> Any:
    """Turn back into numbers what the base loader, which reads everything as text, read as text."""
    if isinstance(value, dict):
        return {name: _typed(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_typed(item, key) for item in value]
    numeric = isinstance(value, str) and value.isdecimal() and len(value) < 16
    return int(value) if numeric else value


def policy_of(values: Mapping[str, Document] | Iterable[Document], *, development: bool = False) -> Policy:
    """Compile documents."""
    every = values.values() if isinstance(values, Mapping) else values
    text = "\n---\n".join(json.dumps(each) for each in every)  # JSON is YAML 1.2
    return Policy(Revision.from_files({"policy.yaml": text.encode()}, development=development))


def tcb(**levels: int) -> TcbVersion:
    return TcbVersion(**{"bootloader": 10, "tee": 0, "snp": 23, "microcode": 84, **levels})


def key(name: str, scope: Scope = Scope.APP) -> KeyRequest:
    return KeyRequest(KeyName.parse(name), scope)


BOOT_INFO = BootInfo(
    tee="sev-snp",
    product=Product.GENOA,
    cpuid=Cpuid(0x19, 0x11, 1),
    report_version=5,
    signer=Signer.VCEK,
    csp_id=None,
    measurement=Measurement(b"\x33" * 48),
    os_image_hash=IMAGE_HASH,
    image="demo-os-1",
    vcpus=2,
    vcpu_type="EPYC-v4",
    guest_features=1,
    app_id=APP_ID,
    compose_hash=COMPOSE,
    instance_id=InstanceId(b"\x44" * 16),
    binding=Binding.HOST_DATA,
    chip_id=CHIP,
    tcb=TcbVersions(current=tcb(), reported=tcb(), committed=tcb(), launch=tcb()),
    current_firmware=FirmwareVersion(major=1, minor=55, build=22),
    committed_firmware=FirmwareVersion(major=1, minor=55, build=22),
    tcb_status=TcbStatus.UP_TO_DATE,
    advisories=(),
    guest_policy=GuestPolicy.decode(SMT_AND_RESERVED_ONE),
    platform_info=PlatformInfo(ALIAS_CHECK_COMPLETE),
    launch_mitigations=0x3,
    current_mitigations=0x3,
    vmpl=0,
    guest_svn=0,
    family_id=bytes(16),
    image_id=bytes(16),
    id_key_digest=KeyDigest(bytes(48)),
    author_key_digest=KeyDigest(bytes(48)),
    host_data=bytes(32),
    report_id=bytes(32),
)
ASK = Ask((key("disk"), key("custom:db/main"), key("disk", Scope.INSTANCE), key("disk", Scope.CHIP)))
CONTEXT = Context(
    now=NOW,
    development=False,
    kms_identities=frozenset({IDENTITY}),
    document_kms_identity=None,
    enforces=frozenset({Binding.HOST_DATA}),
    advisories=ADVISORIES,
)


@dataclass(frozen=True)
class Case:
    """What one decision is made of."""

    documents: dict[str, Document]
    boot_info: BootInfo = BOOT_INFO
    ask: Ask = ASK
    context: Context = CONTEXT
    more: tuple[Document, ...] = ()

    def guest(self, **changes: Any) -> "Case":
        return replace(self, boot_info=replace(self.boot_info, **changes))

    def decide(self) -> Decision:
        # A policy of development mode: what production refuses to load, its decisions must deny too.
        policy = policy_of([*self.documents.values(), *self.more], development=True)
        return decide(policy, self.boot_info, self.ask, self.context)
