"""``kms measure`` and ``kms image`` as their users call them."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kms.cli import run
from kms.cli.image import _quoted, images_from
from kms.cli.output import Unreadable, read_file
from kms.measurement.firmware import Firmware, firmware_digest
from kms.measurement.launch import LaunchDescription, Machine, launch_measurement, os_image_hash
from kms.measurement.vcpu_types import VCPU_TYPES
from kms.simulator.firmware import build_firmware

OVMF = build_firmware(size=4096, seed=b"commands")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("ovmf.fd").write_bytes(OVMF)
    Path("plain.fd").write_bytes(bytes(4096))
    Path("vmlinuz").write_bytes(b"kernel")
    Path("initrd").write_bytes(b"initrd")
    return tmp_path


class Kms:
    """Runs a command as a process would, and reads what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def __call__(self, *argv: str) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["kms", *argv])
        try:
            status = run(list(argv))
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        printed = self.capsys.readouterr()
        return status, printed.out, printed.err


@pytest.fixture
def kms(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Kms:
    return Kms(capsys, monkeypatch)


SNP = ("measure", "--mode", "snp", "--ovmf", "ovmf.fd")
ONE = ("--vcpus", "1", "--vcpu-type", "EPYC-v4")


def test_one_json_document(kms: Kms) -> None:
    status, out, _ = kms(*SNP, *ONE, "--json")
    assert status == 0
    assert json.loads(out)["measurement"] == kms(*SNP, *ONE)[1].strip()


@pytest.mark.parametrize(
    "argv",
    [
        (*SNP, "--vcpus", "1"),
        (*SNP, "--vcpu-type", "EPYC-v4"),
        (*SNP, *ONE, "--vmm-type", "xen"),
        (*SNP, *ONE, "--initrd", "initrd"),
        (*SNP, *ONE, "--append", "x"),
        (*SNP, *ONE, "--kernel", ""),
        (*SNP, *ONE, "--kernel", "nothing-here"),
        (*SNP, *ONE, "--kernel", "."),
        (*SNP, *ONE, "--kernel", "vmlinuz", "--append", "a\udcff"),
        (*SNP, *ONE, "--snp-ovmf-hash", "00"),
        (*SNP, *ONE, "--snp-ovmf-hash", "zz" * 48),
        (*SNP, *ONE, "--guest-features", str(1 << 64)),
        (*SNP, *ONE, "--vmsa-variant", "rdx-0"),
        (*SNP, "--vcpus", "1", "--vcpu-family", "25"),
        (*SNP, "--vcpus", "1", "--vcpu-family", "25", "--vcpu-model", "1", "--vcpu-stepping", "16"),
        (*SNP, "--vcpus", "0", "--vcpu-type", "EPYC-v4"),
        (*SNP, "--vcpus", "1000000", "--vcpu-type", "EPYC-v4"),
        ("measure", "--mode", "snp", "--ovmf", "plain.fd", *ONE),
        ("measure", "--mode", "snp", "--ovmf", "vmlinuz", *ONE),
        ("measure", "--mode", "snp", "--ovmf", "nothing-here", *ONE),
        ("measure", "--mode", "seves", "--ovmf", "plain.fd", *ONE),
        ("measure", "--mode", "seves", "--ovmf", "ovmf.fd", *ONE, "--snp-ovmf-hash", "00" * 48),
        ("measure", "--mode", "snp:ovmf-hash", "--ovmf", "plain.fd"),
        ("measure", "--mode", "sev", "--ovmf", "plain.fd", "--kernel", "vmlinuz"),
        ("measure", "--mode", "sev", "--ovmf", "ovmf.fd", "--dump-vmsa"),
        ("measure", "--mode", "snp:svsm", "--ovmf", "ovmf.fd", *ONE, "--vars-size", "4096"),
        ("measure", "--mode", "snp:svsm", "--ovmf", "ovmf.fd", *ONE, "--svsm", "ovmf.fd"),
        ("measure", "--mode", "snp:svsm", "--ovmf", "ovmf.fd", *ONE, "--svsm", "ovmf.fd", "--vars-size", "1"),
        (
            "measure",
            "--mode",
            "snp:svsm",
            "--ovmf",
            "ovmf.fd",
            *ONE,
            "--svsm",
            "ovmf.fd",
            "--vars-size",
            "4096",
        ),
        ("image", "describe", "--ovmf", "plain.fd", "--name", "a", "--enforces", "host-data"),
        ("image", "describe", "--ovmf", "ovmf.fd", "--name", "a b", "--enforces", "host-data"),
        ("image", "describe", "--ovmf", "ovmf.fd", "--name", "a", "--enforces", "hostdata"),
        ("image", "describe", "--ovmf", "ovmf.fd", "--name", "a", "--enforces", "cmdline"),
        ("image", "describe", "--ovmf", "ovmf.fd", "--name", "a", "--enforces", "none", "--append", ""),
        ("image", "describe", "--ovmf", "ovmf.fd", "--name", "a", "--enforces", "none", "--vcpus", "9-1"),
        ("image", "describe", "--ovmf", "ovmf.fd", "--name", "a", "--enforces", "none", "--vcpus", "1-999"),
        ("image", "measurements", "a", "--document", "nothing-here"),
        ("image",),
    ],
    ids=" ".join,
)
def test_wrong_use_is_status_2_and_one_document(kms: Kms, argv: tuple[str, ...]) -> None:
    status, out, err = kms(*argv)
    assert (status, out) == (2, "")
    assert err
    status, out, _ = kms(*argv, "--json")
    assert status == 2
    assert json.loads(out)["error"]["detail"]


def test_plain_sev_needs_no_metadata(kms: Kms) -> None:
    assert kms("measure", "--mode", "sev", "--ovmf", "plain.fd") == (
        0,
        hashlib.sha256(bytes(4096)).hexdigest() + "\n",
        "",
    )


def test_firmware_digest_given_is_firmware_digest_computed(kms: Kms) -> None:
    digest = kms("measure", "--mode", "snp:ovmf-hash", "--ovmf", "ovmf.fd")[1].strip()
    assert digest == firmware_digest(OVMF).hex()
    assert kms(*SNP, *ONE, "--snp-ovmf-hash", digest.upper())[1] == kms(*SNP, *ONE)[1]


def test_krun_and_our_own_spelling(kms: Kms) -> None:
    assert kms(*SNP, *ONE, "--vmm-type", "qemu")[1] == kms(*SNP, *ONE)[1]
    krun = kms(*SNP, "--vcpus", "1", "--vmm-type", "krun")
    assert krun[0] == 0
    assert krun[1] != kms(*SNP, *ONE)[1]


DESCRIBE = (
    "image", "describe", "--ovmf", "ovmf.fd", "--kernel", "vmlinuz", "--name", "os-1",
    "--enforces", "host-data,dstack-mr-config",
)  # fmt: skip


@pytest.mark.parametrize(
    "cmdline", ["console=ttyS0", "", "  a  ", '"quoted" \\ #: {x}', "é 漢 🦀 \x85\u2028\x7f"]
)
def test_described_image_reads_back_exactly(kms: Kms, cmdline: str) -> None:
    status, out, _ = kms(*DESCRIBE, "--initrd", "initrd", "--append", cmdline)
    assert status == 0
    document: dict[str, Any] = yaml.safe_load(out)
    assert document == json.loads(kms(*DESCRIBE, "--initrd", "initrd", "--append", cmdline, "--json")[1])
    launch = document["launch"]
    assert launch["cmdline"] == cmdline
    assert launch["kernel"] == hashlib.sha256(b"kernel").hexdigest()
    assert launch["initrd"] == hashlib.sha256(b"initrd").hexdigest()
    assert document["os_image_hash"] == os_image_hash(launch).hex()
    assert LaunchDescription.parse(launch).firmware == Firmware.parse(OVMF).describe()
    assert set(document) == {
        "kind", "name", "launch", "os_image_hash", "enforces", "vcpu_types", "vcpus", "guest_features",
    }  # fmt: skip
    Path("os-1.yaml").write_text(out)
    assert images_from(Path("os-1.yaml"))[0].description == LaunchDescription.parse(launch)


def test_listed_measurements_are_those_of_kms_measure(kms: Kms) -> None:
    machines = ("--vcpu-type", "EPYC-v4,EPYC-Milan", "--vcpus", "1-3", "--guest-features", "0x1,0x21")
    assert kms(*DESCRIBE, "--append", "x", *machines, "--output", "os-1.yaml") == (0, "", "")
    status, out, _ = kms("image", "measurements", "os-1", "--document", "os-1.yaml", "--json")
    assert status == 0
    rows = json.loads(out)["measurements"]
    assert len(rows) == 2 * 3 * 2
    for row in rows:
        same = kms(
            *SNP, "--kernel", "vmlinuz", "--append", "x", "--vcpus", str(row["vcpus"]),
            "--vcpu-type", row["vcpu_type"], "--guest-features", row["guest_features"],
        )  # fmt: skip
        assert same[1].strip() == row["measurement"]
    lines = kms("image", "measurements", "os-1", "--document", "os-1.yaml")[1].splitlines()
    assert [line.split()[0] for line in lines] == [row["measurement"] for row in rows]
    Path("policy").mkdir()
    Path("os-1.yaml").rename("policy/os-1.yaml")
    assert kms("image", "measurements", "os-1", "--policy", "policy", "--json")[1] == out


def test_measurements_of_one_app(kms: Kms) -> None:
    template = "a={app_id} c={compose_hash}"
    describe = (*DESCRIBE[:-1], "cmdline", "--append", template, "--output", "os-1.yaml")
    assert kms(*describe)[0] == 0
    listing = ("image", "measurements", "os-1", "--document", "os-1.yaml", "--json")
    assert kms(*listing)[0] == 2
    assert kms(*listing, "--app-id", "a1" * 20)[0] == 2
    status, out, _ = kms(*listing, "--app-id", "a1" * 20, "--compose-hash", "c2" * 32)
    assert status == 0
    launch = yaml.safe_load(Path("os-1.yaml").read_text())["launch"]
    filled = launch_measurement(
        LaunchDescription.parse(launch),
        Machine(1, VCPU_TYPES["EPYC-v4"], 1),
        cmdline=f"a={'a1' * 20} c={'c2' * 32}",
    )
    assert json.loads(out)["measurements"][0]["measurement"] == filled.hex()


def test_tampered_document_is_refused(kms: Kms) -> None:
    text = kms(*DESCRIBE, "--append", "x")[1]
    Path("os-1.yaml").write_text(text.replace('cmdline: "x"', 'cmdline: "y"'))
    assert kms("image", "measurements", "os-1", "--document", "os-1.yaml")[0] == 2


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_any_command_line_survives_yaml(text: str) -> None:
    assert yaml.safe_load(f"cmdline: {_quoted(text)}") == {"cmdline": text}


@pytest.mark.parametrize("hexadecimal", ["1e5", "12345678", "0" * 64, "0x10", "1_0", "null", "yes"])
def test_values_that_look_like_others_stay_text(hexadecimal: str) -> None:
    assert yaml.safe_load(_quoted(hexadecimal)) == hexadecimal


def test_measuring_imports_nothing_slow() -> None:
    """``kms measure`` is run in loops: these would make it slower than the tool that it replaces."""
    slow = {
        "dataclasses",
        "inspect",
        "json",
        "pathlib",
        "shutil",
        "typing_extensions",
        "cryptography",
        "rfc8785",
        "yaml",
    }
    program = (
        "import sys; from kms.cli import run;"
        f"run({[*SNP, *ONE]!r}); print(*sorted(set(sys.modules) & {slow!r}))"
    )
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=plain, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[1:] == [""]


def test_files_of_any_kind_are_read_whole_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    assert len(read_file(path, at_most=100)) == 100
    with pytest.raises(Unreadable, match="longer than 99 bytes"):
        read_file(path, at_most=99)
    reading, writing = os.pipe()
    os.write(writing, bytes(5000))
    os.close(writing)
    # What a shell's <(…) gives: a file without a size.
    assert len(read_file(Path(f"/dev/fd/{reading}"), at_most=1 << 20)) == 5000
    os.close(reading)
