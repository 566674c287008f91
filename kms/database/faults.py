"""What a database says when it fails, by the names that operators, logs and `/readyz` know it by."""

import sqlite3
from typing import Final

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoConnectionFree

from kms.errors import LedgerUnavailable

UNREACHABLE: Final = "database-unreachable"  # nobody there, or no answer in time
REFUSED: Final = "database-refused"  # user, password, name of the database, or rights
READ_ONLY: Final = "database-read-only"
FULL: Final = "database-full"  # no space left for it
BUSY: Final = "database-busy"  # too many connections, or others hold the write lock
DAMAGED: Final = "database-damaged"
DISK_FAILING: Final = "database-disk-failing"  # files that cannot be read, written or opened

# postgresql.org/docs/current/errcodes-appendix.html: five characters, of which the first two name the class.
# The longest that fits counts.
_POSTGRESQL: Final = {
    "08": UNREACHABLE,
    "57P": UNREACHABLE,  # shutting down, crashed, starting
    "25P03": UNREACHABLE,  # this server stood still for too long in a transaction
    "28": REFUSED,
    "3D": REFUSED,
    "42501": REFUSED,
    "25006": READ_ONLY,
    "53100": FULL,
    "53": BUSY,
    "55P03": BUSY,
    "57014": BUSY,  # statement_timeout
    "58": DISK_FAILING,
    "XX001": DAMAGED,
    "XX002": DAMAGED,
}
# sqlite.org/rescode.html: the low byte is the primary code.
_SQLITE: Final = {
    sqlite3.SQLITE_PERM: REFUSED,
    sqlite3.SQLITE_BUSY: BUSY,
    sqlite3.SQLITE_LOCKED: BUSY,
    sqlite3.SQLITE_READONLY: READ_ONLY,
    sqlite3.SQLITE_FULL: FULL,
    sqlite3.SQLITE_IOERR: DISK_FAILING,
    sqlite3.SQLITE_CANTOPEN: DISK_FAILING,
    sqlite3.SQLITE_CORRUPT: DAMAGED,
    sqlite3.SQLITE_NOTADB: DAMAGED,
}
# Classes of what one row is refused for. asyncpg says the first of what it refuses itself, too.
_BAD_VALUE: Final = "22"
_BAD_ROW: Final = "23"
_PRIMARY_CODE: Final = 0xFF


def database_fault(error: SQLAlchemyError | OSError) -> LedgerUnavailable:
    """Name a fault. Its detail is the first line of what the driver said: the others have values of rows."""
    said = _driver_error(error)
    lines = str(said).splitlines()
    if isinstance(error, DBAPIError) and _state(error).startswith(_BAD_VALUE):
        detail = "it cannot keep a value"  # which the first line has
    else:
        detail = lines[0] if lines else "no answer in time"
    return LedgerUnavailable(f"the database: {type(said).__name__}: {detail}", reason=_reason(error))


def is_of_one_row(error: BaseException | None) -> bool:
    """Say whether a fault is about the values of one row (a duplicate id), not about the database."""
    if not isinstance(error, DBAPIError):
        return False
    said = _driver_error(error)
    if isinstance(said, sqlite3.Error):
        return isinstance(said, sqlite3.IntegrityError | sqlite3.DataError)
    return _state(error).startswith((_BAD_VALUE, _BAD_ROW))


def _driver_error(error: BaseException) -> BaseException:
    """Give the error of the driver: SQLAlchemy wraps it twice."""
    wrapped: BaseException | None = getattr(error, "orig", None)
    if wrapped is None:
        return error
    return wrapped.__cause__ or wrapped


def _reason(error: SQLAlchemyError | OSError) -> str | None:
    """Give one of the names above; None where the database said something else."""
    if isinstance(error, OSError):  # of which TimeoutError is one
        return UNREACHABLE
    if isinstance(error, NoConnectionFree):
        return BUSY
    if not isinstance(error, DBAPIError):
        return None
    said = _driver_error(error)
    if isinstance(said, sqlite3.Error):
        code = getattr(said, "sqlite_errorcode", 0)  # the driver's own errors have none
        return _SQLITE.get(code & _PRIMARY_CODE)
    state = _state(error)
    names = (_POSTGRESQL.get(state[:length]) for length in (5, 3, 2))
    found = next((name for name in names if name is not None), None)
    return UNREACHABLE if found is None and error.connection_invalidated else found


def _state(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""
