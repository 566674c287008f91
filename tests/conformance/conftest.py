"""A real server for each test process, and the world around it. Nothing here imports the server's code."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conformance.own_client import Client
from tests.conformance.own_fleet import Fleet, build_fleet
from tests.conformance.own_kds import Shelf, serving
from tests.conformance.own_policy import Document, documents, write_policy
from tests.conformance.own_server import Server, running

HERE = Path(__file__).parent
REVOKED_SERIAL = 0x29999  # of an ASK for Genoa that its ARK revoked

Settings = dict[str, str]


ALONE = {"test_kill.py", "test_start.py"}  # they start servers of their own


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep what shares a server in one process; and these tests, unlike unit tests, use sockets."""
    for item in items:
        if item.path.is_relative_to(HERE):
            group = "conformance-processes" if item.path.name in ALONE else "conformance"
            item.add_marker(pytest.mark.xdist_group(group))
            item.add_marker(pytest.mark.enable_socket)


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    # xdist gives each worker a folder of its own below the run's: the slow RSA keys are shared.
    own = tmp_path_factory.getbasetemp()
    run = own.parent if own.name.startswith("popen-") else own
    return build_fleet(run / "conformance-keys", tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def shelf(fleet: Fleet) -> Shelf:
    """What the key distribution service of these tests knows."""
    authorities = {authority.product.name: authority for authority in (fleet.milan, fleet.genoa, fleet.turin)}
    return Shelf(
        authorities=authorities,
        chips={name: fleet.chips[name] for name in ("first", "fetched", "stale", "stolen", "turin")},
        broken={"stranded": fleet.chips["stranded"]},
        crls={"Genoa": fleet.genoa.crl([REVOKED_SERIAL])},
    )


@pytest.fixture(scope="session")
def policy(fleet: Fleet) -> list[Document]:
    return documents(fleet)


@pytest.fixture(scope="session")
def settings(
    fleet: Fleet, shelf: Shelf, policy: list[Document], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    """The settings that all servers of these tests share."""
    folder = tmp_path_factory.mktemp("settings")
    roots, policies = folder / "roots.pem", folder / "policies"
    roots.write_text(fleet.roots, encoding="ascii")
    write_policy(policies, policy)
    with serving(shelf) as kds:
        yield {
            "KMS_DEVELOPMENT_ROOTS": str(roots),
            "KMS_POLICY_DIR": str(policies),
            "KMS_KDS_URLS": kds,
        }


StartServer = Callable[..., tuple[Server, Client]]


@pytest.fixture(scope="session")
def start_server(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Start one more server, with some settings of its own; it ends with the session."""
    with ExitStack() as stack:

        def start(name: str, **own: str) -> tuple[Server, Client]:
            data_dir = tmp_path_factory.mktemp(name) / "data"
            return stack.enter_context(running(data_dir, {**settings, **own}))

        yield start


@pytest.fixture(scope="session")
def server_and_client(start_server: StartServer) -> tuple[Server, Client]:
    return start_server("server")


@pytest.fixture(scope="session")
def server(server_and_client: tuple[Server, Client]) -> Server:
    return server_and_client[0]


@pytest.fixture(scope="session")
def kms(server_and_client: tuple[Server, Client]) -> Client:
    """A client of the server that most tests share."""
    return server_and_client[1]


@pytest.fixture(scope="session")
def hasty(start_server: StartServer) -> tuple[Server, Client]:
    """A server with short challenges, and a variable that it does not know."""
    return start_server("hasty", KMS_CHALLENGE_TTL="2", KMS_UNHEARD_OF="1")


@pytest.fixture(scope="session")
def wary(start_server: StartServer) -> tuple[Server, Client]:
    """A server that believes nothing without a revocation list."""
    return start_server("wary", KMS_CRL="require")


@pytest.fixture(scope="session")
def limited(start_server: StartServer) -> tuple[Server, Client]:
    return start_server("limited", KMS_RATE_LIMIT="2/s burst 20")
