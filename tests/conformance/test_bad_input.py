"""Wrong input of every kind at every field: a problem document, never a crash, never a key."""

import copy
import gzip
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from tests.conformance.own_client import Client, check_problem, outer
from tests.conformance.own_encoding import b64
from tests.conformance.own_fleet import Fleet
from tests.conformance.own_platform import TABLE_GUIDS
from tests.conformance.own_sealing import HPKE, HYBRID, SEALED_BOX, new_recipient

MISSING = object()
MALFORMED = ("malformed-request", "malformed-evidence", "challenge-invalid")
TYPES: dict[str, object] = {
    "null": None,
    "true": True,
    "zero": 0,
    "float": 1.5,
    "empty text": "",
    "text": "xyz",
    "list": [],
    "list in list": [[]],
    "object": {},
}
BAD_BASE64 = {
    "space": "AAAA AAAA",
    "line end": "AAAA\n",
    "inner padding": "AA==AAAA",
    "both alphabets": "-_+/",
    "trailing bits": "AB",
    "one letter": "AAAAA",
    "not ASCII": "AAA\u00e9",
    "full width": "\uff21\uff21\uff21\uff21",
    "NUL": "AAA\x00",
    "short": "AAAA",
    "long": "A" * 40000,
}

Mutation = tuple[str, tuple[str | int, ...], object]  # id, path, new value


def _each(path: tuple[str | int, ...], values: dict[str, object]) -> Iterator[Mutation]:
    name = ".".join(map(str, path))
    for what, value in values.items():
        yield f"{name}: {what}", path, value


def _with(values: dict[str, object], **more: object) -> dict[str, object]:
    return {**values, **more}


REQUIRED = _with(TYPES, missing=MISSING)
BINARY = _with(REQUIRED, **BAD_BASE64)
KEY_NAMES: dict[str, object] = {
    name: name
    for name in (
        "Disk",
        "disk ",
        "disk\x00",
        "custom:",
        "custom:/",
        "custom:a/",
        "custom:/a",
        "custom:a//b",
        "custom:.",
        "custom:a/../b",
        "custom:A",
        "custom:a b",
        "custom:a\n",
        "custom:\u00e9",
        "custom:*",
        "disk@app",
        "Custom:a",
        "unknown",
    )
}
KEY_NAMES["too long"] = "custom:" + "a" * 129
EPOCHS: dict[str, object] = {
    "text": "1",
    "negative": -1,
    "float": 1.5,
    "true": True,
    "huge": 10**40,
    "list": [1],
}
DIGESTS: dict[str, object] = {
    **{name: value for name, value in TYPES.items() if name != "null"},
    "upper case": "AB" * 32,
    "0x": "0x" + "11" * 31,
    "short": "11" * 15,
    "long": "11" * 33,
    "zero": "00" * 32,
    "odd": "1" * 63,
}
KEY = {"name": "custom:db/main", "scope": "app"}

