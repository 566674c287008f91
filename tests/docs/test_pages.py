"""Field lesson 39: what the README and the pages under `docs/` name exists, and runs as it is written."""

import ast
import importlib
import json
import re
import shlex
import sqlite3
import subprocess
import sys
from base64 import encodebytes
from collections.abc import Iterator, Mapping
from datetime import timedelta
from itertools import takewhile
from pathlib import Path

import pytest

from kms.cli import COMMANDS, run
from kms.database import faults
from kms.encoding import from_base64
from kms.http.problems import KINDS
from kms.settings import Settings
from kms.simulator.chip import POLICY, SimulatedChip, simulated_chip_id
from kms.simulator.firmware import build_firmware
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.machine import SimulatedMachine, describe
from kms.snp.certificate_table import parse_table
from kms.snp.product import Product
from kms.telemetry.reasons import NOT_READY_REASONS
from tests.docs import commands_page
from tests.world import NOW, World, document, open_world

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PROTOCOL = (ROOT / "docs" / "reference" / "protocol.md").read_text()
OPERATOR = (ROOT / "docs" / "guides" / "operator.md").read_text()

# Make targets, and programs that are not ours.
FOREIGN = {"make", "openssl", "sqlite3", "curl", "cryptsetup", "ssh-keygen", "sha256sum"}
FOREIGN |= {"docker", "env", "install", "pg_dump", "psql", "sudo", "systemctl", "systemd-sysusers"}
FOREIGN |= {"grep", "wc", "lsinitramfs", "mkinitramfs", "update-initramfs"}
FOREIGN |= {"promtool", "cat", "chmod", "echo", "export", "kill", "rm", "sed", "umask", "wait"}
# In the place of one that a page only begins.
REVISION = f"sha256:{'38d1' * 16}"
# Where the arguments end.
REDIRECTION = re.compile(r"[0-9&]*[<>].*|&")


def console_lines(text: str) -> Iterator[str]:
    """Give what is typed at a prompt, continued lines joined, comments and later pipe members left out."""
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        yield from re.findall(r"^\$ (.*)$", block.replace("\\\n", " "), re.MULTILINE)


def kms_commands(text: str) -> Iterator[list[str]]:
    """Give the arguments of every `kms` that is run."""
    for line in console_lines(text):
        for part in re.split(r" \| |; ", line.removeprefix("(").removesuffix(")")):
            whole = part.replace("$(kms measure …)", "DIGEST").replace("sha256:38d1…", REVISION)
            words = shlex.split(whole, comments=True)
            while words and re.fullmatch(r"KMS_[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words[0] == "systemd-run":
                words = ["kms", *words[words.index("/opt/attested-kms/bin/kms") + 1 :]]
            if words[0] == "kms":
                yield list(takewhile(lambda word: not REDIRECTION.fullmatch(word), words[1:]))
            else:
                assert words[0] in FOREIGN, line


ALL_COMMANDS = [
    pytest.param(argv, id=f"{page.name}: {' '.join(argv)[:60]}")
    for page in PAGES
    for argv in kms_commands(page.read_text())
]


@pytest.mark.parametrize("argv", ALL_COMMANDS)
def test_commands_and_options_exist(argv: list[str]) -> None:
    """Each parses whole: a command or option that is not there is `WrongUse`."""
    if argv[:2] == ["measure", "id-block"]:
        importlib.import_module("kms.cli.measure_id_block").parser().parse_args(argv[2:])
    else:
        importlib.import_module(COMMANDS[argv[0]].module).parser().parse_args(argv[1:])


def test_there_are_commands() -> None:
    assert len(ALL_COMMANDS) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_commands_exist(page: Path) -> None:
    """Also in the text: `kms policy history` must not be promised."""
    known = set(commands_page.parsers())
    groups = {name.rsplit(" ", 1)[0] for name in known if name.count(" ") > 1} | {"kms"}
    for span in re.findall(r"`(kms [^`]*)`", page.read_text()):
        words = [word for word in span.split() if re.fullmatch(r"[a-z][a-z-]*", word)]
        named = " ".join(words[:3])
        assert any(named == name or named.startswith(f"{name} ") for name in known) or (named in groups), (
            f"{page.name}: {span}"
        )
        for option in re.findall(r"(--[a-z-]+)", span):
            assert option in {"--help", "--version"} or _has_option(span, option), f"{page.name}: {span}"


def _has_option(span: str, option: str) -> bool:
    return any(
        option in action.option_strings
        for name, parser in commands_page.parsers().items()
        if span.startswith(name)
        for action in parser._actions
    )


def test_the_commands_page_is_the_parsers() -> None:
    assert commands_page.PAGE.read_text() == commands_page.page(), "python -m tests.docs.commands_page"


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"`?make ([a-z]+)(?:`|\b  )", page.read_text())) <= targets, page.name


