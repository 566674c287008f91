"""What a YAML parser's complaint means for the person who wrote the file, and which line to look at.

libyaml says what it was doing when it gave up, often lines after the mistake. The complaints that operators
meet are told here in words of the file; one that is not listed is given as it is. Source of the complaints:
libyaml 0.2.5, src/scanner.c and src/parser.c.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import yaml
from yaml.reader import ReaderError

_KEY: Final = re.compile(r"\s*(?:- +)*[\w.-]+:(?:\s|$)")
# As libyaml counts lines: src/yaml_private.h, IS_BREAK.
_LINE_BREAK: Final = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_KEY_WITHOUT_SPACE: Final = re.compile(r"\s*([\w.-]+:)[^\s:]")

_CANNOT_BEGIN: Final = "found character that cannot start any token"
_NO_ALIAS: Final = "did not find expected alphabetic or numeric character"
_SECOND_COLON: Final = "mapping values are not allowed in this context"
_NO_COLON: Final = "could not find expected ':'"
_NO_VALUE: Final = "did not find expected node content"
_NO_DASH: Final = "did not find expected '-' indicator"
_OUT_OF_LINE: Final = frozenset(
    {"did not find expected key", _NO_DASH, "did not find expected <document start>"}
)
_BRACKETS: Final = {"did not find expected ',' or ']'": "]", "did not find expected ',' or '}'": "}"}
_IN_QUOTES: Final = "while scanning a quoted scalar"
_IN_BLOCK: Final = "while scanning a block scalar"
_SENTENCES: Final = {
    "block sequence entries are not allowed in this context": "a list begins on a line of its own, or in `[`",
    "found unknown escape character": "no escape of double quotes: single quotes take every `\\` as it is",
    "found undefined tag handle": "no value begins with `!`: quote it",
}
_INDENTED: Final = "this line is indented otherwise than the lines before it"


@dataclass(frozen=True, slots=True)
class Complaint:
    """What is wrong, at a line and column from 1."""

    line: int
    column: int
    message: str


_Explained: TypeAlias = tuple[int, int, str]  # line and column from 0, and the sentence


def complaint_of(error: yaml.YAMLError, text: str) -> Complaint:
    """Say what is wrong with `text`, for which the parser raised `error`."""
    if isinstance(error, ReaderError):
        return _character(error, text)
    mark = getattr(error, "problem_mark", None)
    if not isinstance(error, yaml.MarkedYAMLError) or mark is None:
        return Complaint(1, 1, "not YAML")
    at = (mark.line, mark.column)
    begun = at if error.context_mark is None else (error.context_mark.line, error.context_mark.column)
    lines = _LINE_BREAK.split(text)
    line, column, message = _explain(error.context or "", error.problem or "", lines, at, begun)
    return Complaint(line + 1, column + 1, f"not YAML: {message}")


def _character(error: ReaderError, text: str) -> Complaint:
    before = text.encode()[: error.position].decode("utf-8", "ignore")  # libyaml counts bytes
    lines = _LINE_BREAK.split(before)
    message = "not YAML: a character that YAML does not allow, such as a control character"
    return Complaint(len(lines), len(lines[-1]) + 1, message)


def _explain(
    context: str, problem: str, lines: Sequence[str], at: tuple[int, int], begun: tuple[int, int]
) -> _Explained:
    """Explain a problem found `at` a place in something that had `begun` at another."""
    line = lines[at[0]] if at[0] < len(lines) else ""
    here = line[at[1] : at[1] + 1]
    if problem in _SENTENCES:
        return *at, _SENTENCES[problem]
    if problem == _CANNOT_BEGIN and here == "\t":
        return *at, "a tab: YAML is indented with spaces"
    if problem in {_CANNOT_BEGIN, _NO_ALIAS} or context == _IN_BLOCK:
        return *begun, f"no value begins with `{lines[begun[0]][begun[1] : begun[1] + 1]}`: quote it"
    if problem == _SECOND_COLON:
        return _second_colon(lines, at)
    if problem == _NO_COLON:
        return _no_colon(lines, begun)
    if problem in _BRACKETS:
        bracket = _BRACKETS[problem]
        if at[0] != begun[0] and (not line.strip() or _KEY.match(line)):
            return *begun, f"what opens here is not closed: a `{bracket}` is missing before line {at[0] + 1}"
        return *at, f"a `,` or `{bracket}` is missing before this"
    if problem == _NO_VALUE:
        return *at, "a value is missing before this" if here else "the file ends within brackets"
    if context == _IN_QUOTES:
        return *begun, "the quote that opens here is not closed"
    if problem in _OUT_OF_LINE:
        if line[: at[1]].strip():
            return *at, "the value before this is complete: quote all of it, or begin a line"
        no_dash = problem == _NO_DASH and at[1] == begun[1]
        return *at, "an item of a list begins with `-`, as those before it do" if no_dash else _INDENTED
    return *at, ", ".join(part for part in (context, problem) if part)


def _second_colon(lines: Sequence[str], at: tuple[int, int]) -> _Explained:
    """Explain a `:` that makes a mapping where none can be."""
    line = lines[at[0]]
    if line.startswith("---"):
        return at[0], 0, "`---` stands on a line of its own"
    if _KEY.match(line[: at[1]]):
        return *at, "a second `: ` in one line: quote the value that it is part of"
    # The parser took this line for the rest of the value before it.
    before = next((number for number in range(at[0] - 1, -1, -1) if lines[number].strip()), at[0])
    if _KEY_WITHOUT_SPACE.match(lines[before]):
        return _no_colon(lines, (before, _indentation(lines[before])))
    return at[0], _indentation(line), _INDENTED


def _no_colon(lines: Sequence[str], begun: tuple[int, int]) -> _Explained:
    """Explain a line that is no `key: value`."""
    match = _KEY_WITHOUT_SPACE.match(lines[begun[0]])
    if match:
        return *begun, f"a space is missing after `{match[1]}`"
    if not lines[begun[0]].strip(" -"):
        return *begun, "documents are parted by `---`"
    return *begun, "neither a `key: value` nor, by its indentation, part of the line before it"


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())
