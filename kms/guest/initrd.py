"""What the guest side needs of this machine to run in an initrd: which files, and a copy of them.

The list is asked of the interpreter, not written down: `kms.guest.initrd_modules`, in a process of its own,
imports everything that the guest's commands can import, and says what it read.

An initrd is measured, so the same machine must give the same bytes: copies have no times of their own, and
compiled modules are bound to nothing (PEP 552, unchecked), which also starts faster than compiling them at
every boot.
"""

import importlib.util
import os
import py_compile
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kms.errors import ConfigurationError

CONFIG_FOLDER: Final = Path("/etc/attested-kms")
_NO_TIME: Final = 1  # seconds since 1970
_LDD: Final = ("env", "-u", "LD_PRELOAD", "-u", "LD_LIBRARY_PATH", "LC_ALL=C", "ldd")


@dataclass(frozen=True, slots=True)
class Copied:
    """How much was put into a tree: files, and their bytes before compression."""

    files: int
    size: int


def kms_command() -> Path:
    """Give the `kms` command of this installation; Python beside it is the one that runs it."""
    return Path(sysconfig.get_path("scripts")) / "kms"


def guest_files(config_folder: Path = CONFIG_FOLDER) -> tuple[Path, ...]:
    """List what the guest side reads: interpreter, modules, shared libraries, and the image's configuration.

    Symbolic links are listed as they are used; `copy_files` follows them. Sorted.

    Raises:
        ConfigurationError: this installation cannot be listed.

    """
    modules = {
        Path(line) for line in _run([sys.executable, "-P", "-m", "kms.guest.initrd_modules"]).splitlines()
    }
    executable = Path(sys.executable)
    binaries = sorted(
        str(path) for path in modules | {executable} if path == executable or path.suffix == ".so"
    )
    libraries = {
        Path(word)
        for line in _run([*_LDD, *binaries]).splitlines()
        if line.startswith("\t")
        for word in line.split()
        if word.startswith("/")
    }
    configuration = {path for path in config_folder.rglob("*") if path.is_file()}
    return tuple(
        sorted(modules | libraries | configuration | {executable, kms_command(), *_settings_of_python()})
    )


def copy_files(files: Iterable[Path], tree: Path) -> Copied:
    """Copy files to the same places below `tree`, with the links on the way to them, and compile modules.

    What is there already is left as it is.

    Raises:
        OSError: a file is gone, or the tree cannot be written to.

    """
    copied = size = 0
    for file in files:
        real = _link(file, tree)
        target = _below(tree, real)
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(real, target)
        shutil.copymode(real, target)
        for each in (target, *_compile(real, target)):
            os.utime(each, (_NO_TIME, _NO_TIME))
            copied += 1
            size += each.stat().st_size
    return Copied(copied, size)


def _settings_of_python() -> Iterator[Path]:
    """Give the files that tell Python where its modules are."""
    yield Path(sysconfig.get_path("stdlib")) / "os.py"  # the landmark that it looks for
    marker = Path(sys.prefix) / "pyvenv.cfg"
    if marker.is_file():
        yield marker
    package = Path(__file__).parents[2]
    for folder in map(Path, site.getsitepackages()):
        # An installation for development lies elsewhere, and a .pth file names the place.
        for pth in folder.glob("*.pth"):
            if str(package) in pth.read_text("utf-8", "replace").splitlines():
                yield pth


def _link(file: Path, tree: Path) -> Path:
    """Make the symbolic links on the way to a file in the tree too, and give where the file really is."""
    for part in (*reversed(file.parents), file):
        if part.is_symlink():
            goal = part.readlink()
            link = _below(tree, part)
            if not os.path.lexists(link):
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(goal)
            # Not `resolve`: links on the way are of the initrd too.
            return _link(Path(os.path.normpath(part.parent / goal / file.relative_to(part))), tree)
    return file


def _below(tree: Path, path: Path) -> Path:
    return tree / path.relative_to(path.anchor)


def _compile(source: Path, copy: Path) -> tuple[Path, ...]:
    """Compile a copied module beside it, as `source`: the place of the copy must leave no trace."""
    if source.suffix != ".py":
        return ()
    compiled = Path(importlib.util.cache_from_source(str(copy)))
    try:
        py_compile.compile(
            str(source),
            cfile=str(compiled),
            doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
    except py_compile.PyCompileError:  # a library may carry what is for another Python
        return ()
    return (compiled,)


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        raise ConfigurationError(
            f"what the guest side needs cannot be listed: {said.strip()[-500:]}",
            remedy="install this version again; listing takes `ldd`, of libc's package",
        ) from error
    return done.stdout