REQUEST_MUTATIONS: list[Mutation] = [
    *_each(("challenge",), BINARY),
    *_each(("recipient",), REQUIRED),
    *_each(
        ("recipient", "suite"), _with(REQUIRED, unknown="x25519", upper="X25519-SEALEDBOX", hybrid=HYBRID)
    ),
    *_each(("recipient", "public_key"), BINARY),
    *_each(
        ("recipient", "public_key"), {f"{n} bytes": b64(b"\x09" * n) for n in (0, 31, 33, 64, 1184, 1216)}
    ),
    *_each(("recipient", "extra"), {"unknown": 1}),
    *_each(("keys",), REQUIRED),
    *_each(("keys",), {"33 keys": [{**KEY, "name": f"custom:db/{n}"} for n in range(33)]}),
    *_each(("keys",), {"a duplicate": [KEY, KEY], "600 keys": [KEY] * 600}),
    *_each(("keys", 0), TYPES),
    *_each(("keys", 0, "name"), _with(REQUIRED, **KEY_NAMES)),
    *_each(("keys", 0, "scope"), _with(REQUIRED, unknown="host", upper="App")),
    *_each(("keys", 0, "epoch"), EPOCHS),
    *_each(("keys", 0, "extra"), {"unknown": 1}),
    *_each(("app",), {name: value for name, value in TYPES.items() if name not in ("null", "object")}),
    *_each(("app",), {"unknown field": {"name": "x"}}),
    *_each(("app", "id"), DIGESTS),
    *_each(("app", "compose_hash"), {name: bad for name, bad in DIGESTS.items() if name != "zero"}),
    *_each(("app", "instance_id"), DIGESTS),
    *_each(("extra",), {"unknown": 1}),
]
EVIDENCE_MUTATIONS: list[Mutation] = [
    *_each((), TYPES),
    *_each(("tee",), _with(REQUIRED, unknown="tdx", upper="SEV-SNP")),
    *_each(("report",), BINARY),
    *_each(
        ("certificates",), {name: TYPES[name] for name in ("true", "zero", "text", "list in list", "object")}
    ),
    *_each(("certificates", 0), _with(TYPES, **BAD_BASE64)),
    *_each(("certificates", 0), {"cut PEM": "-----BEGIN CERTIFICATE-----\nAAAA\n", "DER of a list": "MAA"}),
    *_each(("certificates",), {"17": ["MAA"] * 17, "100": ["MAA"] * 100}),
    *_each(("certificate_table",), {name: TYPES[name] for name in ("true", "zero", "list")}),
    # Forty thousand letters A are an empty table and padding: nothing wrong with that.
    *_each(("certificate_table",), {name: bad for name, bad in BAD_BASE64.items() if name != "long"}),
    *_each(("app_document",), _with({name: TYPES[name] for name in ("true", "zero", "list", "object")})),
    *_each(
        ("app_document",), {name: BAD_BASE64[name] for name in ("space", "inner padding", "trailing bits")}
    ),
    *_each(("launch",), {name: TYPES[name] for name in ("true", "zero", "text", "list")}),
    *_each(("launch", "extra"), {"unknown": 1}),
    *_each(("launch", "image"), {"number": 1, "list": [], "long": "a" * 60000}),
    *_each(
        ("launch", "vcpus"),
        {"text": "2", "negative": -1, "zero": 0, "true": True, "many": 10**30, "float": 2.5},
    ),
    *_each(("launch", "vcpu_type"), {"number": 4, "list": []}),
    *_each(
        ("launch", "vcpu_signature"), {"list": [], "text": "zz", "wide": "0x" + "f" * 20, "negative": "-0x1"}
    ),
    *_each(
        ("launch", "guest_features"), {"list": [], "text": "zz", "wide": "0x" + "f" * 20, "negative": "-0x1"}
    ),
    *_each(("launch", "description"), {"number": 1, "list": [], "empty": {}, "unknown": {"extra": 1}}),
    *_each(("extra",), {"unknown": 1}),
]


HINTS = {
    "launch.image: long",
    "launch.vcpus: negative",
    "launch.vcpus: zero",
    "launch.vcpus: many",
    "launch.description: empty",
    *(
        f"launch.{field}: {what}"
        for field in ("vcpu_signature", "guest_features")
        for what in ("wide", "negative")
    ),
}


def _ids(mutations: list[Mutation]) -> list[str]:
    return [name for name, _, _ in mutations]


def changed(value: Any, path: tuple[str | int, ...], new: object) -> Any:
    """Return a deep copy with one member replaced, added or removed; objects on the way are made."""
    if not path:
        return new
    result = copy.deepcopy(value)
    parent = result
    for step in path[:-1]:
        parent = parent.setdefault(step, {}) if isinstance(parent, dict) else parent[step]
    if new is MISSING:
        del parent[path[-1]]
    else:
        parent[path[-1]] = new
    return result


@pytest.fixture
def sound(kms: Client) -> dict[str, Any]:
    """A request that would be granted."""
    return {
        "challenge": kms.challenge(),
        "recipient": {"suite": SEALED_BOX, "public_key": b64(new_recipient(SEALED_BOX).public_key)},
        "keys": [dict(KEY)],
    }


def _send(kms: Client, fleet: Fleet, request: bytes, **evidence: Any) -> httpx2.Response:
    return kms.post(outer(request, {**fleet.guest().evidence(request), **evidence}))


