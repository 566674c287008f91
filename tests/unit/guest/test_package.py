"""What `from kms.guest import …` offers to programs, and what it costs a guest to have it."""

import subprocess
import sys

import kms.guest

SERVERS_OWN = {"fastapi", "starlette", "uvicorn", "sqlalchemy", "alembic", "hvac", "pydantic", "yaml"}
OTHER_EDGES = {"kms.http", "kms.database", "kms.wiring", "kms.simulator", "kms.rootkey", "kms.kds"}


def imported(code: str) -> set[str]:
    """Name the modules that a fresh interpreter has after this."""
    show = "import sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{show}"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_every_name_is_there() -> None:
    for name in kms.guest.__all__:
        assert getattr(getattr(kms.guest, name), "__name__", name) == name
    assert not hasattr(kms.guest, "unheard_of")


def test_the_package_alone_imports_nothing() -> None:
    found = imported("import kms.guest")
    assert {name for name in found if name.startswith("kms")} == {"kms", "kms.guest"}


def test_a_guest_imports_nothing_of_the_server() -> None:
    """What is imported must be in an initrd, and each boot waits for it."""
    found = imported("from kms.guest import *")
    assert not {name.partition(".")[0] for name in found} & SERVERS_OWN
    assert not {".".join(name.split(".")[:2]) for name in found} & OTHER_EDGES
    assert "kms.policy.decision" not in found
    assert "kms.measurement.index" not in found
