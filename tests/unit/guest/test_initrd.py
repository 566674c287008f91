"""What goes into an initrd for the guest side: lists, copies, and the hooks of the tools."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kms.cli import run
from kms.errors import ConfigurationError
from kms.guest import initrd
from kms.guest.initrd_hooks import Tool, install_hooks, installed_tools

HOOKS = Path(initrd.__file__).parent / "hooks"


@pytest.fixture(scope="module")
def files() -> tuple[Path, ...]:
    return initrd.guest_files()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    folder.mkdir()
    return folder


class TestFiles:
    def test_the_interpreter_its_libraries_and_what_commands_import_when_they_run(
        self, files: tuple[Path, ...]
    ) -> None:
        names = {path.name for path in files}
        assert Path(sys.executable) in files
        assert {"libc.so.6", "os.py", "kms"} <= names
        for module in ("__main__.py", "cli/guest.py", "guest/tsm.py", "guest/client.py", "hardening.py"):
            assert any(str(path).endswith(f"kms/{module}") for path in files), module
        assert any(path.match("encodings/idna.py") for path in files)

    def test_nothing_of_the_server(self, files: tuple[Path, ...]) -> None:
        for absent in ("sqlalchemy", "fastapi", "uvicorn", "pydantic", "rich", "pygments", "greenlet"):
            assert not [path for path in files if f"/site-packages/{absent}/" in str(path)], absent
        assert not [path for path in files if "/kms/http/" in str(path) or "/kms/simulator/" in str(path)]

    def test_every_file_is_there_once_and_in_order(self, files: tuple[Path, ...]) -> None:
        assert all(path.is_absolute() and path.is_file() for path in files)
        assert [*files] == sorted({*files})

    def test_the_configuration_of_the_image(self, tmp_path: Path) -> None:
        (tmp_path / "inner").mkdir()
        (tmp_path / "guest.toml").touch()
        (tmp_path / "inner" / "ca.pem").touch()
        assert {tmp_path / "guest.toml", tmp_path / "inner" / "ca.pem"} <= {*initrd.guest_files(tmp_path)}

    def test_an_installation_that_cannot_be_listed_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "executable", "/nonexistent/python")
        with pytest.raises(ConfigurationError, match="cannot be listed"):
            initrd.guest_files()


class TestCopying:
    def test_links_on_the_way_are_made_again(self, tmp_path: Path, tree: Path) -> None:
        real = tmp_path / "real"
        real.mkdir()
        (real / "lib.so.1.2").write_bytes(b"library")
        (real / "lib.so.1").symlink_to("lib.so.1.2")
        (tmp_path / "usual").symlink_to("real")
        copied = initrd.copy_files([tmp_path / "usual" / "lib.so.1"], tree)
        below = tree / tmp_path.relative_to("/")
        assert (below / "usual").readlink() == Path("real")
        assert (below / "real" / "lib.so.1").readlink() == Path("lib.so.1.2")
        assert (below / "usual" / "lib.so.1").read_bytes() == b"library"
        assert (copied.files, copied.size) == (1, len(b"library"))

    def test_what_is_there_already_is_kept(self, tmp_path: Path, tree: Path) -> None:
        file = tmp_path / "file"
        file.write_text("ours")
        there = tree / file.relative_to("/")
        there.parent.mkdir(parents=True)
        there.write_text("theirs")
        assert initrd.copy_files([file], tree).files == 0
        assert there.read_text() == "theirs"

    def test_modes_are_kept_and_times_are_not(self, tmp_path: Path, tree: Path) -> None:
        file = tmp_path / "ca.pem"
        file.touch(mode=0o600)
        initrd.copy_files([file], tree)
        status = (tree / file.relative_to("/")).stat()
        assert (status.st_mode & 0o777, status.st_mtime) == (0o600, 1)

    def test_modules_are_compiled_and_python_uses_that_whatever_the_times(
        self, tmp_path: Path, tree: Path
    ) -> None:
        source = tmp_path / "module.py"
        source.write_text("print('as it was copied', __file__)\n")
        initrd.copy_files([source], tree)
        there = tree / source.relative_to("/")
        there.write_text("print('changed')\n")
        command = [sys.executable, "-c", "import module"]
        done = subprocess.run(command, cwd=there.parent, capture_output=True, text=True, check=True)
        assert "as it was copied" in done.stdout

    def test_the_same_installation_gives_the_same_bytes(self, files: tuple[Path, ...], tree: Path) -> None:
        ours = [path for path in files if "/kms/" in str(path)]
        contents = []
        for seed in ("1", "2"):
            below = tree / seed
            below.mkdir()
            program = (
                "import sys, pathlib; from kms.guest.initrd import copy_files;"
                "copy_files(map(pathlib.Path, sys.argv[2:]), pathlib.Path(sys.argv[1]))"
            )
            command = [sys.executable, "-c", program, str(below), *map(str, ours)]
            subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
            contents.append({str(path.relative_to(below)): state(path) for path in below.rglob("*.py*")})
        assert contents[0] == contents[1]
        assert len(contents[0]) == 2 * len(ours)

    def test_a_module_for_another_python_is_copied_as_it_is(self, tmp_path: Path, tree: Path) -> None:
        source = tmp_path / "older.py"
        source.write_text("print 'as it was'")
        assert initrd.copy_files([source], tree).files == 1


def state(path: Path) -> tuple[bytes, int, float]:
    status = path.stat()
    return path.read_bytes(), status.st_mode, status.st_mtime


class TestHooks:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        (tmp_path / "usr" / "bin").mkdir(parents=True)
        (tmp_path / "usr" / "sbin").mkdir()
        return tmp_path

    @pytest.mark.parametrize("tool", Tool)
    def test_they_name_the_command_and_only_programs_may_be_run(self, root: Path, tool: Tool) -> None:
        written = install_hooks(tool, root, Path("/srv/kms/bin/kms"))
        texts = [path.read_text() for path in written]
        assert not any("@KMS@" in text for text in texts)
        assert any(re.search(r"(^|[='])/srv/kms/bin/kms['\s]", text) for text in texts)
        assert not any("/opt/" in text for text in texts)
        for path in written:
            assert os.access(path, os.X_OK) == path.read_text().startswith("#!")

    @pytest.mark.parametrize("tool", Tool)
    def test_again_is_the_same(self, root: Path, tool: Tool) -> None:
        first = {path: path.read_bytes() for path in install_hooks(tool, root, Path("/usr/bin/kms"))}
        assert first == {path: path.read_bytes() for path in install_hooks(tool, root, Path("/usr/bin/kms"))}

    @pytest.mark.parametrize("command", ["/opt/it's/kms", "/opt/our kms/kms", "kms", "/opt/%i/kms"])
    def test_a_command_that_a_shell_or_systemd_would_misread_is_refused(
        self, root: Path, command: str
    ) -> None:
        with pytest.raises(ConfigurationError, match="cannot name"):
            install_hooks(Tool.DRACUT, root, Path(command))

    def test_they_are_no_programs_where_they_wait(self) -> None:
        waiting = [path for path in HOOKS.rglob("*") if path.is_file()]
        assert waiting
        assert not [path for path in waiting if path.stat().st_mode & 0o111]

    @pytest.mark.parametrize("name", ["initramfs-tools/hook", "initramfs-tools/local-top"])
    def test_shells_can_read_them(self, name: str) -> None:
        subprocess.run(["sh", "-n", str(HOOKS / name)], check=True)

    def test_the_devices_that_are_waited_for_are_those_of_volumes(self, tmp_path: Path) -> None:
        config = tmp_path / "guest.toml"
        config.write_text(
            'server = "https://kms"\n[evidence]\ndevice = "/dev/sev-guest"\n'
            '[volumes.data]\ndevice = "/dev/disk/by-id/virtio-data" # ours\nkey = "disk"\n'
            '[ volumes."b" ]\ndevice = "/dev/vdc"\n[volumes.c]\n\tdevice="/dev/vdd"'
        )
        script = (HOOKS / "initramfs-tools" / "local-top").read_text()
        function = script[script.index("devices() {") : script.index('[ -r "$CONFIG"')]
        program = f"CONFIG='{config}'\n{function}\ndevices"
        done = subprocess.run(["sh", "-c", program], capture_output=True, text=True, check=True)
        # What is written otherwise is not waited for; it is opened all the same.
        assert done.stdout.split() == ["/dev/disk/by-id/virtio-data", "/dev/vdd"]

    def test_bash_can_read_the_module(self) -> None:
        subprocess.run(["bash", "-n", str(HOOKS / "dracut" / "module-setup.sh")], check=True)

    def test_the_tools_that_are_there(self, root: Path) -> None:
        assert installed_tools(root) == ()
        (root / "usr" / "bin" / "dracut").touch()
        assert installed_tools(root) == (Tool.DRACUT,)
        (root / "usr" / "sbin" / "mkinitramfs").symlink_to("/absent/here")
        assert installed_tools(root) == (Tool.INITRAMFS_TOOLS, Tool.DRACUT)


class TestCommand:
    def test_without_a_tool_nothing_is_installed(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["guest", "hooks", "install", "--root", str(tmp_path)]) == 2
        assert "neither initramfs-tools nor dracut" in capsys.readouterr().err

    def test_install_names_what_it_wrote(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["guest", "hooks", "install", "--initramfs-tools", "--root", str(tmp_path)]) == 0
        written = capsys.readouterr().out.split()
        assert written == [
            f"{tmp_path}/etc/initramfs-tools/hooks/attested-kms",
            f"{tmp_path}/etc/initramfs-tools/scripts/local-top/attested-kms",
        ]
        assert all(Path(path).is_file() for path in written)

    def test_a_root_that_cannot_be_written_to(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "etc").touch()
        assert run(["guest", "hooks", "install", "--initramfs-tools", "--root", str(tmp_path)]) == 2
        assert "takes root" in capsys.readouterr().err

    def test_files_and_their_sum(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "a").write_bytes(b"123")
        (tmp_path / "b").write_bytes(b"12345")
        monkeypatch.setattr(initrd, "guest_files", lambda: (tmp_path / "a", tmp_path / "b"))
        assert run(["guest", "hooks", "files"]) == 0
        assert capsys.readouterr().out.split() == [f"{tmp_path}/a", f"{tmp_path}/b"]
        assert run(["guest", "hooks", "files", "--sizes"]) == 0
        assert capsys.readouterr().out.split() == [
            "3",
            f"{tmp_path}/a",
            "5",
            f"{tmp_path}/b",
            "8",
            "in",
            "all",
        ]

    def test_copy_takes_a_folder(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["guest", "hooks", "copy", str(tmp_path / "none")]) == 2
        assert "is not a folder" in capsys.readouterr().err