def test_the_sound_request_is_granted(kms: Client, fleet: Fleet, sound: dict[str, Any]) -> None:
    """The premise of this file."""
    assert _send(kms, fleet, json.dumps(sound).encode()).status_code == 200


@pytest.mark.parametrize("mutation", REQUEST_MUTATIONS, ids=_ids(REQUEST_MUTATIONS))
def test_a_wrong_request_field(kms: Client, fleet: Fleet, sound: dict[str, Any], mutation: Mutation) -> None:
    _, path, new = mutation
    response = _send(kms, fleet, json.dumps(changed(sound, path, new)).encode())
    check_problem(response, "malformed-request", *(["challenge-invalid"] if path[0] == "challenge" else []))


@pytest.mark.parametrize("mutation", EVIDENCE_MUTATIONS, ids=_ids(EVIDENCE_MUTATIONS))
def test_a_wrong_evidence_field(kms: Client, fleet: Fleet, sound: dict[str, Any], mutation: Mutation) -> None:
    name, path, new = mutation
    request = json.dumps(sound).encode()
    evidence = changed(fleet.guest().evidence(request), path, new)
    response = kms.post(json.dumps({"request": b64(request), "evidence": evidence}).encode())
    if name in HINTS and response.status_code == 200:
        return  # a hint that does not fit is ignored; one of absurd value may also be malformed
    check_problem(response, "malformed-request", "malformed-evidence")


OUTER_MUTATIONS: list[Mutation] = [
    *_each(("request",), BINARY),
    *_each(("evidence",), {"missing": MISSING}),
    *_each(("extra",), {"unknown": 1}),
    *_each((), TYPES),
]


@pytest.mark.parametrize("mutation", OUTER_MUTATIONS, ids=_ids(OUTER_MUTATIONS))
def test_a_wrong_outer_field(kms: Client, fleet: Fleet, sound: dict[str, Any], mutation: Mutation) -> None:
    _, path, new = mutation
    request = json.dumps(sound).encode()
    body = {"request": b64(request), "evidence": fleet.guest().evidence(request)}
    check_problem(kms.post(json.dumps(changed(body, path, new)).encode()), "malformed-request")


LOW_ORDER = (  # RFC 7748's curve: points of order 1, 2, 4 and 8, and two non-canonical forms
    "00" * 32,
    "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
)


@pytest.mark.parametrize("point", LOW_ORDER)
@pytest.mark.parametrize("suite", [SEALED_BOX, HPKE, HYBRID])
def test_a_low_order_point(kms: Client, fleet: Fleet, sound: dict[str, Any], suite: str, point: str) -> None:
    """Everybody knows what such a key exchange yields."""
    public = new_recipient(suite).public_key[:-32] + bytes.fromhex(point)
    sound["recipient"] = {"suite": suite, "public_key": b64(public)}
    check_problem(_send(kms, fleet, json.dumps(sound).encode()), "malformed-request")


def test_an_ml_kem_key_out_of_range(kms: Client, fleet: Fleet, sound: dict[str, Any]) -> None:
    """FIPS 203, 7.2: every coefficient of an encapsulation key is below 3329."""
    public = b"\xff" * 1184 + new_recipient(SEALED_BOX).public_key
    sound["recipient"] = {"suite": HYBRID, "public_key": b64(public)}
    check_problem(_send(kms, fleet, json.dumps(sound).encode()), "malformed-request")


Rewrite = Callable[[bytes], bytes]
TEXT_MUTATIONS: dict[str, Rewrite] = {
    "empty": lambda text: b"",
    "spaces": lambda text: b"   ",
    "cut": lambda text: text[:-1],
    "doubled": lambda text: text + text,
    "trailing comma": lambda text: text[:-1] + b",}",
    "comment": lambda text: text[:-1] + b"/**/}",
    "single quotes": lambda text: text.replace(b'"', b"'"),
    "NaN": lambda text: text[:-1] + b',"x":NaN}',
    "Infinity": lambda text: text[:-1] + b',"x":-Infinity}',
    "huge number": lambda text: text[:-1] + b',"x":1' + b"0" * 5000 + b"}",
    "deep lists": lambda text: b"[" * 20000,
    "deep objects": lambda text: b'{"a":' * 7000 + b"1" + b"}" * 7000,
    "UTF-16": lambda text: text.decode().encode("utf-16"),
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text,
    "not UTF-8": lambda text: text[:-1] + b',"\xff":1}',
    "lone surrogate": lambda text: text[:-1] + b',"\\ud800":1}',
    "control character": lambda text: text[:-1] + b',"a\x01":1}',
    "NUL": lambda text: text + b"\x00",
    "a list": lambda text: b"[" + text + b"]",
}


