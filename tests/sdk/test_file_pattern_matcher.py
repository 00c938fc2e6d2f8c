from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.errors import InvalidError
from lorry.sdk.file_pattern_matcher import NON_PYTHON_FILES, FilePatternMatcher, as_matcher


@pytest.mark.parametrize(
    ("patterns", "path", "expected"),
    [
        (["*.py"], "a.py", True),
        (["*.py"], "sub/a.py", False),
        (["**/*.py"], "a.py", True),
        (["**/*.py"], "x/y/a.py", True),
        (["**/*.py"], "x/y/a.pyc", False),
        (["sub"], "sub/deep/file", True),
        (["sub"], "subway", False),
        (["/sub/"], "sub/file", True),
        (["./sub"], "sub/file", True),
        (["a/**"], "a/b/c", True),
        (["a/**/z"], "a/z", True),
        (["a/**/z"], "a/b/c/z", True),
        (["a?c"], "abc", True),
        (["a?c"], "a/c", False),
        (["[a-c].txt"], "b.txt", True),
        (["[!a-c].txt"], "b.txt", False),
        (["[^a-c].txt"], "d.txt", True),
        (["\\*.txt"], "*.txt", True),
        (["\\*.txt"], "a.txt", False),
        (["a+b(c).txt"], "a+b(c).txt", True),
        (["*", "!keep"], "keep", False),
        (["*", "!keep"], "other", True),
        (["data", "!data/x", "data/x/y"], "data/x/z", False),
        (["data", "!data/x", "data/x/y"], "data/x/y", True),
        (["**"], "anything/at/all", True),
        (["."], "anything", True),
        ([], "anything", False),
        (["", "  "], "anything", False),
    ],
)
def test_dockerignore_rules(patterns: list[str], path: str, expected: bool) -> None:
    matcher = FilePatternMatcher(*patterns)
    assert matcher(PurePosixPath(path)) is expected
    assert (~matcher)(PurePosixPath(path)) is not expected
    assert ~~matcher is matcher


def test_a_lonely_exclamation_mark_is_refused() -> None:
    with pytest.raises(InvalidError, match="exclamation"):
        FilePatternMatcher("!")


def test_patterns_come_from_a_file_without_comments(tmp_path: Path) -> None:
    path = tmp_path / ".dockerignore"
    path.write_text("# comment\n\n*.log\n!keep.log\n")
    matcher = FilePatternMatcher.from_file(path)
    assert matcher(Path("x.log"))
    assert not matcher(Path("keep.log"))
    with pytest.raises(InvalidError, match="cannot be read"):
        FilePatternMatcher.from_file(tmp_path / "missing")


def test_only_python_files_are_sources() -> None:
    assert NON_PYTHON_FILES(Path("a/b.json"))
    assert not NON_PYTHON_FILES(Path("a/b.py"))


def test_a_folder_is_skipped_only_when_nothing_in_it_is_taken_back() -> None:
    assert FilePatternMatcher(".git").covers_folder(Path(".git"))
    assert not FilePatternMatcher(".git", "!.git/config").covers_folder(Path(".git"))
    assert not FilePatternMatcher("*.py").covers_folder(Path("src"))


def test_ignore_takes_patterns_or_a_function() -> None:
    assert as_matcher("*.py")(Path("a.py"))
    assert as_matcher(["*.py"])(Path("a.py"))
    assert as_matcher(lambda path: path.name == "x")(Path("x"))
    with pytest.raises(InvalidError):
        as_matcher([1])  # type: ignore[list-item]


@given(st.lists(st.text(max_size=8), max_size=4), st.text("ab/.*", min_size=1, max_size=10))
def test_any_pattern_either_works_or_is_refused_with_a_sentence(patterns: list[str], path: str) -> None:
    try:
        matcher = FilePatternMatcher(*patterns)
    except InvalidError:
        return
    assert matcher(PurePosixPath(path)) in (True, False)
