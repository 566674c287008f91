"""The `kms` command."""

import sys


def main() -> int:
    """Run the command line; what it returns is the exit status."""
    from kms.cli import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    raise SystemExit(main())