@pytest.mark.parametrize("name", TEXT_MUTATIONS)
def test_a_request_text_that_is_no_json(kms: Client, fleet: Fleet, sound: dict[str, Any], name: str) -> None:
    request = TEXT_MUTATIONS[name](json.dumps(sound).encode())
    check_problem(_send(kms, fleet, request), "malformed-request")


@pytest.mark.parametrize("name", TEXT_MUTATIONS)
def test_a_body_that_is_no_json(kms: Client, fleet: Fleet, sound: dict[str, Any], name: str) -> None:
    request = json.dumps(sound).encode()
    body = TEXT_MUTATIONS[name](outer(request, fleet.guest().evidence(request)))
    check_problem(kms.post(body), "malformed-request")


@pytest.mark.parametrize("member", ["challenge", "recipient", "keys"])
def test_a_duplicate_key_in_the_request(
    kms: Client, fleet: Fleet, sound: dict[str, Any], member: str
) -> None:
    """Two readers of one text may not see two requests."""
    text = json.dumps(sound)
    doubled = f'{{"{member}":{json.dumps(sound[member])},{text[1:]}'
    check_problem(_send(kms, fleet, doubled.encode()), "malformed-request")


@pytest.mark.parametrize("member", ["request", "evidence"])
def test_a_duplicate_key_in_the_body(kms: Client, fleet: Fleet, sound: dict[str, Any], member: str) -> None:
    request = json.dumps(sound).encode()
    body = {"request": b64(request), "evidence": fleet.guest().evidence(request)}
    doubled = f'{{"{member}":{json.dumps(body[member])},{json.dumps(body)[1:]}'
    check_problem(kms.post(doubled.encode()), "malformed-request")


def test_a_duplicate_key_in_the_evidence(kms: Client, fleet: Fleet, sound: dict[str, Any]) -> None:
    request = json.dumps(sound).encode()
    evidence = json.dumps(fleet.guest().evidence(request))
    body = f'{{"request":"{b64(request)}","evidence":{{"tee":"sev-snp",{evidence[1:]}}}'
    check_problem(kms.post(body.encode()), "malformed-request", "malformed-evidence")


def _table(*entries: tuple[str, int, int], end: bool = True) -> bytes:
    """Return a table with these names, offsets and lengths, and twelve bytes behind it."""
    rows = b"".join(
        uuid.UUID(TABLE_GUIDS[name]).bytes + offset.to_bytes(4, "little") + length.to_bytes(4, "little")
        for name, offset, length in entries
    )
    return rows + (bytes(24) if end else b"") + b"certificates"


