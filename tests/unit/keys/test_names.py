import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.keys.names import Algorithm, KeyKind, KeyName, KeyPattern, KeyRequest, Scope

SEGMENTS = st.from_regex(r"[a-z0-9._-]{1,8}", fullmatch=True).filter(lambda s: s not in {".", ".."})
PATHS = st.lists(SEGMENTS, min_size=1, max_size=5).map("/".join)

BAD_NAMES = [
    "",
    "Disk",
    "disk ",
    "disk\n",
    "disk:a",
    "custom",
    "custom:",
    "custom:/a",
    "custom:a/",
    "custom:a//b",
    "custom:.",
    "custom:a/..",
    "custom:../a",
    "custom:A",
    "custom:ä",
    "custom:a b",
    "custom:a\n",
    "custom:a\0",
    "custom:a/*",
    "custom:٣",
    "custom:" + "a" * 129,
    "dstack",
    "dstack:",
    "dstack:root",
]


@pytest.mark.parametrize(
    ("text", "kind", "path", "algorithm"),
    [
        ("disk", KeyKind.DISK, "", Algorithm.SYMMETRIC_256),
        ("env", KeyKind.ENV, "", Algorithm.X25519),
        ("signing", KeyKind.SIGNING, "", Algorithm.ED25519),
        ("tls", KeyKind.TLS, "", Algorithm.P_256),
        ("custom:db/main", KeyKind.CUSTOM, "db/main", Algorithm.SYMMETRIC_256),
        ("custom:...", KeyKind.CUSTOM, "...", Algorithm.SYMMETRIC_256),
        ("custom:" + "a" * 128, KeyKind.CUSTOM, "a" * 128, Algorithm.SYMMETRIC_256),
    ],
)
def test_names(text: str, kind: KeyKind, path: str, algorithm: Algorithm) -> None:
    name = KeyName.parse(text)
    assert (name.kind, name.path, name.algorithm, str(name)) == (kind, path, algorithm, text)


@pytest.mark.parametrize("text", BAD_NAMES)
def test_other_names_are_refused_without_echo(text: str) -> None:
    with pytest.raises(ValueError, match=r"^a key is|^a custom path") as caught:
        KeyName.parse(text)
    # The message is one of three sentences, whatever came.
    assert str(caught.value) in {
        "a key is disk, env, signing, tls, custom:<path> or, of dstack, dstack:disk, env or k256",
        "a custom path has at most 128 bytes",
        "a custom path is segments of [a-z0-9._-] joined by `/`, none `.` or `..`",
    }


def test_a_name_cannot_be_built_around_the_parser() -> None:
    with pytest.raises(ValueError, match="path"):
        KeyName(KeyKind.DISK, "x")
    with pytest.raises(ValueError, match="path"):
        KeyName(KeyKind.CUSTOM, "../x")


@pytest.mark.parametrize("name", ["env", "signing", "tls"])
@pytest.mark.parametrize("scope", ["instance", "chip"])
def test_keys_of_the_whole_app_have_scope_app_only(name: str, scope: str) -> None:
    assert KeyRequest.parse(name, "app").scope is Scope.APP
    with pytest.raises(ValueError, match="scope app only"):
        KeyRequest.parse(name, scope)
    with pytest.raises(ValueError, match="scope app only"):
        KeyPattern.parse(f"{name}@{scope}")


@pytest.mark.parametrize("scope", ["", "App", "host", "app "])
def test_unknown_scopes_are_refused_without_echo(scope: str) -> None:
    with pytest.raises(ValueError, match=r"^a scope is app, instance or chip$"):
        KeyRequest.parse("disk", scope)


@pytest.mark.parametrize("epoch", [0, -1, 2**53])
def test_epochs_are_positive(epoch: int) -> None:
    with pytest.raises(ValueError, match="epoch"):
        KeyRequest.parse("disk", "app", epoch)


def test_duplicates_are_equal_and_an_epoch_makes_another_request() -> None:
    plain = KeyRequest.parse("disk", "app")
    assert {plain, KeyRequest.parse("disk", "app")} == {plain}
    assert plain != KeyRequest.parse("disk", "app", 1)


@pytest.mark.parametrize(
    ("pattern", "allowed", "denied"),
    [
        ("disk", ["disk@app"], ["disk@instance", "disk@chip", "env@app", "custom:disk@app"]),
        ("disk@app", ["disk@app"], ["disk@chip"]),
        ("disk@instance", ["disk@instance"], ["disk@app", "disk@chip"]),
        ("disk@chip", ["disk@chip"], ["disk@app", "disk@instance"]),
        ("env", ["env@app"], ["signing@app"]),
        ("custom:db", ["custom:db@app"], ["custom:db/a@app", "custom:dbx@app", "custom:db@chip"]),
        (
            "custom:db/*",
            ["custom:db/a@app", "custom:db/a/b@app"],
            ["custom:db@app", "custom:dbx@app", "custom:db/a@instance", "disk@app"],
        ),
        ("custom:db/*@chip", ["custom:db/a@chip"], ["custom:db/a@app"]),
        ("custom:db*", ["custom:db@app", "custom:dbx@app", "custom:db/a@app"], ["custom:d@app"]),
        ("custom:*", ["custom:a@app", "custom:a/b@app"], ["disk@app", "custom:a@chip"]),
    ],
)
def test_patterns(pattern: str, allowed: list[str], denied: list[str]) -> None:
    parsed = KeyPattern.parse(pattern)
    assert str(parsed) == pattern.removesuffix("@app")
    for text, verdict in [*((t, True) for t in allowed), *((t, False) for t in denied)]:
        name, _, scope = text.partition("@")
        assert parsed.allows(KeyRequest.parse(name, scope)) is verdict, text
        assert parsed.allows(KeyRequest.parse(name, scope, 3)) is verdict, text


@pytest.mark.parametrize(
    "text",
    [
        *(text for text in BAD_NAMES if text != "custom:a/*"),
        *("*", "disk*", "di*", "disk@", "disk@*", "disk@host", "disk@chip@chip", "@chip", "custom:db@"),
        *("custom:**", "custom:*/a", "custom:a*b", "custom:/*", "custom:a//*", "custom:../*", "custom:A*"),
        "custom:" + "a" * 128 + "*",
    ],
)
def test_other_patterns_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"a key is|path|a scope is"):
        KeyPattern.parse(text)


@given(PATHS, PATHS)
def test_a_pattern_without_wildcard_allows_its_own_name_only(one: str, other: str) -> None:
    pattern = KeyPattern.parse(f"custom:{one}")
    assert pattern.allows(KeyRequest.parse(f"custom:{other}", "app")) is (one == other)


@given(PATHS, st.integers(min_value=0, max_value=40))
def test_a_wildcard_pattern_allows_what_it_begins(path: str, cut: int) -> None:
    prefix = path[:cut]
    try:
        pattern = KeyPattern.parse(f"custom:{prefix}*")
    except ValueError:
        # A cut through a segment can leave a whole segment `.` or `..` only where the path goes on in it.
        assert prefix.rstrip(".") != prefix
        return
    assert pattern.allows(KeyRequest.parse(f"custom:{path}", "app"))
