"""Every module that the guest's commands may import, as files: a program for `kms.guest.initrd`.

Commands import when they run, so it is not enough to start one. All imports that stand anywhere in our
modules are done, from the guest's commands on, and then whatever is loaded is listed.
"""

import ast
import importlib
import importlib.util
import site
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_STARTS: Final = ("kms.__main__", "kms.cli.guest")
# What the standard library imports by itself when something is first done: codecs of host names (IDNA) and of
# files, help and error messages, dates.
_LATE: Final = (
    "_strptime",
    "encodings.ascii",
    "encodings.idna",
    "encodings.latin_1",
    "encodings.utf_8_sig",
    "linecache",
    "shutil",
    "stringprep",
    "textwrap",
    "traceback",
    "unicodedata",
)
# What a guest's command never comes to: how operators are refused, and what structlog uses for colours and
# greenlets where it finds it.
_LEFT_OUT: Final = ("kms.cli.refusals", "kms.guest.initrd", "greenlet", "rich")


def _files() -> Iterator[Path]:
    """Import whatever the guest's commands may import, and give each file that this process uses for it."""
    opened: set[str] = set()
    sys.addaudithook(lambda event, of: opened.add(str(of[0])) if event == "open" else None)
    for name in _LEFT_OUT:
        sys.modules[name] = None  # type: ignore[assignment]  # importing it is an ImportError then
    for name in (*_STARTS, *_LATE):
        importlib.import_module(name)
    seen: set[str] = set()
    while ours := {name for name in sys.modules if name.partition(".")[0] == "kms"} - seen - {*_LEFT_OUT}:
        seen |= ours
        for name in sorted(ours):
            _import_all_of(name)
    sites = tuple(Path(folder) for folder in site.getsitepackages())
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file is None:
            continue
        yield Path(file)
        for folder in sites:
            if Path(file).is_relative_to(folder):
                # Libraries import parts of themselves late: the whole of them is taken.
                top = folder / Path(file).relative_to(folder).parts[0]
                if top.is_dir() and top.name != "kms":
                    yield from (path for path in top.rglob("*") if path.suffix in {".py", ".so"})
    # Data, such as the metadata in which a library looks up its own version.
    for path in map(Path, opened):
        if path.suffix not in {".py", ".pyc", ".pth"} and any(map(path.is_relative_to, sites)):
            yield path


def _import_all_of(name: str) -> None:
    """Import what a module of ours imports anywhere in it, but for types only."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return
    for module, names in _imports(ast.parse(Path(spec.origin).read_bytes())):
        try:
            __import__(module, fromlist=names)
        except ImportError as error:
            # Whatever else is missing would be missed at boot.
            if not str(error.name).startswith(_LEFT_OUT):
                raise


def _imports(node: ast.AST) -> Iterator[tuple[str, list[str]]]:
    """Give each import statement below a node, as `__import__` takes it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, ["*"]) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module is not None:
            yield child.module, [alias.name for alias in child.names]
        else:
            yield from _imports(child)


if __name__ == "__main__":
    sys.stdout.write("".join(sorted({f"{path}\n" for path in _files()})))