TABLES = {
    "not whole": bytes(23),
    "no end": _table(("vcek", 24, 4), end=False),
    "out of bounds": _table(("vcek", 48, 13)),
    "far away": _table(("vcek", 0x7FFFFFFF, 4)),
    "wraps": _table(("vcek", 0xFFFFFFFF, 0x31)),
    "into the header": _table(("vcek", 0, 48)),
    "overlap": _table(("vcek", 72, 6), ("ask", 76, 6)),
    "same twice": _table(("vcek", 72, 6), ("vcek", 78, 6)),
    "no certificate": _table(("vcek", 48, 12)),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_hostile_certificate_table(kms: Client, fleet: Fleet, sound: dict[str, Any], name: str) -> None:
    """Field lesson 13."""
    response = _send(kms, fleet, json.dumps(sound).encode(), certificate_table=b64(TABLES[name]))
    check_problem(response, "malformed-evidence")


def test_a_request_that_is_too_large(kms: Client, fleet: Fleet, sound: dict[str, Any]) -> None:
    request = json.dumps(sound).encode().ljust(64 * 1024 + 1)
    check_problem(_send(kms, fleet, request), "too-large")


def test_an_app_document_that_is_too_large(kms: Client, fleet: Fleet, sound: dict[str, Any]) -> None:
    request = json.dumps(sound).encode()
    check_problem(_send(kms, fleet, request, app_document=b64(b" " * (64 * 1024 + 1))), "too-large")


@pytest.mark.parametrize("length", [1024 * 1024 + 1, 10_000_000])
def test_a_body_that_is_too_large(kms: Client, fleet: Fleet, sound: dict[str, Any], length: int) -> None:
    request = json.dumps(sound).encode()
    body = outer(request, fleet.guest().evidence(request)).ljust(length)
    check_problem(kms.post(body), "too-large")


def test_a_body_of_the_greatest_size(kms: Client, fleet: Fleet, sound: dict[str, Any]) -> None:
    request = json.dumps(sound).encode()
    body = outer(request, fleet.guest().evidence(request)).ljust(1024 * 1024)
    assert kms.post(body).status_code == 200


def test_a_body_that_does_not_say_how_large_it_is(kms: Client) -> None:
    """Chunked: the limit is counted, not read from a header."""
    chunks = (b" " * 65536 for _ in range(40))
    response = kms.http.post("/v1/releases", content=chunks, headers={"content-type": "application/json"})
    check_problem(response, "too-large")


def test_a_request_of_the_greatest_size(kms: Client, fleet: Fleet, sound: dict[str, Any]) -> None:
    request = json.dumps(sound).encode().ljust(64 * 1024)
    assert _send(kms, fleet, request).status_code == 200


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
def test_a_compressed_body(kms: Client, fleet: Fleet, sound: dict[str, Any], coding: str) -> None:
    """Field lesson 37: a bomb is not unpacked, because nothing is."""
    request = json.dumps(sound).encode()
    body = gzip.compress(outer(request, fleet.guest().evidence(request)))
    response = kms.post(body, **{"content-encoding": coding})
    check_problem(response)
    assert response.status_code in (400, 415)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/xml", "nonsense"]
)
def test_a_body_of_another_type(kms: Client, fleet: Fleet, sound: dict[str, Any], kind: str) -> None:
    request = json.dumps(sound).encode()
    response = kms.post(outer(request, fleet.guest().evidence(request)), **{"content-type": kind})
    check_problem(response, status=415)


def test_a_body_type_with_a_parameter(kms: Client, fleet: Fleet, sound: dict[str, Any]) -> None:
    request = json.dumps(sound).encode()
    body = outer(request, fleet.guest().evidence(request))
    assert kms.post(body, **{"content-type": "application/json; charset=utf-8"}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/challenges", "/v1/releases", "/v1/verifications"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_another_method(kms: Client, path: str, method: str) -> None:
    response = kms.http.request(method, path)
    if (method, path) == ("GET", "/v1/releases"):
        check_problem(response, status=401)  # operators read the record there
        return
    check_problem(response, status=405)
    assert "POST" in response.headers["allow"]


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/release", "/v2/releases", "/v1/releases/x", "/%00", "/v1/apps//env-key", "/metrics"],
)
def test_an_unknown_path(kms: Client, path: str) -> None:
    check_problem(kms.http.get(path), status=404)


def test_challenges_ignore_their_body(kms: Client) -> None:
    for kind, body in (("application/json", b"{"), ("text/plain", b"\xff" * 1000), ("x", b"[" * 9999)):
        response = kms.http.post("/v1/challenges", content=body, headers={"content-type": kind})
        assert response.status_code == 201, response.text


@pytest.mark.parametrize("path", ["request", "evidence"])
def test_nothing_of_a_malformed_body_comes_back(
    kms: Client, fleet: Fleet, sound: dict[str, Any], path: str
) -> None:
    canary = "canary-4f1c9d"
    if path == "request":
        sound[canary] = canary
        response = _send(kms, fleet, json.dumps(sound).encode())
    else:
        response = _send(kms, fleet, json.dumps(sound).encode(), **{canary: canary})
    check_problem(response, *MALFORMED)
    assert canary not in response.text
