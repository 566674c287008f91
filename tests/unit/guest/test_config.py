"""guest.toml: what an image pins, read strictly; and the kernel's command line, where it fills a gap."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kms.encoding import b64url
from kms.errors import ConfigurationError
from kms.guest import config, kernel_command_line
from kms.guest.config import GuestConfig, read_config
from kms.guest.hardware import EvidenceOptions, Interface
from kms.guest.kernel_command_line import parameters, proc_cmdline
from kms.guest.key_words import parse_key
from kms.keys.sealing import Suite

PIN = bytes(range(32))
OTHER = bytes(32)
LEAST = f'server = "https://kms:8443"\nidentity = "{b64url(PIN)}"\n'

Read = Callable[..., GuestConfig]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(content: str | bytes, *, command_line: str = "") -> GuestConfig:
        path = tmp_path / "guest.toml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(0o644)
        return read_config(path, command_line=lambda: command_line)

    return read


def test_the_least_that_a_file_says(read: Read) -> None:
    assert read(LEAST) == GuestConfig(server="https://kms:8443", identity=PIN)


def test_every_key(read: Read, tmp_path: Path) -> None:
    pin = tmp_path / "kms.id"
    pin.write_text(b64url(PIN) + "\n")
    pin.chmod(0o644)
    config = read(f"""
        server = "https://kms:8443"
        ca = "/etc/attested-kms/ca.pem"
        identity = "@{pin}"
        deadline = 90
        app_document = "/run/app.json"
        workload = "/run/workload"
        app_id = "{"a1" * 20}"
        compose_hash = "{"c3" * 32}"
        suite = "{Suite.HPKE_X25519}"
        [evidence]
        interface = "device"
        tsm = "/run/tsm"
        device = "/dev/other"
        privlevel = 2
        [launch]
        image = "os-1"
        vcpus = 2
        [volumes.data]
        device = "/dev/vdb"
        [volumes.scratch]
        device = "/dev/vdc"
        key = "custom:scratch@instance"
        format = "blank"
        rotate = false
        [[serve.allow]]
        key = "custom:db/main"
        scope = "instance"
        uids = [1000, 0]
        credential = "db"
        [[serve.allow]]
        key = "disk@chip"
        gids = [7]
    """)
    assert config.identity == PIN
    assert (config.ca, config.app_document, config.workload) == (
        Path("/etc/attested-kms/ca.pem"),
        Path("/run/app.json"),
        Path("/run/workload"),
    )
    assert (config.deadline, config.suite) == (90.0, Suite.HPKE_X25519)
    assert config.app is not None
    assert (config.app.app_id, config.app.compose_hash) == (b"\xa1" * 20, b"\xc3" * 32)
    assert config.evidence == EvidenceOptions(
        tsm=Path("/run/tsm"), device=Path("/dev/other"), interface=Interface.DEVICE, privlevel=2
    )
    assert config.launch == {"image": "os-1", "vcpus": 2}
    data, scratch = config.volumes["data"], config.volumes["scratch"]
    assert (data.name, data.device, data.key) == ("data", Path("/dev/vdb"), parse_key("disk"))
    assert (data.format_blank, data.rotate) == (False, True)
    assert (scratch.key, scratch.format_blank, scratch.rotate) == (
        parse_key("custom:scratch@instance"),
        True,
        False,
    )
    [database, disk] = config.served
    assert (str(database.key), database.scope, database.credential) == ("custom:db/main", "instance", "db")
    assert (set(database.uids), set(database.gids)) == ({1000, 0}, set())
    assert (str(disk.key), disk.scope.value, set(disk.gids), disk.credential) == ("disk", "chip", {7}, None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("serer = 'x'", "unknown key `serer`; did you mean `server`"),
        ("identiy = 'x'", "did you mean `identity`"),
        ("zzz = 1", "known: server"),
        ("[evidence]\ntsn = '/x'", r"\[evidence\]: unknown key `tsn`; did you mean `tsm`"),
        ("[volumes.data]\ndevise = '/x'", "did you mean `device`"),
        ("[serve]\nallows = []", "did you mean `allow`"),
        ("[[serve.allow]]\nkey = 'disk'\nuid = 1", "did you mean `uids`"),
        ("[launch]\nvpcus = 1", "unknown member"),
        ("ca = 1", "`ca` must be a string"),
        ("ca = 'ca.pem'", "`ca` must be an absolute path"),
        ('ca = "/a\\u0000b"', "`ca` must be an absolute path"),
        ("app_document = true", "`app_document` must be a string"),
        ("deadline = '60'", "`deadline` must be a number"),
        ("deadline = true", "`deadline` must be a number"),
        ("deadline = nan", "more than 0"),
        ("deadline = inf", "more than 0"),
        ("deadline = 0", "more than 0"),
        ("deadline = 1e9", "at most"),
        ("suite = 'rot13'", "`suite` must be one of"),
        ("command_line = 1", "`command_line` must be true or false"),
        (f"app_id = '{'a1' * 20}'", "`compose_hash` is missing"),
        (f"compose_hash = '{'c3' * 32}'", "`app_id` is missing"),
        (f"app_id = '00'\ncompose_hash = '{'c3' * 32}'", "`app_id`"),
        ("evidence = 1", r"\[evidence\] must be a table"),
        ("[evidence]\ninterface = 'tdx'", "must be one of auto, tsm, device"),
        ("[evidence]\nprivlevel = 4", "from 0 to 3"),
        ("[evidence]\nprivlevel = true", "must be an integer"),
        ("launch = 1", "`launch` must be"),
        ("[launch]\nvcpus = 'two'", "must be an integer"),
        ("[launch.description]\nmade = 2026-11-22", "what JSON has not"),
        ("volumes = []", "volumes are tables"),
        ("volumes = {data = 1}", r"\[volumes.data\] must be a table"),
        ("[volumes.data]", "`device` is missing"),
        ("[volumes.data]\ndevice = 'vdb'", "absolute"),
        ("[volumes.data]\ndevice = '/dev/vdb'\nkey = 'disks'", "`key`"),
        ("[volumes.data]\ndevice = '/dev/vdb'\nkey = 'disk#1'", "takes no epoch"),
        ("[volumes.data]\ndevice = '/dev/vdb'\nkey = 'signing'", "symmetric"),
        ("[volumes.data]\ndevice = '/dev/vdb'\nformat = 'always'", "never, blank"),
        ("[volumes.data]\ndevice = '/dev/vdb'\nformat = true", "must be a string"),
        ("[volumes.data]\ndevice = '/dev/vdb'\nrotate = 'yes'", "true or false"),
        ("[volumes.control]\ndevice = '/dev/vdb'", "name of a mapping"),
        ("[volumes.'../x']\ndevice = '/dev/vdb'", "name of a mapping"),
        ("[volumes.'-x']\ndevice = '/dev/vdb'", "name of a mapping"),
        ("[volumes.'.x']\ndevice = '/dev/vdb'", "name of a mapping"),
        ("[volumes.'']\ndevice = '/dev/vdb'", "name of a mapping"),
        (f"[volumes.{'x' * 128}]\ndevice = '/dev/vdb'", "name of a mapping"),
        ("serve = []", r"\[serve\] must be a table"),
        ("[serve]\nallow = 1", "`allow` must be an array"),
        ("[serve]\nallow = ['disk']", "must be a table"),
        ("[[serve.allow]]\nuids = [1]", "`key` is missing"),
        ("[[serve.allow]]\nkey = 'disk'", "nobody may have it"),
        ("[[serve.allow]]\nkey = 'disk#1'\nuids = [1]", "takes no epoch"),
        ("[[serve.allow]]\nkey = 'disk@app'\nscope = 'chip'\nuids = [1]", "scope is app, instance or chip"),
        ("[[serve.allow]]\nkey = 'env'\nscope = 'chip'\nuids = [1]", "scope"),
        ("[[serve.allow]]\nkey = 'disk'\nuids = 1", "must be an array"),
        ("[[serve.allow]]\nkey = 'disk'\nuids = ['root']", "numeric"),
        ("[[serve.allow]]\nkey = 'disk'\nuids = [true]", "numeric"),
        ("[[serve.allow]]\nkey = 'disk'\nuids = [-1]", "numeric"),
        ("[[serve.allow]]\nkey = 'disk'\nuids = [4294967295]", "numeric"),
        ("[[serve.allow]]\nkey = 'disk'\ncredential = 'a/b'", "`credential`"),
        ("[[serve.allow]]\nkey = 'disk'\nuids = [1]\n[[serve.allow]]\nkey = 'disk@app'\nuids = [2]", "twice"),
        (
            "[[serve.allow]]\nkey = 'disk'\ncredential = 'a'\n[[serve.allow]]\nkey = 'env'\ncredential = 'a'",
            "twice",
        ),
        ("trust_any_kms_identity = true", "would ignore it"),
        ("server = 'https://twice'", "not TOML"),
        ("x = " + "[" * 5000, "not TOML"),
        ("# " + "x" * (64 << 10), "longer than 65536 bytes"),
    ],
    ids=lambda value: value[:40],
)
def test_what_makes_no_sense_is_said(read: Read, content: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        read(LEAST + content)


def test_what_is_no_text(read: Read) -> None:
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        read(b"\xff")


def test_the_page_has_every_key_and_its_example_is_read(read: Read) -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "guest-config.md").read_text()
    example = re.search(r"```toml\n(.*?)```", page, re.DOTALL)
    assert example
    assert read(example[1]).identity == PIN
    listed = []
    for section in re.split(r"^##+ ", page, flags=re.MULTILINE):
        names = " ".join(re.findall(r"^\| (`[^|]*)\|", section, re.MULTILINE))
        listed += [set(re.findall(r"`([a-z_]+)`", names))] if names else []
    tables = {"evidence", "launch", "volumes", "serve"}
    assert listed == [
        set(config._KEYS) - tables,
        set(config._EVIDENCE_KEYS),
        set(config._VOLUME_KEYS),
        set(config._SERVED_KEYS),
    ]


class TestPin:
    @pytest.mark.parametrize(
        "identity",
        ["", "AAAA", "!", "A" * 44, "@/nonexistent", "@kms.id", b64url(bytes(33))],
    )
    def test_one_that_is_none(self, read: Read, identity: str) -> None:
        with pytest.raises(ConfigurationError):
            read(f'server = "https://kms"\nidentity = "{identity}"')

    def test_nothing_pinned_must_be_said(self, read: Read) -> None:
        with pytest.raises(ConfigurationError, match="`identity` is missing"):
            read('server = "https://kms"')
        with pytest.raises(ConfigurationError, match="`identity` is missing"):
            read('server = "https://kms"\ntrust_any_kms_identity = false')
        assert read('server = "https://kms"\ntrust_any_kms_identity = true').identity is None

    def test_a_file_of_it_that_others_can_write_pins_nothing(self, read: Read, tmp_path: Path) -> None:
        pin = tmp_path / "kms.id"
        pin.write_text(b64url(PIN))
        pin.chmod(0o646)
        with pytest.raises(ConfigurationError, match="others can use it"):
            read(f'server = "https://kms"\nidentity = "@{pin}"')


class TestFile:
    """Whoever can write the file chooses the KMS, and so the disk's key."""

    @pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
    def test_others_may_not_write_it(self, tmp_path: Path, mode: int) -> None:
        path = tmp_path / "guest.toml"
        path.write_text(LEAST)
        path.chmod(mode)
        with pytest.raises(ConfigurationError, match="others can use it") as refused:
            read_config(path)
        assert "chmod go-w" in refused.value.remedy

    @pytest.mark.skipif(os.geteuid() != 0, reason="giving files away takes root")
    def test_others_may_not_own_it(self, tmp_path: Path) -> None:
        path = tmp_path / "guest.toml"
        path.write_text(LEAST)
        os.chown(path, 12345, 12345)
        with pytest.raises(ConfigurationError, match="another user"):
            read_config(path)

    def test_it_must_be_there_and_a_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="No such file"):
            read_config(tmp_path / "guest.toml")
        with pytest.raises(ConfigurationError, match="not a regular file"):
            read_config(tmp_path)

    def test_a_pipe_in_its_place_does_not_hang_the_boot(self, tmp_path: Path) -> None:
        path = tmp_path / "guest.toml"
        os.mkfifo(path)
        with pytest.raises(ConfigurationError, match="not a regular file"):
            read_config(path)

    def test_the_file_behind_a_link_counts(self, tmp_path: Path) -> None:
        path, real = tmp_path / "guest.toml", tmp_path / "real.toml"
        real.write_text(LEAST)
        real.chmod(0o644)
        path.symlink_to(real)
        assert read_config(path).identity == PIN
        real.chmod(0o666)
        with pytest.raises(ConfigurationError, match="others can use it"):
            read_config(path)


