"""How this room makes a check: equal ones are made once.

A fleet passes the same fifty checks with the same words at every release, so most are looked up rather than
built, and a recorded decision costs references.
"""

from functools import lru_cache

from kms.checks import Check


@lru_cache(maxsize=1 << 14)
def check(name: str, passed: bool, detail: str, reason: str) -> Check:
    """Give the check of these words; `reason` is the code that a refused guest is given."""
    return Check(name, passed, detail, reason)
