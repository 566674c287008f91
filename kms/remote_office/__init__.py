"""An `Office` on a server: operators' commands from where the database is not."""

from kms.remote_office.office import open_remote

__all__ = ["open_remote"]
