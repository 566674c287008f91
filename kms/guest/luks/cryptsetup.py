"""The program ``cryptsetup``, given a header in memory and keys that are on no disk and no command line.

Keys go through a pipe (its standard input) or, the second of two, through a file in memory that it inherits.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from kms.guest.luks.errors import DiskFailed, DiskRefused
from kms.guest.luks.memory_file import MemoryFile, memory_file
from kms.guest.luks.metadata import CIPHER, KEY_SIZE, TOKEN_TYPE

_FOLDERS: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_OLDEST: Final = (2, 4, 3)  # --token-type came with 2.4.0; 2.4.3 has the mend of CVE-2021-4122
_VERSION: Final = re.compile(rb"cryptsetup (\d+)\.(\d+)\.(\d+)")
# cryptsetup(8), "RETURN CODES"
_NO_PERMISSION: Final = 2  # a bad passphrase
_EXISTS_OR_BUSY: Final = 5
_LONGEST_LINE: Final = 200
# The key is 256 random bits, so there is nothing to guess that a slow derivation would protect (the point of
# one, RFC 8018 section 4.2); 1000 is the least that cryptsetup takes. Argon2 would only cost the boot a
# second and a gibibyte.
_DERIVATION: Final = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--hash", "sha256")
# The first copy of the header has the first MiB to itself: it is written last, and as long as it is not
# there, a disk that is being formatted begins as a blank one does (`kms.guest.luks.formatting`).
_HEADER_SIZE: Final = 1 << 20
DATA_OFFSET: Final = 16 << 20  # cryptsetup's own default


class Cryptsetup:
    """Runs ``cryptsetup``, and ``dmsetup`` to see what came of it. `timeout` is for each run, in seconds.

    All methods raise `DiskFailed`: a program is missing, too old or too slow, or it failed.
    """

    def __init__(
        self, program: str = "cryptsetup", *, dmsetup: str = "dmsetup", timeout: float = 120.0
    ) -> None:
        self._program = program
        self._dmsetup = dmsetup
        self._timeout = timeout

    def check_version(self) -> None:
        """Check that it is there and not too old, before anything else is tried."""
        found = _VERSION.match(self._run("--version"))
        if found is None or tuple(map(int, found.groups())) < _OLDEST:
            wanted = ".".join(map(str, _OLDEST))
            raise DiskFailed(f"cryptsetup is older than {wanted}", reason="cryptsetup-too-old")

    def format(self, header: MemoryFile, device: Path, key: bytes) -> None:
        """Make a header for a volume on `device`, which is not written."""
        self._run(
            *("luksFormat", "--batch-mode", "--type", "luks2", "--cipher", CIPHER),
            *("--key-size", str(8 * KEY_SIZE), *_DERIVATION, "--key-file", "-"),
            *("--luks2-metadata-size", str(_HEADER_SIZE), "--offset", str(DATA_OFFSET // 512)),
            *("--header", header.path, str(device)),
            files=(header,),
            key=key,
        )

    def open(self, header: MemoryFile, device: Path, name: str, key: bytes) -> None:
        """Make the mapping `name`, by the header alone. Raises `DiskRefused` if the key does not open it.

        `DiskFailed` has the reason ``disk-busy`` where another one has the name or the device.
        """
        self._open(header, key, "--header", header.path, str(device), name)

    def test(self, header: MemoryFile, key: bytes, *, slot: int) -> None:
        """Try whether the key opens a key slot. Raises `DiskRefused` if not."""
        self._open(header, key, "--test-passphrase", "--key-slot", str(slot), header.path)

    def _open(self, header: MemoryFile, key: bytes, *arguments: str) -> None:
        # Without --token-type, cryptsetup asks the header's other tokens before it takes our key: one of type
        # luks2-keyring has it take a key from the kernel's keyring, under a name that the host chose.
        tokens = ("--disable-external-tokens", "--token-type", TOKEN_TYPE)
        self._run(
            *("open", "--type", "luks2", *tokens, "--key-file", "-", *arguments), files=(header,), key=key
        )

    def add_key(self, header: MemoryFile, key: bytes, new: bytes) -> None:
        """Put `new` into a free key slot of a header that `key` opens."""
        with memory_file(new) as file:
            self._run(
                *("luksAddKey", "--batch-mode", *_DERIVATION, "--key-file", "-", header.path, file.path),
                files=(header, file),
                key=key,
            )

    def kill_slot(self, header: MemoryFile, slot: int) -> None:
        """Remove a key slot; the last one too, so the caller makes sure that it is not."""
        self._run("luksKillSlot", "--batch-mode", header.path, str(slot), files=(header,))

    def add_token(self, header: MemoryFile, *, slot: int, epoch: int, key: str) -> None:
        """Write down the epoch of a key slot, and what its key is called (``disk@app``)."""
        token = {"type": TOKEN_TYPE, "keyslots": [str(slot)], "epoch": epoch, "key": key}
        text = json.dumps(token).encode("ascii")
        self._run("token", "import", "--json-file", "-", header.path, files=(header,), key=text)

    def remove_token(self, header: MemoryFile, number: int) -> None:
        """Remove a token."""
        self._run("token", "remove", "--token-id", str(number), header.path, files=(header,))

    def close(self, name: str) -> None:
        """Remove a mapping."""
        self._run("close", name)

    def tables(self) -> str:
        """Give the kernel's tables of all mappings, a line ``NAME: …`` for each target; without keys."""
        # Not `cryptsetup status`: it repeats what the header on the device says.
        return self._run("table", program=self._dmsetup).decode("ascii", "replace")

    def _run(
        self,
        *arguments: str,
        program: str | None = None,
        files: tuple[MemoryFile, ...] = (),
        key: bytes = b"",
    ) -> bytes:
        command = program or self._program
        path = f"{os.environ.get('PATH', '')}:{_FOLDERS}".removeprefix(":")
        found = shutil.which(command, path=path)
        if found is None:
            raise DiskFailed(f"there is no program {command}: install it", reason="cryptsetup-missing")
        try:
            done = subprocess.run(  # noqa: S603  # no shell; no stranger chooses a word of it
                [found, *arguments],
                input=key,
                capture_output=True,
                pass_fds=[file.descriptor for file in files],
                env=_environment(path),
                timeout=self._timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise DiskFailed(
                f"{command} {arguments[0]} took longer than {self._timeout:g} s", reason="cryptsetup-timeout"
            ) from None
        except OSError as error:
            raise DiskFailed(f"{found}: {error.strerror}", reason="cryptsetup-missing") from error
        if done.returncode == 0:
            return done.stdout
        said = _first_line(done.stderr)
        if arguments[0] == "open" and done.returncode == _NO_PERMISSION:
            raise DiskRefused("the key opens no key slot of this disk", reason="key-does-not-open")
        failed = f"{command} {arguments[0]} failed with status {done.returncode}: {said}"
        if arguments[0] == "open" and done.returncode == _EXISTS_OR_BUSY:
            raise DiskFailed(failed, reason="disk-busy")
        raise DiskFailed(failed, reason="cryptsetup-failed")


def _environment(path: str) -> Mapping[str, str]:
    return {"PATH": path, "LC_ALL": "C"}


def _first_line(text: bytes) -> str:
    """Give the program's own words, short and plain: they will be printed."""
    line = next(iter(text.decode("ascii", "replace").strip().splitlines()), "it said nothing")
    return "".join(each if each.isprintable() else "?" for each in line)[:_LONGEST_LINE]