def test_every_setting_is_documented_with_its_default() -> None:
    page = (ROOT / "docs" / "reference" / "settings.md").read_text()
    rows = dict(re.findall(r"^\| `(KMS_[A-Z_]+)` \| `?([^|`]*)`? \|", page, re.MULTILINE))
    shown = {}
    for name, field in Settings.model_fields.items():
        value = field.get_default(call_default_factory=True)
        if name == "server_name":
            value = "the host's name"  # which is another one here
        elif isinstance(value, timedelta):
            value = f"{value.days} days" if value.days else int(value.total_seconds())
        elif isinstance(value, list):
            value = ",".join(value) or None
        elif isinstance(value, bool):
            value = str(value).lower()
        shown[f"KMS_{name.upper()}"] = "none" if value is None else str(value)
    assert rows == shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_settings_exist(page: Path) -> None:
    known = {f"KMS_{name.upper()}" for name in Settings.model_fields} | {"KMS_CONFIG"}
    assert set(re.findall(r"\bKMS_[A-Z][A-Z_]*[A-Z]\b", page.read_text())) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_exist(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)  # brackets of a program are no links
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in headings}
            assert anchor in slugs, f"{page.name}: {target}"
    for named in re.findall(r"`((?:kms|tests|docs|policies|migrations)/[A-Za-z0-9_./-]+)", page.read_text()):
        assert (ROOT / named).exists(), f"{page.name}: {named}"


async def test_routes_exist(world: World) -> None:
    served = set((await world.client.get("/openapi.json")).json()["paths"]) | {"/openapi.json", "/docs"}
    assert len(served) >= 7
    beginnings = {"/".join(path.split("/")[:3]) for path in served}
    for page in PAGES:
        text = re.sub(r"https?://[^\s`)]+?(?=/|[\s`)])", "", page.read_text())
        named = set(re.findall(r"(?<![\w.])(/v1/[a-z-]+|/healthz|/readyz|/metrics|/openapi\.json)", text))
        # Metrics have a listener of their own (tests/unit/telemetry/test_exposition.py).
        missing = named - served - beginnings - {"/metrics"}
        assert not missing, page.name
    documented = re.sub(
        r"\{\w+\}", "{}", PROTOCOL + (ROOT / "docs" / "reference" / "operators.md").read_text()
    )
    for path in served:
        assert re.sub(r"\{\w+\}", "{}", path) in documented, path


def test_statuses_and_codes_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (\d{3}) \| `([a-z-]+)` \|", PROTOCOL, re.MULTILINE)
    assert {code: int(status) for status, code in rows} == {code: kind.status for code, kind in KINDS.items()}


def test_every_reason_that_a_guest_may_be_told_is_documented() -> None:
    """Read from the source: every literal reason, and the name of every check that has no other."""
    policy = (ROOT / "docs" / "reference" / "policy.md").read_text()
    keys = (ROOT / "docs" / "reference" / "keys.md").read_text()
    documented = set(re.findall(r"`([a-z0-9-]+)`", PROTOCOL + policy + keys))
    sources = [
        *(ROOT / "kms" / name for name in ("request.py", "release.py", "judgement.py", "keys/sealing.py")),
        *(ROOT / "kms" / "snp").glob("*.py"),
        *(ROOT / "kms" / "evidence").glob("*.py"),
        *(ROOT / "kms" / "http").glob("*.py"),
        ROOT / "kms" / "database" / "decisions.py",
    ]
    told = {reason for source in sources for reason in _reasons(ast.parse(source.read_text()))}
    assert len(told) > 40
    assert told - documented == set()


