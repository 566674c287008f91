"""YAML 1.2 and nothing that readers read differently."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kms.policy.nodes import Items, Members, Scalar, to_json
from kms.policy.yaml_documents import MAX_DEPTH, parse_documents
from kms.strict_json import JsonValue


def parsed(text: str) -> JsonValue:
    found = parse_documents({"a.yaml": text.encode()})
    assert found.findings == ()
    (source,) = found.sources
    return to_json(source.root)


def messages(text: str | bytes) -> list[str]:
    found = parse_documents({"a.yaml": text if isinstance(text, bytes) else text.encode()})
    return [str(each) for each in found.findings]


@pytest.mark.parametrize(
    "text",
    ["yes", "no", "on", "off", "Yes", "NO", "y", "n", "1_000", "0b1", "0b1010", "12:30:45", "190:20:30",
     "2026-01-01", "2026-01-01T00:00:00Z", "=", "<<", "0x", "0o8", "1e", "tRue", "nUll", "+", "-x",
     ".", "1.2.3"],
)  # fmt: skip
def test_what_only_yaml_1_1_reads_stays_as_written(text: str) -> None:
    assert parsed(f"a: {text}") == {"a": text}
    assert parsed(f'a: "{text}"') == {"a": text}


@pytest.mark.parametrize(
    ("text", "value"),
    [("", None), ("~", None), ("null", None), ("true", True), ("FALSE", False), ("0", 0), ("-12", -12),
     ("+7", 7),
     ("0x1F", 31), ("0o17", 15), ("1.5", 1.5), ("12e03", 12000.0), (".5", 0.5), ("1.", 1.0),
     ("9007199254740991", 2**53 - 1)],
)  # fmt: skip
def test_the_core_schema(text: str, value: JsonValue) -> None:
    found = parsed(f"a: {text}")
    assert found == {"a": value}
    assert isinstance(found, dict)
    assert type(found["a"]) is type(value)


@pytest.mark.parametrize("text", ["null", "true", "12", "012", "1e5", "0x1", "~", ".inf"])
def test_quoted_and_block_scalars_are_text(text: str) -> None:
    assert parsed(f"a: '{text}'\nb: |-\n  {text}\n") == {"a": text, "b": text}


@pytest.mark.parametrize(
    "text",
    [
        "012",
        "-00",
        "00",
        ".inf",
        "-.INF",
        ".nan",
        "1e999",
        "9007199254740992",
        "0xfffffffffffffffff",
        "9" * 5000,
    ],
)
def test_numbers_that_readers_read_differently_are_refused(text: str) -> None:
    assert messages(f"a: {text}")


@pytest.mark.parametrize(
    ("text", "place", "about"),
    [
        ("a: 1\nb: 2\na: 3", "3:1", "already given at line 1"),
        ("a: {x: 1, x: 2}", "1:11", "already given"),
        ('a: 1\n"a": 2', "2:1", "already given"),
        ("a: &x 1\nb: *x", "1:4", "anchors"),
        ("a: &x [1]", "1:4", "anchors"),
        ("a: &x 1\nb: *x", "2:4", "aliases"),
        ("a: !!str 1", "1:4", "tag"),
        ("a: !vault x", "1:4", "tag"),
        ("a: !!python/object/apply:os.system [ls]", "1:4", "tag"),
        ("1: x", "1:1", "quote it"),
        ("null: x", "1:1", "quote it"),
        ("? [a]\n: x", "1:3", "a key must be a word"),
        ("- a", "1:1", "a document is a mapping"),
        ("just words", "1:1", "a document is a mapping"),
        ("%YAML 1.1\n---\na: 1", "", "YAML 1.2"),
        ("%TAG ! tag:x,2026:\n---\na: 1", "", "tags are refused"),
        ("a: [1", "", "not YAML"),
        ("a: \x07", "", "not YAML"),
        ("\ta: 1", "", "not YAML"),
        ("a: b: c", "1:5", "not YAML"),
        ('a: "\\ud800"', "", ""),
    ],
)
def test_faults_have_a_place_and_a_sentence(text: str, place: str, about: str) -> None:
    assert any(f"a.yaml:{place}" in each and about in each for each in messages(text)), messages(text)


def test_bytes_that_are_not_utf_8() -> None:
    assert messages(b"a: 1\nb: \xff\n") == [
        "a.yaml:2:4: error: the file is not UTF-8 from here on: save it as UTF-8"
    ]
    assert messages("a: 1".encode("utf-16")) == [
        "a.yaml:1:1: error: the file is not UTF-8 from here on: it is UTF-16"
    ]


def test_a_byte_order_mark_and_empty_documents_are_harmless() -> None:
    found = parse_documents({"a.yaml": "\ufeff---\n---\na: 1\n---\n# nothing\n".encode(), "b.yaml": b""})
    assert found.findings == ()
    assert [to_json(each.root) for each in found.sources] == [{"a": 1}]


def test_depth_is_limited_before_it_costs() -> None:
    assert not messages("a: " + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1))
    assert messages("a: " + "[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert messages("a: " + "[" * 50_000)


def test_one_broken_file_hides_no_finding_of_another() -> None:
    found = parse_documents({"b.yaml": b"a: 1\na: 2", "a.yaml": b"x: 1\n---\n[", "c.yaml": b"z: 1"})
    assert [each.file for each in found.findings] == ["a.yaml", "b.yaml"]
    assert [each.file for each in found.sources] == ["a.yaml", "b.yaml", "c.yaml"]
    assert not found.whole


def test_places_count_from_one() -> None:
    (source,) = parse_documents(
        {"a.yaml": "# é\nkind: x\nlist:\n  - é: 1\n    b: [ 'c' ]\n".encode()}
    ).sources
    value = source.root.value("list")
    assert isinstance(value, Items)
    item = value.items[0]
    assert isinstance(item, Members)
    inner = item.value("b")
    assert isinstance(inner, Items)
    assert (item.line, item.column) == (4, 5)
    assert (inner.line, inner.column) == (5, 8)
    assert inner.items[0] == Scalar("c", "c", 5, 10)


_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12)
_JSON: st.SearchStrategy[JsonValue] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(_TEXT, _JSON, max_size=4))
def test_what_is_quoted_comes_back(value: dict[str, JsonValue]) -> None:
    text = yaml.safe_dump(value, default_style='"', allow_unicode=True)
    # The dumper tags what is no string when it must quote it; as JSON would, leave those plain.
    if "!!" in text:
        return
    assert parsed(text) == value


@given(st.text(max_size=60) | st.text(alphabet="a:-[]{}&*!|>'\"%@`#,? \n\r\x85\u2028\t01.~\x07", max_size=80))
def test_no_text_makes_it_raise(text: str) -> None:
    parse_documents({"a.yaml": text.encode("utf-8", "surrogatepass")})
