"""``kms verify`` on files, with the words that a guest would have put into its request."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kms.cli import run
from kms.encoding import b64url
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.endorsement import load_der
from kms.snp.product import Product
from tests.unit.cli.offline import OfflineGuest, write_guest
from tests.world import APP_ID, COMPOSE_HASH, NOW, describe_image, document

IDENTITY = b64url(b"\x07" * 32)
Verify = Callable[..., tuple[int, set[str]]]


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Verify:
    """Run the command; give its status and the names of the checks that failed."""

    def call(guest: OfflineGuest, *more: str) -> tuple[int, set[str]]:
        monkeypatch.setenv("KMS_DEVELOPMENT_ROOTS", str(guest.folder / "roots.pem"))
        status = run(guest.verify(*more))
        answer = json.loads(capsys.readouterr().out)
        if "error" in answer:
            return status, {answer["error"]["code"]}
        return status, {check["name"] for check in answer["checks"] if not check["passed"]}

    return call


@pytest.fixture
def hierarchy(simulated_hierarchies: Mapping[Product, AmdHierarchy]) -> AmdHierarchy:
    return simulated_hierarchies[Product.MILAN]


def test_a_document_that_names_a_kms_needs_its_identity(
    verify: Verify, tmp_path: Path, hierarchy: AmdHierarchy
) -> None:
    guest = write_guest(tmp_path, hierarchy, app=document(kms_identity=IDENTITY))
    files = ("--policy", str(tmp_path / "policy"), "--app-document", str(tmp_path / "app.json"))
    assert verify(guest, *files, "--identity", IDENTITY) == (0, set())
    (tmp_path / "kms.id").write_text(IDENTITY + "\n")
    assert verify(guest, *files, "--identity", f"@{tmp_path / 'kms.id'}") == (0, set())
    for other in ((), ("--identity", b64url(b"\x08" * 32))):
        status, failed = verify(guest, *files, *other)
        assert (status, len(failed)) == (1, 1)


def test_the_app_of_a_measured_command_line_is_named(
    verify: Verify, tmp_path: Path, hierarchy: AmdHierarchy
) -> None:
    template = "app={app_id} compose={compose_hash}"
    guest = write_guest(
        tmp_path,
        hierarchy,
        description=describe_image(template),
        cmdline=template.format(app_id=APP_ID, compose_hash=COMPOSE_HASH),
        policy={"binding": ["cmdline"]},
        image={"enforces": ["cmdline"]},
    )
    policy = ("--policy", str(tmp_path / "policy"))
    launch = {**describe_image(template).to_json(), "vcpus": 2, "vcpu_type": "EPYC-v4", "guest_features": 1}
    (tmp_path / "launch.json").write_text(json.dumps(launch))
    alone = ("--launch", str(tmp_path / "launch.json"))
    assert verify(guest, *alone, "--app-id", APP_ID, "--compose-hash", COMPOSE_HASH) == (0, set())
    assert verify(guest, *alone)[0] == 1
    assert verify(guest, *policy, "--app-id", APP_ID, "--compose-hash", COMPOSE_HASH) == (0, set())
    assert verify(guest, *policy)[0] == 1
    assert verify(guest, *policy, "--app-id", APP_ID, "--compose-hash", "ab" * 32)[0] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("--app-id", APP_ID),
        ("--compose-hash", COMPOSE_HASH),
        ("--app-id", "00", "--compose-hash", "00"),
        ("--identity", "AAAA"),
        ("--identity", "@/nonexistent"),
        ("--report-data", "00"),
        ("--at", "yesterday"),
        ("--policy", "/nonexistent"),
    ],
    ids=" ".join,
)
def test_wrong_use(
    verify: Verify, tmp_path: Path, hierarchy: AmdHierarchy, arguments: tuple[str, ...]
) -> None:
    assert verify(write_guest(tmp_path, hierarchy), *arguments)[0] == 2


def test_a_broken_policy_is_the_operators_to_mend(
    verify: Verify, tmp_path: Path, hierarchy: AmdHierarchy
) -> None:
    guest = write_guest(tmp_path, hierarchy, policy={"images": ["os-2"]})
    status, failed = verify(guest, "--policy", str(tmp_path / "policy"))
    assert (status, failed) == (2, {"configuration"})


def test_lesson_10_a_revoked_authority_is_refused(
    verify: Verify, tmp_path: Path, hierarchy: AmdHierarchy
) -> None:
    guest = write_guest(tmp_path, hierarchy)
    serial = load_der(hierarchy.ask.certificate).serial
    times: dict[str, Any] = {
        "this_update": NOW - timedelta(days=1),
        "next_update": NOW + timedelta(days=30),
    }
    (tmp_path / "crl").write_bytes(hierarchy.revocation_list((serial,), **times))
    assert verify(guest, "--certificates", str(tmp_path / "crl")) == (1, {"not-revoked"})
    # Signed by another authority of the chain it revokes nothing.
    forged = hierarchy.revocation_list((serial,), **times, signer=hierarchy.ask)
    (tmp_path / "crl").write_bytes(forged)
    assert verify(guest, "--certificates", str(tmp_path / "crl")) == (0, set())


def test_a_list_of_no_known_version(verify: Verify, tmp_path: Path, hierarchy: AmdHierarchy) -> None:
    """What the library calls an invalid version is no ValueError."""
    der = hierarchy.revocation_list(this_update=NOW, next_update=NOW + timedelta(days=30))
    version = der.index(b"\x02\x01\x01")
    (tmp_path / "crl").write_bytes(der[: version + 2] + b"\x07" + der[version + 3 :])
    guest = write_guest(tmp_path, hierarchy)
    assert verify(guest, "--certificates", str(tmp_path / "crl")) == (1, {"evidence-format"})


def test_a_required_revocation_list(
    verify: Verify, tmp_path: Path, hierarchy: AmdHierarchy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KMS_CRL", "require")
    guest = write_guest(tmp_path, hierarchy)
    assert verify(guest) == (1, {"revocation-list"})
    times: dict[str, Any] = {
        "this_update": NOW - timedelta(days=1),
        "next_update": NOW + timedelta(days=30),
    }
    (tmp_path / "crl").write_bytes(hierarchy.revocation_list(**times))
    assert verify(guest, "--certificates", str(tmp_path / "crl")) == (0, set())


def test_certificates_from_the_collateral_folder(
    verify: Verify, tmp_path: Path, hierarchy: AmdHierarchy, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = write_guest(tmp_path, hierarchy)
    alone = replace(guest, certificates=())
    assert verify(alone) == (1, {"endorsement-certificate"})
    (tmp_path / "collateral").mkdir()
    for path in guest.certificates:
        path.rename(tmp_path / "collateral" / path.name)
    monkeypatch.setenv("KMS_COLLATERAL_DIR", str(tmp_path / "collateral"))
    assert verify(alone) == (0, set())