class TestCommandLine:
    ASKED = "command_line = true\n"
    MEASURED = f"ro quiet kms.server=https://kms.test:8443 kms.identity={b64url(PIN)}"

    def test_it_fills_what_the_file_leaves_out(self, read: Read) -> None:
        config = read(self.ASKED, command_line=self.MEASURED)
        assert (config.server, config.identity) == ("https://kms.test:8443", PIN)

    def test_it_is_not_read_unless_the_file_says_so(self, read: Read) -> None:
        """The host chooses an unmeasured command line."""
        for content in ("", "command_line = false"):
            with pytest.raises(ConfigurationError, match="`server` is missing"):
                read(content, command_line=self.MEASURED)

    def test_it_never_overrides_the_file(self, read: Read) -> None:
        config = read(
            LEAST + self.ASKED, command_line=f"kms.server=https://evil kms.identity={b64url(OTHER)}"
        )
        assert (config.server, config.identity) == ("https://kms:8443", PIN)

    def test_a_pin_in_it_is_not_ignored(self, read: Read) -> None:
        with pytest.raises(ConfigurationError, match="would ignore it"):
            read(self.ASKED + "trust_any_kms_identity = true", command_line=self.MEASURED)

    def test_a_command_line_without_a_pin(self, read: Read) -> None:
        with pytest.raises(ConfigurationError, match="`identity` is missing"):
            read(self.ASKED, command_line="kms.server=https://kms")

    @pytest.mark.parametrize(
        "more", [f" kms.identity={b64url(OTHER)}", ' "kms.server=x"', " -- kms.server=x"]
    )
    def test_a_word_twice_is_an_error(self, read: Read, more: str) -> None:
        with pytest.raises(ConfigurationError, match="twice"):
            read(self.ASKED, command_line=self.MEASURED + more)

    @pytest.mark.parametrize(
        ("command_line", "value"),
        [
            ("kms.server=x", "x"),
            ("  kms.server=x\t\n", "x"),
            ('kms.server="x y"', "x y"),
            ('"kms.server=x y" quiet', "x y"),
            ("kms.server=", ""),
            ("kms.server=a=b", "a=b"),
            ('other="a kms.server=y" kms.server=x', "x"),
            ("kms.server", None),
            ("xkms.server=x", None),
            ("kms_server=x", None),
            ("", None),
        ],
    )
    def test_words_are_those_of_the_kernel(self, command_line: str, value: str | None) -> None:
        assert parameters(command_line, {"kms.server"}).get("kms.server") == value

    def test_this_machine_has_one(self) -> None:
        assert proc_cmdline() == Path("/proc/cmdline").read_text()

    def test_a_machine_without_procfs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kernel_command_line, "_PROC_CMDLINE", tmp_path / "cmdline")
        with pytest.raises(ConfigurationError, match="No such file"):
            proc_cmdline()


def test_a_default_file_that_this_user_may_not_see_is_not_taken_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "guest.toml"
    monkeypatch.setattr(config, "DEFAULT_CONFIG", place)
    assert config.default_config() is None
    place.touch()
    assert config.default_config() == place
    monkeypatch.setattr(config, "DEFAULT_CONFIG", place / "below")
    assert config.default_config() is None
    place.unlink()
    place.symlink_to(place)
    monkeypatch.setattr(config, "DEFAULT_CONFIG", place)
    with pytest.raises(ConfigurationError, match=str(place)):
        config.default_config()
