"""``python -m vm``: `make vm-demo`."""

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from kms.cli.demo_show import Show
from kms.cli.output import WRONG_USE
from kms.errors import ConfigurationError, KmsError
from vm.host import cache_folder, prepare_host
from vm.story import tell


def main() -> int:
    """Run the demo. Exit status 0: everything ended as it must; 1: something did not; 2: it cannot run."""
    parser = argparse.ArgumentParser(
        prog="python -m vm",
        description="Boot a whole virtual machine under software emulation: it proves itself with a SIMULATED"
        " processor, fetches its key and opens its disk; a changed one is refused. Takes root.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="work in this new folder, and leave it")
    parser.add_argument(
        "--cache", metavar="DIR", type=Path, help="default: attested-kms/vm in the user's cache"
    )
    parser.add_argument(
        "--firmware", metavar="FILE", type=Path, help="another OVMF with SEV metadata and kernel hashes"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        prepare_host(Show(programs=arguments.json))
        cache: Path = arguments.cache or cache_folder()
        cache.mkdir(parents=True, exist_ok=True)
        with _folder(arguments.keep, cache) as folder:
            return tell(
                folder,
                cache.resolve(),
                arguments.firmware and arguments.firmware.resolve(),
                as_json=arguments.json,
                kept=arguments.keep is not None,
            )
    except KmsError as error:
        print(f"vm-demo: {error}", file=sys.stderr)
        if remedy := getattr(error, "remedy", None):
            print(remedy, file=sys.stderr)
        return WRONG_USE


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def _folder(keep: Path | None, cache: Path) -> Iterator[Path]:
    if keep is None:
        # Beside the cache: a copied root file system may be too much for /tmp. 0700, as there are keys in it.
        with tempfile.TemporaryDirectory(prefix="run-", dir=cache) as name:
            yield Path(name).resolve()
        return
    try:
        keep.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise ConfigurationError(f"{keep}: {error.strerror}", remedy="--keep takes a new folder") from error
    yield keep.resolve()


if __name__ == "__main__":
    sys.exit(main())
