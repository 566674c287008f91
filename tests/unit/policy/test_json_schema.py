"""The JSON Schema says what lint says, of everything that can be said of one document."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from typing_extensions import override

from kms.policy import app_reader, guest_reader, values
from kms.policy.findings import Notes, Severity
from kms.policy.json_schema import policy_schema
from kms.policy.lint import lint_values, readers_of_kinds
from kms.policy.nodes import Members, Scalar, to_json
from kms.policy.parser import Parser, Unread, Wrong
from kms.policy.reader import Reader
from kms.policy.yaml_documents import parse_documents
from tests.unit.policy.samples import POLICIES, documents

DEMO = Path(__file__).parents[3] / "policies"
SCHEMA = policy_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
READERS = readers_of_kinds(development=True)

# What lint knows and a schema of one document cannot say, or should not try to: beginnings of sentences.
BEYOND_THE_SCHEMA = (
    "no document of kind",
    "`strict` is built in",
    "key `tls` needs the member",
    "key `dstack:",
    "with `compat: dstack` an app id",
    "`any` is not an item",  # where an item is any text
    "there is no such day or time",
    "a guest SVN means something only with",
    "tsme is both required and forbidden",
    "guest features with",
    "guest features must be",
    "`cmdline` is enforced only by",
    "`max` is below `min`",
    "the launch block hashes to",
    "`initrd` is measured only with",
    "`cmdline` is measured only with",
    "kernel given, but",
    "a SEV metadata section must",
    "a SECRETS or CPUID section must",
    "more than 4096 pages of SEV metadata",
    "the command line holds a NUL",
)


def valid_documents() -> Iterator[Any]:
    """Give every valid document at hand, as JSON."""
    yield from documents().values()
    shown = (DEMO.rglob("*.yaml"), (POLICIES / "valid").iterdir())
    for source in parse_documents({str(each): each.read_bytes() for each in chain(*shown)}).sources:
        yield to_json(source.root)


def full(kind: str) -> Any:
    """Give a document that has every member of the sort, and in which every list has an item."""
    header = {"description": "why", "owner": "me"}
    if kind != "revoked":
        header["expires_at"] = "2099-12-31T23:59:59Z"
    fuller: dict[str, Any] = {
        "guest": {"csp": ["aws"], "id_key_digests": ["ab" * 48], "author_key_digests": ["cd" * 48]},
        "tcb": {"platform": {"require": ["alias-check-complete"], "forbid": ["tsme"]}},
        "revoked": {
            "chips": ["ab" * 64],
            "measurements": ["ab" * 48],
            "images": ["demo-os-1", "ab" * 32],
            "apps": ["ab" * 20],
            "compose": ["ab" * 32],
            "products": ["milan"],
        },
    }
    return {**documents()[kind], **header, **fuller.get(kind, {})}


def agreed(document: Any) -> bool:
    """Give the schema's verdict. What it refuses, lint does; what only lint refuses is beyond the schema."""
    found = lint_values([document], file="a.yaml").findings
    errors = [each.message for each in found if each.severity is Severity.ERROR]
    accepted = VALIDATOR.is_valid(document)
    if accepted:
        assert all(message.startswith(BEYOND_THE_SCHEMA) for message in errors), (document, errors)
    else:
        assert errors, document
    return accepted


# One wrong value for each that lint tells apart; some are right in some places, and then both must say so.
NUMBERS: list[Any] = [-1, 0, 1, 1.5, 256, 513, 2**31, 2**32, 2**53 - 1]
DIGESTS = ["0" * 64, "ab" * 20, "ab" * 32, "AB" * 32, "0x" + "ab" * 32, "sha256:" + "ab" * 32, "ab" * 48]
WORDS = ["", "x", "any", "strict", "on call", "y" * 5000, "tls@chip", "custom:a/../b", "custom:a/*"]
WORDS += ["custom:*/a", "AMD-SB-12", "0x3", "0X3", "1.300", "2030-01-01", "2030-01-01T00:00:00Z", "a.-b"]
COLLECTIONS: list[Any] = [[], ["any"], ["x"], [1], [[]], {}, {"x": 1}]
REPLACEMENTS = [None, True, *NUMBERS, *DIGESTS, *WORDS, *COLLECTIONS]


def mutations(value: Any) -> Iterator[Any]:
    """Give the value with one thing changed: a member dropped, added or replaced, at whatever depth."""
    yield from REPLACEMENTS
    if isinstance(value, dict):
        yield {**value, "nobody-knows": 1}
        for name in value:
            yield {key: each for key, each in value.items() if key != name}
            yield {f"{key}s" if key == name else key: each for key, each in value.items()}
            for changed in mutations(value[name]):
                yield {**value, name: changed}
    elif isinstance(value, list):
        yield [*value, *value]
        for index, item in enumerate(value):
            yield value[:index] + value[index + 1 :]
            # Of items that are alike, one is enough.
            for changed in mutations(item) if index == 0 or type(item) is not type(value[0]) else ():
                yield [*value[:index], changed, *value[index + 1 :]]
    elif isinstance(value, str):
        yield from (
            value[:-1],
            value + value[-1:],
            value.upper(),
            value.capitalize(),
            f" {value}",
            f"{value}/0xa0",
        )
    elif isinstance(value, int):
        yield from (str(value), float(value) + 0.5, value + 1)


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_every_valid_document_is_valid() -> None:
    checked = list(valid_documents())
    for document in checked:
        VALIDATOR.validate(document)
    assert {document["kind"] for document in checked} == set(READERS)
    assert len(checked) > 15


