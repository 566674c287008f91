import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.strict_json import MAX_DEPTH, MAX_VALUES, Fields, JsonError, JsonValue, parse, parse_object

SECRET = "xyzzy-never-repeated"
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(VALUES)
def test_ordinary_json_is_read_as_it_is(value: JsonValue) -> None:
    assert parse(json.dumps(value).encode()) == value
    assert parse(json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.binary(max_size=60) | st.text('{}[]",:0123456789.eE+-\\ud8truefalsn', max_size=40).map(str.encode))
def test_arbitrary_bytes_are_json_or_a_json_error(data: bytes) -> None:
    try:
        parse(data)
    except JsonError:
        return


@pytest.mark.parametrize(
    "data",
    [
        b"", b" ", b"{", b"{}{}", b"{} x", b"[1,]", b'{"a":1,}', b"{'a':1}", b"// x\n1", b"01", b"+1", b".5",
        b'"\x01"', b'"\\x41"', b"tru", b"undefined",
        b"NaN", b"Infinity", b"-Infinity", b'{"a":NaN}', b"1e400", b"-1e999",
        b'{"a":1,"a":1}', b'{"a":1,"\\u0061":2}', b'[{"b":{"a":1,"a":2}}]',
        b"9007199254740992", b"-9007199254740992", b"1" * 5000, b"[" + b"9" * 20 + b"]",
        b'"\\ud800"', b'"\\udc00\\ud800"', b'{"\\ud800":1}', b'["a",{"b":"\\udfff"}]',
        b"\xff", b'"\xc0\x80"', b'"\xed\xa0\x80"', b"\xef\xbb\xbf{}", "{}".encode("utf-16"),
        b"[" * 33 + b"]" * 33, b'{"a":' * 33 + b"1" + b"}" * 33, b"[" * 100_000, b'{"a":' * 100_000,
    ],
)  # fmt: skip
def test_what_has_no_one_meaning_is_refused(data: bytes) -> None:
    with pytest.raises(JsonError):
        parse(data)


def test_nesting_has_a_limit_and_brackets_in_texts_do_not_count() -> None:
    assert parse(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    text = "[{" * 100 + '\\"' + "[" * 100
    assert parse(json.dumps([text] * 3).encode()) == [text] * 3
    assert parse(b"[" + b"[]," * 100 + b"[]]") == [[]] * 101


def test_long_texts_do_not_count_as_values() -> None:
    text = '[{,"\\' * 100_000
    body = json.dumps({"files": {"a.yaml": text}}).encode()
    assert parse(body, long_texts=True) == {"files": {"a.yaml": text}}
    with pytest.raises(JsonError):
        parse(body)


@pytest.mark.parametrize(
    "data",
    [b"[" + b"[]," * 50_000 + b"[]]", b"[" + b'"",' * 100_000 + b'""]', b'""' * 500_000,
     b"{" + b'"":0,' * 100_000 + b'"":0}', b"[" * 100_000, b'{"a":' * 40, b'["' + b"[" * 100,
     b'{"a":1,"a":2}'],
)  # fmt: skip
def test_values_beside_long_texts_do(data: bytes) -> None:
    with pytest.raises(JsonError):
        parse(data, long_texts=True)


@given(st.binary(max_size=60) | st.text('{}[]",:01-\\ud8tru', max_size=40).map(str.encode))
def test_long_texts_change_nothing_else(data: bytes) -> None:
    try:
        expected = parse(data)
    except JsonError:
        with pytest.raises(JsonError):
            parse(data, long_texts=True)
    else:
        assert parse(data, long_texts=True) == expected


def test_more_values_may_be_asked_for() -> None:
    many = json.dumps(list(range(MAX_VALUES + 1))).encode()
    with pytest.raises(JsonError, match="too many values"):
        parse(many)
    assert parse(many, most_values=MAX_VALUES + 2) == list(range(MAX_VALUES + 1))


def test_the_largest_integers_are_exact() -> None:
    assert parse(b"[9007199254740991,-9007199254740991,1e3]") == [2**53 - 1, -(2**53) + 1, 1000.0]


@pytest.mark.parametrize("data", [b"[]", b"1", b"null", b'"x"'])
def test_an_object_is_wanted(data: bytes) -> None:
    with pytest.raises(JsonError):
        parse_object(data)


@pytest.mark.parametrize(
    "read",
    [
        lambda f: f.text("s", at_most=3),
        lambda f: f.text("n"),
        lambda f: f.integer("s"),
        lambda f: f.integer("true"),
        lambda f: f.integer("float"),
        lambda f: f.integer("n", maximum=1),
        lambda f: f.integer("negative"),
        lambda f: f.object("s"),
        lambda f: f.array("s", at_most=3),
        lambda f: f.array("list", at_most=1),
        lambda f: f.array("empty", at_least=1, at_most=3),
        lambda f: f.base64("s", at_most=100),
        lambda f: f.base64("bytes", at_most=2),
        lambda f: f.hex("s", bytes),
        lambda f: f.take("missing"),
        lambda f: f.take("null") or f.text("null"),
        lambda f: f.end(),
    ],
)
def test_members_are_what_they_must_be_and_never_repeated(read: object) -> None:
    members: dict[str, JsonValue] = {
        "s": SECRET + "%", "n": 7, "true": True, "float": 1.0, "negative": -1, "list": [1, 2], "empty": [],
        "bytes": "AAAA", "null": None, SECRET: SECRET,
    }  # fmt: skip
    assert callable(read)
    with pytest.raises(JsonError) as refused:
        read(Fields(members, "place"))
    assert "place" in str(refused.value)
    assert SECRET not in str(refused.value)


def test_an_object_is_read_once_and_whole() -> None:
    fields = Fields({"a": "x", "b": 1}, "place")
    assert fields.has("a")
    assert fields.text("a") == "x"
    assert not fields.has("a")
    with pytest.raises(JsonError, match="1 unknown member"):
        fields.end()
    assert fields.integer("b") == 1
    fields.end()


@pytest.mark.parametrize("value", [[], "text", 1, None, True])
def test_fields_are_those_of_an_object(value: JsonValue) -> None:
    with pytest.raises(JsonError):
        Fields(value, "place")
