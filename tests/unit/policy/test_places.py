"""Which document, member and line each check goes by."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import yaml

from kms.checks import Check
from kms.identifiers import AppId, ChipId
from kms.policy.decision import Denied
from kms.policy.lint import lint
from kms.policy.places import Written, short
from kms.policy.revision import Revision
from kms.policy.rule_table import LEVELS, MACHINE, MEASUREMENT, MEMBERS, REVOKED, WITHOUT_DOCUMENT
from kms.policy.rules import Rule, Rules
from tests.unit.policy.samples import APP_ID, BOOT_INFO, CHIP, VALID, Case, documents, tcb
from tests.unit.policy.test_decision import (
    ALLOWED,
    DENIED,
    HASHED,
    PAST,
    V2,
    Change,
    also,
    both,
    case,
    guest,
    tcbs,
    written,
)

# Made in other steps of a release than the decision: tests/api judges them.
ELSEWHERE = {"app-document", "app-binding", "epoch"}
TABLE = {*MEMBERS, *LEVELS, *REVOKED, *WITHOUT_DOCUMENT, MACHINE} - ELSEWHERE
CHANGES: dict[str, Change] = ALLOWED | {name: change for name, (change, _) in DENIED.items()}


def files_of(documents: list[dict[str, Any]]) -> dict[str, bytes]:
    """Write each document to a file of its kind as people do, in block style, after a comment."""
    texts: dict[str, str] = {}
    for each in documents:
        text = yaml.safe_dump(each, sort_keys=False, default_flow_style=False)
        name = f"{each['kind']}s.yaml"
        texts[name] = texts.get(name, "# written by hand\n") + f"---\n{text}"
    return {name: text.encode() for name, text in texts.items()}


def explained(base: Case) -> dict[str, tuple[Check, Rule | None, Mapping[str, bytes]]]:
    """Decide, and give each check with its rule; the last of several of one name."""
    files = files_of([*base.documents.values(), *base.more])
    rules = Rules(Written(Revision.from_files(files, development=True), files))
    decision = base.decide()
    app_id = base.boot_info.app_id
    # Failures last, so that of several checks of one name (keys) a failed one is given.
    checks = sorted(decision.checks, key=lambda check: not check.passed)
    return {check.name: (check, rules.of(check, app_id, base.boot_info), files) for check in checks}


def line_of(rule: Rule | None, files: Mapping[str, bytes]) -> str:
    assert rule is not None
    assert rule.says is not None
    assert rule.says.file is not None
    assert rule.says.line is not None
    return files[rule.says.file].decode().splitlines()[rule.says.line - 1]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_check_of_every_decision_has_its_rule(change: Change) -> None:
    base = change(case())
    for check, rule, files in explained(base).values():
        if base.boot_info.app_id != APP_ID and check.name not in {*WITHOUT_DOCUMENT, *REVOKED}:
            assert check.name == "app-listed"
        assert rule is not None, check.name
        assert rule.wanted
        if rule.says is None:
            no_document = check.name in WITHOUT_DOCUMENT or (check.name in REVOKED and check.passed)
            assert no_document or check.reason == "app-not-listed", check.name
            continue
        # The last name of the member stands in the line that is given, or the document lists no such member.
        if rule.says.file is not None and not rule.wanted.startswith("left out") and rule.says.member:
            line = line_of(rule, files)
            named = f"{rule.says.member.rpartition('.')[2]}:" in line
            assert named or check.name in REVOKED, (check.name, line)


def test_the_table_knows_every_check_and_holds_no_other() -> None:
    made = {check.name for change in CHANGES.values() for check in change(case()).decide().checks}
    assert made == TABLE


def test_the_defaults_of_the_table_are_those_of_the_readers() -> None:
    """A document that writes the defaults out reads as one that leaves them out."""
    left_out: list[dict[str, Any]] = []
    written_out: list[dict[str, Any]] = []
    required = {"app": {"id", "name", "compose", "images", "chips", "tcb", "binding", "keys"}}
    required |= {"tcb": {"name", "products"}, "guest": {"name"}}
    for kind, needed in required.items():
        least = {name: value for name, value in documents()[kind].items() if name in {"kind", *needed}}
        if kind == "app":
            least |= {"chips": "any", "images": [], "keys": ["disk"], "guest": "standard"}
        left_out.append(least)
        whole: dict[str, Any] = json.loads(json.dumps(least))
        for ruled in MEMBERS.values():
            if ruled.kind != kind or ruled.default in {"", "never", "the newest"}:
                continue
            *outer, member = ruled.member.split(".")
            place = whole
            for name in outer:
                place = place.setdefault(name, {})
            plain = member == "firmware_minimum" or ruled.default.startswith("0x")
            place[member] = ruled.default if plain else yaml.safe_load(ruled.default)
        written_out.append(whole)
    pairs = zip(_read(left_out), _read(written_out), strict=True)
    assert all(one == other for one, other in pairs)
    assert left_out != written_out


def _read(values: list[dict[str, Any]]) -> tuple[Any, ...]:
    result = lint({"policy.yaml": "\n---\n".join(map(json.dumps, values)).encode()}, development=False)
    assert not [each for each in result.findings if each.severity == "error"], result.findings
    return result.documents


class Said(NamedTuple):
    """A change of the policy or guest, a check, and what its rule says."""

    change: Change
    check: str
    wanted: str
    document: str
    member: str
    line: str


SAYS: dict[str, Said] = {
    "chip not listed": Said(
        guest(chip_id=ChipId(b"\x05" * 64)),
        "chip-listed",
        "[rack-7]",
        "app payments",
        "chips",
        "chips:",
    ),
    "a set of chips that expired": Said(
        both(
            written("chips", expires_at=PAST),
            also({"kind": "chips", "name": "rack-8", "chips": ["05" * 64]}),
            written("app", chips=["rack-8", "rack-7"]),
        ),
        "chip-listed",
        PAST,
        "chips rack-7",
        "expires_at",
        f"expires_at: '{PAST}'",
    ),
    "the component that is too low": Said(
        tcbs(reported=tcb(microcode=83)),
        "tcb-reported",
        "microcode at least 84",
        "tcb fleet-2026q4",
        "products.genoa.microcode",
        "    microcode: 84",
    ),
    "several components, the first": Said(
        tcbs(reported=tcb(bootloader=9, microcode=83)),
        "tcb-reported",
        "bootloader at least 10, microcode at least 84",
        "tcb fleet-2026q4",
        "products.genoa.bootloader",
        "    bootloader: 10",
    ),
    "a report without CPUID, by the entry that is higher": Said(
        both(
            V2,
            written(
                "tcb",
                products={
                    "genoa": {"bootloader": 10, "tee": 0, "snp": 23, "microcode": 84},
                    "genoa/0xa0": {"bootloader": 11, "tee": 0, "snp": 0, "microcode": 0},
                },
            ),
        ),
        "tcb-reported",
        "bootloader at least 11",
        "tcb fleet-2026q4",
        "products.genoa/0xa0.bootloader",
        "    bootloader: 11",
    ),
    "a product that is not listed": Said(
        written("tcb", products={"genoa/0xa0": {"bootloader": 0, "tee": 0, "snp": 0, "microcode": 0}}),
        "product-listed",
        "one of: genoa/0xa0",
        "tcb fleet-2026q4",
        "products",
        "products:",
    ),
    "a revoked chip, by the document that revokes it": Said(
        both(
            written("revoked", chips=["05" * 64]),
            also({"kind": "revoked", "name": "later", "chips": ["06" * 64, CHIP.hex()]}),
        ),
        "chip-not-revoked",
        "in no document of kind revoked",
        "revoked later",
        "chips",
        f"- {CHIP.hex()}",
    ),
    "a revoked image, by another name of it": Said(
        both(
            lambda base: also({**base.documents["image"], "name": "os-again"})(base),
            written("revoked", images=["os-again"]),
        ),
        "image-not-revoked",
        "in no document of kind revoked",
        "revoked emergency",
        "images",
        "- os-again",
    ),
    "a machine with too many vCPUs": Said(
        guest(vcpus=65),
        MACHINE,
        "1 to 64 vCPUs of EPYC-v4, EPYC-Milan; features 0x1",
        "image demo-os-1",
        "vcpus",
        "vcpus:",
    ),
    "a machine with features": Said(
        guest(guest_features=0x21),
        MACHINE,
        "1 to 64 vCPUs of EPYC-v4, EPYC-Milan; features 0x1",
        "image demo-os-1",
        "guest_features",
        "guest_features:",
    ),
    "a machine of another type": Said(
        guest(vcpu_type="EPYC-Genoa"),
        MACHINE,
        "1 to 64 vCPUs of EPYC-v4, EPYC-Milan; features 0x1",
        "image demo-os-1",
        "vcpu_types",
        "vcpu_types:",
    ),
    "what a guest document left out": Said(
        written("guest", vmpl=None),
        "vmpl",
        "left out: default [0]",
        "guest standard",
        "vmpl",
        "kind: guest",
    ),
    "debug outside development mode": Said(
        written("guest", debug="allow"),
        "policy-debug",
        "forbid: outside development mode `allow` denies everybody",
        "guest standard",
        "debug",
        "debug: allow",
    ),
    "a passed check": Said(
        lambda base: base,
        "mitigations-launch",
        "0x0",
        "tcb fleet-2026q4",
        "mitigations.launch",
        "  launch: '0x0'",
    ),
}


@pytest.mark.parametrize("said", SAYS.values(), ids=SAYS.keys())
def test_says(said: Said) -> None:
    _, rule, files = explained(said.change(case()))[said.check]
    assert rule is not None
    assert rule.says is not None
    assert (rule.wanted, rule.says.document, rule.says.member) == (said.wanted, said.document, said.member)
    assert line_of(rule, files) == said.line
    assert rule.says.column == len(said.line) - len(said.line.lstrip(" -")) + 1


BUILT_IN: dict[str, tuple[Change, str, str, str, str | None]] = {
    "strict": (written("app", guest=None), "vmpl", "[0]", "guest strict (built in)", "vmpl"),
    "hash alone": (
        HASHED,
        "binding-enforced",
        "dstack-mr-config, host-data",
        "image by hash alone (built in)",
        "enforces",
    ),
    "hash alone on a machine": (
        both(HASHED, guest(guest_features=0x21)),
        MACHINE,
        "1 to 512 vCPUs, a known vCPU type, features 0x1",
        "image by hash alone (built in)",
        "guest_features",
    ),
}


@pytest.mark.parametrize(
    ("change", "name", "wanted", "document", "member"), BUILT_IN.values(), ids=BUILT_IN.keys()
)
def test_what_is_built_in_stands_in_no_file(
    change: Change, name: str, wanted: str, document: str, member: str
) -> None:
    _, rule, _ = explained(change(case()))[name]
    assert rule is not None
    assert rule.says is not None
    assert (rule.wanted, rule.says.document, rule.says.member) == (wanted, document, member)
    assert (rule.says.file, rule.says.line, rule.says.column) == (None, None, None)


def test_an_app_that_is_not_listed_has_no_document() -> None:
    other = AppId(b"\x05" * 20)
    _, rule, _ = explained(case().guest(app_id=other))["app-listed"]
    assert rule == Rule(f"an app document with the id {other.hex()}")


def test_of_what_was_only_claimed_the_app_s_own_rules_are_told() -> None:
    rules = Rules(Written(Revision.from_files(VALID, development=False), VALID))
    failed = Check("chip-listed", False, "", "chip-not-listed")
    rule = rules.of(failed, APP_ID, None)
    assert rule is not None
    assert rule.says is not None
    assert (rule.says.document, rule.says.file) == ("app payments", "valid/apps.yaml")
    assert rules.of(failed, None, None) is None
    assert rules.of(Check("hwid", False, "", "hwid-mismatch"), APP_ID, BOOT_INFO) is None
    known = rules.of(Check(MEASUREMENT, True, "", ""), APP_ID, BOOT_INFO)
    assert known == Rule("the measurement of one of 1 documented image(s)")


def test_files_that_say_something_else_give_no_places() -> None:
    """Whoever changes the stored files cannot make an explanation point at a rule that did not judge."""
    forged = {name: data.replace(b"chips: [rack-7]", b"chips: any") for name, data in VALID.items()}
    assert forged != VALID
    rules = Rules(Written(Revision.from_files(VALID, development=False), forged))
    rule = rules.of(Check("chip-listed", True, "", ""), APP_ID, BOOT_INFO)
    assert rule is not None
    assert rule.says is not None
    assert (rule.wanted, rule.says.document, rule.says.member) == ("[rack-7]", "app payments", "chips")
    assert rule.says.file is None
    # The others are as they were judged.
    levels = rules.of(Check("tcb-reported", True, "", ""), APP_ID, BOOT_INFO)
    assert levels is not None
    assert levels.says is not None
    assert levels.says.file == "valid/platform.yml"


@pytest.mark.parametrize("data", [b"\xff", b"[", b"kind: [app]\nname: {a: b}\n", b"- 1\n", b""])
def test_files_that_are_no_policy_give_no_places(data: bytes) -> None:
    revision = Revision.from_files(VALID, development=False)
    rule = Rules(Written(revision, {"policy.yaml": data})).of(Check("vmpl", True, "", ""), APP_ID, BOOT_INFO)
    assert rule is not None
    assert rule.says is not None
    assert (rule.says.document, rule.says.file) == ("guest standard", None)


def test_a_stored_revision_has_documents_and_members_but_no_lines() -> None:
    revision = Revision.from_files(VALID, development=False)
    stored = Revision.from_canonical(revision.canonical)
    with_files, without = Rules(Written(revision, VALID)), Rules(Written(stored))
    denied = replace(case(), boot_info=replace(BOOT_INFO, vmpl=1, chip_id=ChipId(b"\x05" * 64))).decide()
    assert isinstance(denied, Denied)
    for check in denied.checks:
        one, other = (each.of(check, APP_ID, BOOT_INFO) for each in (with_files, without))
        assert one is not None
        assert other is not None
        assert one.wanted == other.wanted
        if one.says is not None:
            assert one.says._replace(file=None, line=None, column=None) == other.says


def test_short_forms() -> None:
    text = (
        f"many: [1, 2, 3, 4, 5, 6]\nfive: [1, 2, 3, 4, 5]\nhash: '{'ab' * 32}'\nchip: '{'cd' * 64}'\nall: any"
    )
    result = lint({"p.yaml": text.encode()}, development=False)
    shown = {name: short(member.value) for name, member in result.sources[0].root.members.items()}
    assert shown == {
        "many": "[1, 2, 3, 4, 5, … (6 in all)]",
        "five": "[1, 2, 3, 4, 5]",
        "hash": "ab" * 32,
        "chip": "cd" * 8 + "…",
        "all": "any",
    }


def test_of_many_names_that_begin_alike_the_right_one_is_found() -> None:
    base = documents()
    apps = [{**base["app"], "name": f"app-{n}", "id": f"aa{n:038x}"} for n in range(1, 60)]
    files = files_of([*apps, *(each for kind, each in base.items() if kind != "app")])
    rules = Rules(Written(Revision.from_files(files, development=False), files))
    for app in apps:
        rule = rules.of(Check("app-listed", True, "", ""), AppId.from_hex(app["id"]), None)
        assert line_of(rule, files) == f"id: {app['id']}"


def test_files_that_hold_the_name_again_and_again_are_not_read_to_the_end() -> None:
    many = b"---\nkind: guest\nname: standard\n" * 50_000
    revision = Revision.from_files(VALID, development=False)
    rule = Rules(Written(revision, {"policy.yaml": many})).of(Check("vmpl", True, "", ""), APP_ID, BOOT_INFO)
    assert rule is not None
    assert rule.says is not None
    assert rule.says.file is None