@pytest.mark.parametrize("path", sorted((POLICIES / "broken").glob("*.yaml")), ids=lambda path: path.stem)
def test_of_broken_documents_it_says_what_lint_says(path: Path) -> None:
    parsed = parse_documents({path.name: path.read_bytes()})
    for source in parsed.sources if not parsed.findings else ():
        agreed(to_json(source.root))


@pytest.mark.parametrize("kind", READERS)
def test_of_every_mutation_it_says_what_lint_says(kind: str) -> None:
    changed = [each for each in mutations(full(kind)) if isinstance(each, dict)]
    assert len(changed) > 200
    accepted = sum(map(agreed, changed))
    assert 0 < accepted < len(changed) / 4


@pytest.mark.parametrize("kind", READERS)
def test_its_members_are_those_that_the_reader_asks_for(kind: str) -> None:
    asked: set[str] = set()

    class Names(frozenset[str]):
        @override
        def __contains__(self, name: object) -> bool:
            asked.add(str(name))
            return False

    class Recording(Members):
        """A mapping that remembers which members were looked for."""

        @property
        @override
        def names(self) -> Names:
            return Names()

        @override
        def value(self, name: str) -> None:
            asked.add(name)

    with suppress(Unread):
        READERS[kind](Reader(Recording({}, 1, 1), Notes(""), kind))
    definitions: Any = SCHEMA["$defs"]
    described = definitions[kind]["properties"]
    # A revocation does not expire: its reader looks for the member to say so.
    assert described.keys() - {"kind"} == asked - ({"expires_at"} if kind == "revoked" else set())
    assert all(each["description"] for name, each in described.items() if name != "kind")


HEX = st.text("0123456789abcdefABg", max_size=4).flatmap(
    lambda end: st.sampled_from([0, 16, 32, 38, 40, 60, 64, 128]).map(lambda length: "a" * length + end)
)
ZEROS = st.integers(38, 66).map(lambda length: "0" * length)
LONG = st.integers(110, 135).map(lambda length: "a" * length)
SCOPES = st.sampled_from(["", "@", "@app", "@instance", "@chip", "@host", ":a"])
KINDS = st.sampled_from(["disk", "env", "tls", "signing", "custom", "dstack:disk", "dstack:env"])
PATHS = st.text("ab.*/@-_A", max_size=12) | LONG | LONG.map(lambda path: f"{path}*") | LONG.map("a/{}".format)
VERSIONS = st.sampled_from(["0", "1", "007", "255", "256", "300", "1000", ""])
TEXTS: dict[str, tuple[Parser[Any], st.SearchStrategy[str]]] = {
    "name": (values.name, st.text("aZ0._+:/- é", max_size=6) | HEX | LONG | st.just("any")),
    "mask": (values.mask, st.text("0xX1fF", max_size=20)),
    "app id": (app_reader.app_id, HEX | ZEROS),
    "chip id": (values.chip_id, HEX),
    "image": (app_reader._image, HEX | HEX.map("0x{}".format) | HEX.map("sha256:{}".format) | ZEROS),
    "key": (app_reader._key, st.tuples(KINDS, SCOPES).map("".join)),
    "custom key": (app_reader._key, st.tuples(PATHS, SCOPES).map("".join).map("custom:{}".format)),
    "DNS name": (
        app_reader._dns_name,
        st.text("ab-.", max_size=70) | LONG.map("{}.".format),
    ),
    "long DNS name": (app_reader._dns_name, LONG.map(lambda label: ".".join([label[:62]] * 4) + label[112:])),
    "advisory": (app_reader._advisory, st.text("0123456789", max_size=6).map("AMD-SB-{}".format)),
    "firmware": (guest_reader._firmware, st.lists(VERSIONS, max_size=4).map(".".join)),
}


@pytest.mark.parametrize(("parser", "texts"), TEXTS.values(), ids=TEXTS)
@given(data=st.data())
def test_a_pattern_takes_what_its_parser_takes(
    parser: Parser[Any], texts: st.SearchStrategy[str], data: st.DataObject
) -> None:
    text = data.draw(texts)
    try:
        parser.read(Scalar(text, text, 1, 1))
        taken = True
    except Wrong:
        taken = False
    assert Draft202012Validator(parser.schema).is_valid(text) == taken
