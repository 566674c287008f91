"""``kms collateral mirror``: serve what is stored to other verifiers, as AMD's service would."""

import argparse
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kms.cli.collateral_store import add_config, with_stores
from kms.cli.output import OK, WrongUse, print_json
from kms.cli.parsers import Group
from kms.cli.reading import read_settings
from kms.errors import ConfigurationError

if TYPE_CHECKING:
    from kms.settings import Address
    from kms.wiring import Stores

_DEFAULT = "127.0.0.1:8080"


def add(group: Group) -> None:
    """Add ``kms collateral mirror``."""
    command = group.add(
        "mirror",
        summary="serve what is stored over the paths of AMD's key distribution service",
        description="Serve what is stored over the paths of AMD's key distribution service, until SIGTERM or"
        " SIGINT, so that other verifiers can use it. It only reads, and asks nobody. Plain HTTP unless there"
        " is a certificate: what it serves is public and signed by AMD.",
        example="kms collateral mirror --listen 127.0.0.1:8080",
    )
    add_ = command.add_argument
    add_(
        "--listen",
        metavar="HOST:PORT",
        default=_DEFAULT,
        help=f"an IP address and a port (default {_DEFAULT})",
    )
    add_("--tls-cert", metavar="FILE", type=Path, help="with --tls-key: serve HTTPS with this PEM chain")
    add_("--tls-key", metavar="FILE", type=Path, help="its PEM key, not encrypted")
    add_config(command)
    command.set_defaults(run=_mirror)


def _mirror(arguments: argparse.Namespace) -> int:
    from kms.cli.mirror_server import serve_mirror
    from kms.kds.mirror import create_mirror

    if (arguments.tls_cert is None) != (arguments.tls_key is None):
        raise WrongUse("--tls-cert and --tls-key go together")
    tls = None
    if arguments.tls_cert is not None:
        from kms.http.tls import server_context

        tls = server_context(arguments.tls_cert, arguments.tls_key, "1.2")
    settings = read_settings(arguments.config)
    with _bound(_address(arguments.listen)) as listener:

        async def work(stores: "Stores") -> None:
            url = _url(listener, secure=tls is not None)
            await serve_mirror(
                create_mirror(stores.collateral),
                listener,
                tls,
                serving=lambda: _tell(url, as_json=arguments.json),
            )

        with_stores(settings, work)
    return OK


def _address(text: str) -> "Address":
    from pydantic import TypeAdapter, ValidationError

    from kms.settings import ListenAddress

    try:
        address: Address = TypeAdapter(ListenAddress).validate_python(text)
    except ValidationError as error:
        raise WrongUse(f"--listen: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    return address


def _bound(address: "Address") -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"cannot listen on {address}: {error.strerror}",
            remedy="stop what uses it, or give another --listen",
        ) from error
    return listener


def _url(listener: socket.socket, *, secure: bool) -> str:
    host, port = listener.getsockname()[:2]
    return f"http{'s' if secure else ''}://{f'[{host}]' if ':' in host else host}:{port}"


def _tell(url: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"url": url})
    else:
        print(f"serving what is stored, and nothing else, on {url}")
    sys.stdout.flush()  # who waits for it waits now
