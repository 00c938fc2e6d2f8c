"""Patterns that say which local files stay behind, in the language of .dockerignore."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath

from lorry.errors import InvalidError


class FilePatternMatcher:
    """True for paths that match. `*` and `?` stay within one folder, `**` crosses folders, a later `!pattern`
    takes back, and whatever matches a folder matches all that is in it.

        ignore = FilePatternMatcher("**/*.pyc", "data", "!data/labels.csv")
        only_python = ~FilePatternMatcher("**/*.py")
    """

    def __init__(self, *patterns: str) -> None:
        """Raises InvalidError for a pattern that can match nothing."""
        self._patterns = tuple(patterns)
        self._rules = [_rule(pattern) for pattern in patterns if pattern.strip()]

    @classmethod
    def from_file(cls, path: str | Path) -> FilePatternMatcher:
        """One pattern per line; empty lines and lines that start with `#` do not count."""
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise InvalidError(f"The pattern file {str(path)!r} cannot be read: {error.strerror}.") from error
        return cls(*(line for line in lines if not line.lstrip().startswith("#")))

    def __call__(self, path: PurePath) -> bool:
        text = posixpath.normpath(PurePath(path).as_posix())
        matched = False
        for negated, regex in self._rules:
            if matched == negated and regex.fullmatch(text):
                matched = not negated
        return matched

    def __invert__(self) -> _Inverted:
        return _Inverted(self)

    def __repr__(self) -> str:
        return f"FilePatternMatcher({', '.join(map(repr, self._patterns))})"

    def covers_folder(self, folder: PurePath) -> bool:
        """Nothing below `folder` can be taken back, so that it need not be walked."""
        return not any(negated for negated, _ in self._rules) and self(folder)


class _Inverted:
    def __init__(self, matcher: FilePatternMatcher) -> None:
        self._matcher = matcher

    def __call__(self, path: PurePath) -> bool:
        return not self._matcher(path)

    def __invert__(self) -> FilePatternMatcher:
        return self._matcher

    def __repr__(self) -> str:
        return f"~{self._matcher!r}"


class _Custom:
    """A function of the user's, shown by a name that is the same in client and container."""

    def __init__(self, function: Callable[[Path], bool]) -> None:
        self._function = function

    def __call__(self, path: Path) -> bool:
        return bool(self._function(path))

    def __repr__(self) -> str:
        return getattr(self._function, "__qualname__", type(self._function).__qualname__)


def as_matcher(ignore: str | Sequence[str] | Callable[[Path], bool]) -> Callable[[Path], bool]:
    """`ignore=` of the Image methods: patterns, or a function that is True for paths to leave behind."""
    if isinstance(ignore, (FilePatternMatcher, _Inverted)):
        return ignore
    if callable(ignore):
        return _Custom(ignore)
    patterns = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise InvalidError(f"ignore= takes patterns (strings) or a function of a path, not {ignore!r}.")
    return FilePatternMatcher(*patterns)


def _rule(pattern: str) -> tuple[bool, re.Pattern[str]]:
    text = pattern.strip()
    negated = text.startswith("!")
    text = text[1:].strip() if negated else text
    if not text:
        raise InvalidError(f"The pattern {pattern!r} has nothing after its exclamation mark.")
    text = posixpath.normpath(text).lstrip("/")
    if text in ("", "."):
        text = "**"
    try:
        return negated, re.compile(f"{_translate(text)}(?:/.*)?", re.DOTALL)
    except re.error as error:
        raise InvalidError(f"The pattern {pattern!r} is not valid: {error}.") from error


def _translate(pattern: str) -> str:
    out: list[str] = []
    position = 0
    while position < len(pattern):
        piece, position = _next_piece(pattern, position)
        out.append(piece)
    return "".join(out)


def _next_piece(pattern: str, start: int) -> tuple[str, int]:
    """The regular expression of what begins at `start`, and where the rest begins."""
    char = pattern[start]
    if pattern.startswith("**", start):
        end = start + 2
        if end == len(pattern):
            return ".*", end
        return "(?:.*/)?", end + (pattern[end] == "/")
    if char == "*":
        return "[^/]*", start + 1
    if char == "?":
        return "[^/]", start + 1
    if char == "\\" and start + 1 < len(pattern):
        return re.escape(pattern[start + 1]), start + 2
    if char == "[" and (end := pattern.find("]", start + 2)) > 0:
        content = pattern[start + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
        if content.startswith(("!", "^")):
            return f"[^/{content[1:]}]", end + 1
        return f"[{content}]", end + 1
    return re.escape(char), start + 1


NON_PYTHON_FILES = ~FilePatternMatcher("**/*.py")
"""What `add_local_python_source` leaves behind by default."""
