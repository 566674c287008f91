"""The guest's operating system: a Debian root by mmdebstrap, with the guest side and what it imports in it.

It is only where the initrd is made; the machine starts from the initrd and has no other root.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

from kms.errors import ConfigurationError

SUITE: Final = "trixie"
_PYTHON: Final = "3.13"  # Debian's there
_PACKAGES: Final = (
    *("linux-image-amd64", "initramfs-tools", "dracut-core", "dracut-network", "busybox", "klibc-utils"),
    *("kmod", "zstd", "systemd", "systemd-cryptsetup", "udev", "cryptsetup-bin", "e2fsprogs", "iproute2"),
    *("python3", "python3-venv"),
)
_PLATFORMS: Final = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_24", "manylinux_2_17", "manylinux2014")
GUEST_SIDE: Final = "opt/attested-kms"
_AUTHORITIES: Final = Path("/etc/ssl/certs/ca-certificates.crt")
_PROJECT: Final = Path(__file__).parents[1]


def debian_root(cache: Path) -> Path:
    """Give a Debian with the locked packages that the guest side imports, made on first use.

    Raises:
        ConfigurationError: a tool failed; what it said is there.

    """
    requirements = run([_tool("uv"), "export", "--locked", "--no-dev", "--no-emit-project", "--quiet"])
    words = "\n".join((SUITE, *_PACKAGES, requirements))
    root = cache / f"debian-{sha256(words.encode()).hexdigest()[:16]}"
    if root.exists():
        return root
    draft = root.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    run(["mmdebstrap", "--variant=apt", f"--include={','.join(_PACKAGES)}", SUITE, str(draft)])
    wheels = draft / "wheels"
    wheels.mkdir()
    (wheels / "requirements.txt").write_text(requirements, "utf-8")
    run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--only-binary=:all:", "--no-deps", "--require-hashes", "--python-version", _PYTHON),
            *(word for name in _PLATFORMS for word in ("--platform", f"{name}_x86_64")),
            *("--dest", str(wheels), "--requirement", str(wheels / "requirements.txt")),
        ]
    )
    run_in(draft, ["python3", "-m", "venv", f"/{GUEST_SIDE}"])
    _install(draft, ["--requirement", "/wheels/requirements.txt"])
    shutil.rmtree(wheels)
    draft.rename(root)
    return root


def copy_root(root: Path, copy: Path) -> None:
    """Copy a root, and install this project's guest side into the copy. Raises as `debian_root`."""
    run(["cp", "-a", "--reflink=auto", str(root), str(copy)])
    wheels = copy / "wheels"
    run([_tool("uv"), "build", *_trust(), "--wheel", "--quiet", "--out-dir", str(wheels), str(_PROJECT)])
    (wheel,) = wheels.glob("*.whl")
    _install(copy, ["--no-deps", f"/wheels/{wheel.name}"])
    shutil.rmtree(wheels)


def _install(root: Path, what: Sequence[str]) -> None:
    pip = [f"/{GUEST_SIDE}/bin/pip", "install", "--quiet", "--disable-pip-version-check"]
    run_in(root, [*pip, "--no-index", "--find-links", "/wheels", *what])


def run_in(root: Path, command: Sequence[str]) -> str:
    """Run a command in a root, and give what it printed. Raises as `run`."""
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    return run(["chroot", str(root), *command], environment={"PATH": path, "LC_ALL": "C.UTF-8"})


def run(command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> str:
    """Run a command, and give what it printed.

    Raises:
        ConfigurationError: it failed; what it said is there.

    """
    done = subprocess.run(  # noqa: S603 -- our own words
        command,
        cwd=_PROJECT,
        env=os.environ if environment is None else environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stdout + done.stderr)[-4000:]
        raise ConfigurationError(f"{' '.join(command)}: status {done.returncode}", remedy=said)
    return done.stdout


def _trust() -> tuple[str, ...]:
    """Give uv the system's certificate authorities, as the Makefile does: a proxy may have one of its own."""
    return ("--system-certs",) if _AUTHORITIES.exists() else ()


def _tool(name: str) -> str:
    """Give a program that `make` installed beside this Python, or the one of that name in PATH."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else name
