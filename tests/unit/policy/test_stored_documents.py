"""What was stored reads as what was written, however large; and nothing else is taken for it."""

import json
from typing import Any

import pytest

from kms.policy.documents import AppDocument
from kms.policy.findings import PolicyInvalid
from kms.policy.lint import lint
from kms.policy.nodes import Items, Members, from_json, to_json
from kms.policy.revision import Revision
from tests.unit.policy.samples import VALID, documents

STORED = Revision.from_files(VALID, development=False).canonical
CHIP = documents()["chips"]["chips"][0]


def stored(*values: Any) -> bytes:
    return json.dumps(values, separators=(",", ":"), sort_keys=True).encode()


def complaint(canonical: bytes) -> str:
    with pytest.raises(PolicyInvalid) as caught:
        Revision.from_canonical(canonical)
    return str(caught.value)


def test_documents_are_equal_to_those_of_the_folder() -> None:
    folder = Revision.from_files(VALID, development=False)
    by_name = {(type(each), each.name): each for each in folder.documents}
    loaded = Revision.from_canonical(folder.canonical)
    assert len(loaded.documents) == len(by_name)
    for each in loaded.documents:
        assert each == by_name[type(each), each.name]


@pytest.mark.parametrize(
    ("canonical", "about"),
    [
        (STORED[:-1], "RFC 8785"),
        (STORED + b"]", "RFC 8785"),
        (STORED + b" ", "RFC 8785"),
        (b" " + STORED, "array"),
        (STORED[:-1] + b",]", "RFC 8785"),
        (STORED.replace(b"},{", b"} {"), "RFC 8785"),
        (STORED.replace(b"},{", b"}, {"), "RFC 8785"),
        (STORED[:-1] + b",null]", "sorted"),
        (STORED.decode().encode("utf-16"), "RFC 8785"),
        (b"[]x", "RFC 8785"),
        (b"[", "RFC 8785"),
    ],
)
def test_another_text_of_the_same_documents_is_refused(canonical: bytes, about: str) -> None:
    assert about in complaint(canonical)


@pytest.mark.parametrize("member", ["launch", "vcpus", "expires_at", "nobody-knows"])
def test_no_depth_of_nesting_ends_but_in_a_finding(member: str) -> None:
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    values = documents()
    assert complaint(stored({**values["image"], member: deep}))
    values["image"]["launch"]["firmware"] = deep
    assert "`firmware` must be a mapping" in complaint(stored(values["image"]))


def test_one_wrong_chip_of_many_is_named() -> None:
    """They are read all at once, and one by one only to say which is wrong."""
    good = [f"{number:0128x}" for number in range(1, 200)]
    for wrong, about in (
        (CHIP.upper()[:-1] + "A", "lowercase"),
        (CHIP[:-2], "this has 126"),
        ("00" * 64, "all zero"),
        ("any", "`any` is not an item"),
        ("0123456789abcdef", "after Turin's 8 bytes"),
        (7, "quote it"),
        ([], "not a list"),
    ):
        chips: list[Any] = [*good[:50], wrong, *good[50:]]
        assert about in complaint(stored({"kind": "chips", "name": "rack", "chips": chips}))
        text = "kind: chips\nname: rack\nchips:\n" + "".join(f"- {json.dumps(each)}\n" for each in chips)
        found = lint({"p.yaml": text.encode()}, development=False).findings
        assert [(each.line, each.column) for each in found] == [(54, 3)]
        assert about in found[0].message


def test_what_many_apps_list_alike_is_kept_once() -> None:
    app = documents()["app"]
    apps = [{**app, "id": f"{number:040x}", "name": f"app-{number}"} for number in (1, 2)]
    others = [each for kind, each in documents().items() if kind != "app"]
    ordered = sorted(others, key=lambda each: str(each["kind"]))
    loaded = Revision.from_canonical(stored(*apps, *ordered)).documents
    first, second = (each for each in loaded if isinstance(each, AppDocument))
    for member in ("images", "image_hashes", "chips", "chip_sets", "binding", "forbid_advisories"):
        assert getattr(first, member) is getattr(second, member), member


def test_a_tree_of_json_is_that_of_what_was_written() -> None:
    value: Any = {"a": [1, "two", {"b": None}], "c": {"d": True}}
    node = from_json(value)
    assert isinstance(node, Members)
    assert to_json(node) == value
    assert node.names == {"a", "c"}
    assert (node.line, node.column) == (1, 1)
    assert node.members["a"].key.text == "a"
    assert node.value("nothing") is None
    items = node.value("a")
    assert isinstance(items, Items)
    assert items.texts() is None
    assert [to_json(each) for each in items.items] == value["a"]
