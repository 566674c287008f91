"""Our canonical JSON is RFC 8785's, whatever the document: the faster way is only a faster way."""

from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from kms.strict_json import canonical_json

MOST = 2**53 - 1
TEXTS = st.text(max_size=12) | st.sampled_from(['"\\/\b\f\n\r\t\x00\x1f\x7f', "é€😀\ufb33", "\u2028\u2029"])
NAMES = st.text('abcXYZ_-0129 "\\\n', max_size=6)
VALUES = st.none() | st.booleans() | st.integers(-MOST, MOST) | TEXTS


def documents(names: st.SearchStrategy[str], values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    nested = st.recursive(
        values,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=5),
        max_leaves=20,
    )
    return st.dictionaries(names, nested, max_size=6)


@given(documents(NAMES, VALUES))
def test_what_we_write_has_the_bytes_of_rfc_8785(document: Any) -> None:
    assert canonical_json(document) == rfc8785.dumps(document)


@given(documents(TEXTS | NAMES, VALUES | st.floats() | st.integers() | st.text(st.characters(), max_size=4)))
def test_anything_else_has_them_too_or_is_refused_alike(document: Any) -> None:
    try:
        expected = rfc8785.dumps(document)
    except ValueError:
        with pytest.raises(ValueError):  # noqa: PT011 -- of several kinds, all of them this
            canonical_json(document)
    else:
        assert canonical_json(document) == expected


@pytest.mark.parametrize(
    "document",
    [
        {"a": 1.0}, {"a": 1e22}, {"a": -0.0}, {"a": 5e-324}, {"a": [{"b": 0.1}]},
        {"\ue000": 1, "\U0001f600": 2}, {"a": {"\uffff": 1, "\U00010000": 2}}, {"é": 1, "e": 2},
        {"a": MOST}, {"a": -MOST}, {"b": (1, "x"), "a": ()},
    ],
)  # fmt: skip
def test_numbers_with_a_fraction_and_names_beyond_ascii_are_left_to_the_library(document: Any) -> None:
    assert canonical_json(document) == rfc8785.dumps(document)


@pytest.mark.parametrize(
    "document",
    [
        {"a": MOST + 1}, {"a": [-MOST - 1]}, {"a": float("nan")}, {"a": float("inf")}, {"a": "\ud800"},
        {"\udfff": 1}, {1: 2}, {None: 1}, {True: 1}, {"a": {2: 3}}, {"a": b"x"}, {"a": {1, 2}},
    ],
)  # fmt: skip
def test_what_has_no_canonical_form_is_refused(document: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- of several kinds, all of them this
        canonical_json(document)