def test_the_reasons_not_to_be_ready_are_those_of_the_code() -> None:
    section = PROTOCOL[PROTOCOL.index("### Not ready") : PROTOCOL.index("### The other routes")]
    rows = re.findall(r"^\| (`[^|]*`) \| ([^|]+) \|$", section, re.MULTILINE)
    listed = [reason for reasons, _ in rows for reason in re.findall(r"`([a-z-]+)`", reasons)]
    assert len(listed) == len(set(listed))
    assert set(listed) == NOT_READY_REASONS
    source = (ROOT / "kms" / "readiness.py").read_text()
    assert set(re.findall(r'"([a-z]+-[a-z-]+)"', source)) <= NOT_READY_REASONS
    # What keeps the server from recording, guests are told, too.
    told = set(re.findall(r"`([a-z-]+)`", _row(PROTOCOL, "ledger-unavailable")))
    assert {value for name, value in vars(faults).items() if name.isupper() and name[0] != "_"} <= told
    assert {each for each in listed if each.startswith("anchor-")} <= told


def _row(page: str, code: str) -> str:
    """Give the row of a code in the table of reasons."""
    table = page[page.index("| code | reasons |") :]
    return table[table.index(f"| `{code}` |") :].partition("\n")[0]


def _reasons(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        # A check that is written as passed tells nobody anything.
        named = ast.unparse(node.func) == "Check.of" and ast.unparse(node.args[1]) != "True"
        value = given.get("reason", node.args[0] if named and node.args else None)
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value.value


async def test_boot_info_is_documented(world: World) -> None:
    answer = await world.ask()
    section = PROTOCOL[PROTOCOL.index("**BootInfo**") : PROTOCOL.index("## 4. Policies")]
    assert set(answer.body["boot_info"]) <= set(re.findall(r"`([a-z_]+)`", section))
    assert set(answer.body) == set(json.loads(_json_after("**4. The release.**")))
    receipt = json.loads(from_base64(answer.body["receipt"]["payload"]))
    assert f"{{{','.join(json.dumps(name) for name in receipt)}}}" in PROTOCOL


def _json_after(words: str) -> str:
    found = re.search(r"```json\n(.*?)```", PROTOCOL[PROTOCOL.index(words) :], re.DOTALL)
    assert found
    return found[1]


def test_sections_that_the_code_cites_exist() -> None:
    headings = set(re.findall(r"^## (\d)\.", PROTOCOL, re.MULTILINE))
    lessons = set(re.findall(r"^\| (\d+) \|", (ROOT / "docs/reference/lessons.md").read_text(), re.MULTILINE))
    assert lessons == {str(number) for number in range(1, 41)}
    for source in [*(ROOT / "kms").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        text = source.read_text()
        assert set(re.findall(r"protocol,? section (\d)", text)) <= headings, source
        assert set(re.findall(r"field lessons? (\d+)", text)) <= lessons, source


def test_lessons_are_held_by_tests_that_exist() -> None:
    page = (ROOT / "docs" / "reference" / "lessons.md").read_text()
    for row in re.findall(r"^\| \d+ \|.*$", page, re.MULTILINE):
        held = row.rstrip("| ").rsplit("|", 1)[1].strip()
        references = re.findall(r"`([^`]+)::(\w+)`", held)
        assert references or held == "later", row
        for file, name in references:
            source = ROOT / file.replace("FL", "tests/api/test_field_lessons.py")
            assert re.search(rf"^\s*(?:async def|def|class) {name}", source.read_text(), re.MULTILINE), row


@pytest.mark.parametrize("page", ["SECURITY.md", "docs/guides/guest.md", "docs/reference/measurement.md"])
def test_lesson_40_what_is_not_measured_is_said(page: str) -> None:
    text = (ROOT / page).read_text()
    assert "ACPI" in text
    assert "fw_cfg" in text


def test_nothing_is_claimed_of_other_places() -> None:
    """The pages speak of this repository alone."""
    for page in PAGES:
        assert not re.search(r"\.\./shared|shared/", page.read_text()), page.name


class TestOperatorGuide:
    """The guide's commands, in their order, on an empty folder."""

    @pytest.fixture
    def folder(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        simulated_hierarchies: Mapping[Product, AmdHierarchy],
    ) -> Path:
        monkeypatch.chdir(tmp_path)
        hierarchy = simulated_hierarchies[Product.MILAN]
        firmware = build_firmware(size=4096, seed=b"guide")
        for name, content in {"OVMF.fd": firmware, "vmlinuz": b"kernel", "initrd.img": b"initrd"}.items():
            Path(name).write_bytes(content)
        Path("roots.pem").write_bytes(hierarchy.ark.pem)
        monkeypatch.setenv("KMS_DEVELOPMENT_ROOTS", "roots.pem")
        policy = re.search(r"```yaml\n(# policy/app.yaml\n.*?)```", OPERATOR, re.DOTALL)
        assert policy
        Path("policy").mkdir()
        Path("policy/app.yaml").write_text(policy[1])
        compose = re.search(r'compose: \["(\w+)"\]', policy[1])
        assert compose
        app = document(compose_hash=compose[1])
        Path("app.json").write_bytes(app)
        chip = SimulatedChip.typical(
            hierarchy,
            chip_id=simulated_chip_id(Product.MILAN, b"chip 1"),
            now=NOW - timedelta(days=1),
        )
        launched = describe(firmware=firmware, kernel=b"kernel", initrd=b"initrd", cmdline="console=ttyS0 ro")
        machine = SimulatedMachine.launch(chip, launched, app_document=app)
        Path("report.bin").write_bytes(machine.guest.report(bytes(64)))
        table = machine.evidence(bytes(64))["certificate_table"]
        leaf, *chain = sorted((entry.data for entry in parse_table(from_base64(str(table)))), key=len)
        Path("vcek.der").write_bytes(leaf)
        Path("cert_chain.pem").write_bytes(b"".join(_pem(each) for each in chain))
        return tmp_path

    def test_its_commands_run(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        ran = []
        for argv in kms_commands(OPERATOR):
            if argv[0] == "demo":
                continue  # tests/e2e runs it
            more = ["--at", NOW.isoformat()] if argv[0] == "verify" else []
            assert run([*argv, *more]) == 0, (argv, capsys.readouterr())
            ran.append(" ".join(argv[:2]))
        assert (folder / "policy" / "os-1.yaml").exists()
        assert ran == [
            "serve --print-config",
            "image describe",
            "policy lint",
            "policy apply",
            "verify --report",
        ]

    async def test_a_refusal_is_in_the_record(
        self, tmp_path: Path, simulated_hierarchies: Mapping[Product, AmdHierarchy]
    ) -> None:
        async with open_world(tmp_path, simulated_hierarchies[Product.MILAN]) as world:
            answer = await world.ask(world.launch(policy=POLICY | 1 << 19))
            answer.check_refused(403, "policy-denied", "debug-enabled")
        query = re.search(r'kms-data/(\S+) "(select .*)"$', OPERATOR, re.MULTILINE)
        assert query
        connection = sqlite3.connect(tmp_path / query[1])
        try:
            ((entry,),) = connection.execute(query[2].replace("REQUEST_ID", answer.body["request_id"]))
        finally:
            connection.close()
        failed = [each for each in json.loads(entry)["checks"] if not each["passed"]]
        assert [each["reason"] for each in failed] == ["debug-enabled"]


def _pem(der: bytes) -> bytes:
    body = encodebytes(der).decode("ascii")
    return f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n".encode()


def test_readme_describes_an_image_as_it_says(tmp_path: Path) -> None:
    """In a process of its own, in a folder with nothing but what a hypervisor is given."""
    for name, content in {
        "OVMF.fd": build_firmware(size=4096, seed=b"readme"),
        "vmlinuz": b"kernel",
        "initrd.img": b"initrd",
    }.items():
        (tmp_path / name).write_bytes(content)
    commands = [
        argv for argv in kms_commands((ROOT / "README.md").read_text()) if argv[0] in {"image", "policy"}
    ]
    assert len(commands) == 2
    for argv in commands:
        done = subprocess.run(
            [sys.executable, "-m", "kms", *argv],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (argv, done.stdout, done.stderr)
