"""The name of a revision: what was written decides it, and nothing else."""

import hashlib
import json
import random

import pytest

from kms.policy.compiled import Policy
from kms.policy.documents import RevokedDocument
from kms.policy.findings import PolicyInvalid
from kms.policy.revision import Revision, digest_of
from kms.policy.standing import with_standing_revocations
from tests.unit.policy.samples import VALID, documents

REVISION = Revision.from_files(VALID, development=False)


def canonical(values: list[dict[str, object]]) -> bytes:
    """RFC 8785 by the standard library: right for ASCII names and integers, which is all that we have."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def in_order(values: list[dict[str, object]]) -> list[dict[str, object]]:
    return sorted(values, key=lambda each: (each["kind"], each["id" if each["kind"] == "app" else "name"]))


def test_digest_is_as_computed_independently() -> None:
    expected = canonical(in_order(list(documents().values())))
    assert REVISION.canonical == expected
    assert REVISION.digest == "sha256:" + hashlib.sha256(expected).hexdigest()


def test_digest_is_independent_of_files_layout_and_order() -> None:
    values = list(documents().values())
    random.Random(1).shuffle(values)
    one_each = {
        f"{index}/x.yml": ("# a comment\n" + json.dumps(dict(reversed(value.items())), indent=3)).encode()
        for index, value in enumerate(values)
    }
    assert Revision.from_files(one_each, development=False).digest == REVISION.digest


def test_apps_are_sorted_by_id_and_others_by_name() -> None:
    app = {**documents()["app"], "keys": ["disk"]}
    del app["compat"]  # wants ids of 20 bytes
    apps = [
        {**app, "id": "ff" * 20, "name": "a"},
        {**app, "id": "0f" * 32, "name": "z"},
    ]
    chips: list[dict[str, object]] = [
        {"kind": "chips", "name": name, "chips": []} for name in ("b", "B", "a")
    ]
    values = [each for each in documents().values() if each["kind"] != "app"] + apps + chips
    text = "\n---\n".join(json.dumps(each) for each in values)
    stored = json.loads(Revision.from_files({"a.yaml": text.encode()}, development=False).canonical)
    assert [each["id"] for each in stored if each["kind"] == "app"] == ["0f" * 32, "ff" * 20]
    assert [each["name"] for each in stored if each["kind"] == "chips"] == ["B", "a", "b", "rack-7"]


def test_no_default_is_filled_in() -> None:
    written = [each for each in json.loads(REVISION.canonical) if each["kind"] == "app"]
    assert written == [documents()["app"]]
    without = VALID["valid/apps.yaml"].replace(b"guest: standard\n", b"")
    explicit = VALID["valid/apps.yaml"].replace(b"guest: standard\n", b"guest: strict\n")
    digests = {
        Revision.from_files(VALID | {"valid/apps.yaml": each}, development=False).digest
        for each in (without, explicit)
    }
    assert len(digests) == 2


def test_loads_what_was_stored() -> None:
    loaded = Revision.from_canonical(REVISION.canonical, digest=REVISION.digest)
    assert loaded.digest == REVISION.digest
    assert len(loaded.documents) == len(REVISION.documents)
    assert all(each in REVISION.documents for each in loaded.documents)
    assert Policy(loaded).revision == REVISION.digest


def test_a_development_revision_loads_everywhere() -> None:
    revision = Revision.from_files({"a.yaml": b"kind: guest\nname: lax\ndebug: allow\n"}, development=True)
    assert Revision.from_canonical(revision.canonical).documents


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"{}",
        b"null",
        b"[1]",
        b"[[]]",
        b"\xff",
        b'[{"kind":"chips"}]',
        b'[{"chips":[],"kind":"chips","name":"a","name":"b"}]',
        b'[{"kind":"chips","name":"a","chips":[]}]',
        b'[{"chips":[],"kind":"chips","name":"b"},{"chips":[],"kind":"chips","name":"a"}]',
        b'[{"chips":[],"kind":"chips","name":"a"},{"chips":[],"kind":"chips","name":"a"}]',
        b'[{"chips":["any"],"kind":"chips","name":"a"}]',
        b"[" * 100_000,
    ],
)
def test_refuses_stored_bytes_that_it_did_not_write(stored: bytes) -> None:
    with pytest.raises(PolicyInvalid):
        Revision.from_canonical(stored)


def test_refuses_bytes_of_another_name() -> None:
    with pytest.raises(PolicyInvalid):
        Revision.from_canonical(b"[]", digest=REVISION.digest)
    assert Revision.from_canonical(b"[]", digest=digest_of(b"[]")).documents == ()


def test_a_folder_without_documents_is_an_accident() -> None:
    for files in ({}, {"policy.yaml": b"# nothing yet"}):
        with pytest.raises(PolicyInvalid, match="no documents"):
            Revision.from_files(files, development=False)


def revocation(name: str, chip: str) -> str:
    empty = "".join(f"{member}: []\n" for member in ("measurements", "images", "apps", "compose", "products"))
    return f'kind: revoked\nname: {name}\nchips: ["{chip * 64}"]\n{empty}'


def revision_of(*documents: str) -> Revision:
    chips = f'kind: chips\nname: rack\nchips: ["{"11" * 64}"]\n'
    return Revision.from_files({"p.yaml": "---\n".join([chips, *documents]).encode()}, development=False)


def revoked_names(revision: Revision) -> list[str]:
    return sorted(each.name for each in revision.documents if isinstance(each, RevokedDocument))


def test_what_a_command_revoked_stays_revoked_when_the_folder_changes() -> None:
    folder, by_command = revision_of(), revision_of(revocation("emergency", "ab"))
    edited = revision_of(revocation("planned", "cd"))
    assert revoked_names(with_standing_revocations(edited, by_command, folder)) == ["emergency", "planned"]
    assert revoked_names(with_standing_revocations(edited, by_command, None)) == ["emergency", "planned"]


def test_what_a_folder_revoked_it_may_take_back() -> None:
    before, after = revision_of(revocation("planned", "cd")), revision_of()
    assert with_standing_revocations(after, before, before) == after


def test_two_revocations_of_one_name_are_both_kept() -> None:
    by_command, edited = revision_of(revocation("r", "ab")), revision_of(revocation("r", "cd"))
    kept = with_standing_revocations(edited, by_command, revision_of())
    assert revoked_names(kept) == ["r", "r-standing"]
    assert Revision.from_canonical(kept.canonical, digest=kept.digest) == kept
