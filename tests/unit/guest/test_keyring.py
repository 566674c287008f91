"""The kernel's keyrings, the real ones; `keyctl` and `cryptsetup` find what was put there."""

import ctypes
import errno
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kms.errors import ConfigurationError
from kms.guest import keyring
from kms.guest.keyring import Keyring, add_key, check_keyring

SECRET = bytes(range(32))


def _without_keyrings() -> str:
    try:
        check_keyring("attested-kms-test")
    except ConfigurationError as error:
        return error.detail
    return ""


needs_kernel = pytest.mark.skipif(bool(_without_keyrings()), reason=_without_keyrings())
needs_keyctl = pytest.mark.skipif(shutil.which("keyctl") is None, reason="keyctl is not installed")


def needs(program: str) -> pytest.MarkDecorator:
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    return pytest.mark.skipif(found is None, reason=f"{program} is not installed")


def keyctl(*arguments: str, prefix: tuple[str, ...] = ()) -> bytes:
    return subprocess.run([*prefix, "keyctl", *arguments], check=True, capture_output=True).stdout


@pytest.fixture
def description() -> Iterator[str]:
    """A description that nobody else uses; no key of it stays."""
    name = f"attested-kms-test-{secrets.token_hex(8)}"
    yield name
    for place in ("@u", "@us", "@s"):
        found = subprocess.run(
            ["keyctl", "search", place, "user", name], check=False, capture_output=True
        ).stdout.strip()
        if found:
            keyctl("unlink", found.decode(), place)


@needs_kernel
@needs_keyctl
class TestKernel:
    def test_keyctl_finds_and_prints_it(self, description: str) -> None:
        serial = add_key(description, SECRET)
        assert keyctl("search", "@u", "user", description).split() == [str(serial).encode()]
        assert keyctl("pipe", str(serial)) == SECRET

    def test_only_its_possessor_may_read_it(self, description: str) -> None:
        serial = add_key(description, SECRET)
        permissions = keyctl("rdescribe", str(serial)).split(b";")[3]
        # possessor: all; this user: seeing that it is there; group and others: nothing (keyctl_setperm(3))
        assert permissions == b"3f010000"

    def test_a_new_key_replaces_the_old_one(self, description: str) -> None:
        first = add_key(description, SECRET, timeout=60)
        assert add_key(description, b"new") == first
        assert keyctl("pipe", str(first)) == b"new"
        assert " perm " in _entry(description), "the old key's timeout would end the new one"

    def test_the_kernel_forgets_it_in_time(self, description: str) -> None:
        add_key(description, SECRET, timeout=3600)
        assert (
            " 59m " in _entry(description) or " 60m " in _entry(description) or " 1h " in _entry(description)
        )

    def test_in_the_session_that_runs_this(self, description: str) -> None:
        serial = add_key(description, SECRET, keyring=Keyring.SESSION)
        assert keyctl("search", "@s", "user", description).split() == [str(serial).encode()]

    def test_a_session_of_its_own_that_does_not_lead_to_the_users_keyring(self, description: str) -> None:
        """As in a service of systemd with `KeyringMode=private`: also replacing, and a timeout, must work."""
        code = (
            "from kms.guest.keyring import add_key\n"
            f"for value in b'old', b'new': print(add_key({description!r}, value, timeout=60))"
        )
        ran = subprocess.run(
            ["keyctl", "session", "-", sys.executable, "-c", code], check=True, capture_output=True
        )
        first, second = ran.stdout.split()
        assert first == second
        assert keyctl("pipe", first.decode()) == b"new"

    def test_a_key_that_the_kernel_does_not_take(self, description: str) -> None:
        for secret in (b"", bytes(32768)):
            with pytest.raises(ConfigurationError, match="at most 32767 bytes"):
                add_key(description, secret)
        assert add_key(description, bytes(32767))

    @needs("cryptsetup")
    def test_a_luks2_volume_is_opened_by_its_keyring_token(
        self, description: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What a guide promises: `cryptsetup open` asks nobody, and without the key it does not open."""
        monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin:/sbin")
        volume = tmp_path / "volume"
        with volume.open("wb") as file:
            file.truncate(32 << 20)

        def cryptsetup(*arguments: str, key: bytes = b"") -> int:
            ran = subprocess.run(["cryptsetup", *arguments], check=False, input=key, capture_output=True)
            return ran.returncode

        # Bytes of any value, NUL and newline too.
        cheap = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
        formatted = ("luksFormat", "--batch-mode", "--type", "luks2", *cheap, "--key-file", "-", str(volume))
        assert cryptsetup(*formatted, key=SECRET) == 0
        assert cryptsetup("token", "add", "--key-description", description, str(volume)) == 0
        opens = ("open", "--test-passphrase", "--token-only", str(volume))
        assert cryptsetup(*opens) != 0
        add_key(description, bytes(32))
        assert cryptsetup(*opens) != 0
        add_key(description, SECRET)
        assert cryptsetup(*opens) == 0


@pytest.mark.parametrize("description", ["", "a\nb", "é", "a\0", "x" * 256])
def test_a_description_that_is_none(description: str) -> None:
    with pytest.raises(ConfigurationError, match="description"):
        check_keyring(description)


@pytest.mark.parametrize("timeout", [0, -1, 1 << 31])
def test_a_timeout_that_is_none(timeout: int) -> None:
    """0 would mean "never" to the kernel."""
    with pytest.raises(ConfigurationError, match="timeout"):
        check_keyring("attested-kms:disk", timeout=timeout)


Fail = Callable[..., None]


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Let a system call of the keyring fail as the kernel would."""

    class Failing:
        def __init__(self, number: int) -> None:
            self._number = number

        def syscall(self, *_: object) -> int:
            ctypes.set_errno(self._number)
            return -1

    return lambda number: monkeypatch.setattr(keyring, "_LIBC", Failing(number))


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSYS, "CONFIG_KEYS"),
        (errno.EPERM, "seccomp"),
        (errno.EACCES, "may not write"),
        (errno.EDQUOT, "quota"),
        (errno.ENOKEY, "no such keyring"),
        (errno.EKEYREVOKED, "revoked"),
        (errno.EINVAL, "add_key"),
    ],
)
def test_the_kernels_errors_are_explained(fail: Fail, number: int, said: str) -> None:
    fail(number)
    with pytest.raises(ConfigurationError) as refused:
        add_key("attested-kms:disk", SECRET)
    assert os.strerror(number) in refused.value.detail
    assert said in refused.value.remedy


def test_another_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(ConfigurationError, match="riscv64"):
        check_keyring("attested-kms:disk")


def _entry(description: str) -> str:
    [line] = [line for line in Path("/proc/keys").read_text().splitlines() if description in line]
    return line
