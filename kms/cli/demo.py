"""``kms demo``: the whole story on this machine, with a real server and a SIMULATED chip."""

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from kms.cli.parsers import Parser
from kms.errors import ConfigurationError


def main(argv: list[str]) -> int:
    """Run the demo. Exit status 1: a key did not arrive, or something was not refused as it must be."""
    arguments = parser().parse_args(argv)
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with _folder(arguments.keep) as folder:
            if arguments.kds_down:
                from kms.cli.demo_outage import tell_outage as tell
            else:
                from kms.cli.demo_story import tell
            return tell(folder, as_json=arguments.json, kept=arguments.keep is not None)
    finally:
        signal.signal(signal.SIGTERM, previous)


def parser() -> Parser:
    """Give the command's parser."""
    command = Parser(
        prog="kms demo",
        description="Start a server, launch a simulated SEV-SNP guest, release its keys to it, and attack."
        " Nothing is left behind.",
        epilog="example: kms demo --keep /tmp/kms-demo",
    )
    command.add_argument(
        "--kds-down",
        action="store_true",
        help="another story: AMD's key distribution service (simulated) goes away and comes back",
    )
    command.add_argument("--json", action="store_true", help="one JSON document on standard output")
    command.add_argument("--keep", metavar="DIR", type=Path, help="work in this new folder, and leave it")
    return command


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    # As Ctrl-C: the server is stopped and the folder removed on the way out.
    raise KeyboardInterrupt


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        # 0700: even a demo's root key is nobody else's to read.
        with tempfile.TemporaryDirectory(prefix="kms-demo-") as name:
            yield Path(name)
        return
    try:
        keep.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise ConfigurationError(f"{keep}: {error.strerror}", remedy="--keep takes a new folder") from error
    yield keep.resolve()
