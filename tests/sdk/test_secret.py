"""Secrets on the client's side: where values come from, and that they never travel in a pickle."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from lorry.errors import InvalidError
from lorry.sdk.secret import Secret, parse_dotenv


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("A=1", "1"),
        ("  export A=1  ", "1"),
        ("export\tA=1", "1"),
        ("A = 1", "1"),
        ("A=a=b=c", "a=b=c"),
        ("A=", ""),
        ("A='x y'", "x y"),
        ('A="x y"  # a comment', "x y"),
        ("A='x # y' # z", "x # y"),
        ("A=x # a comment", "x"),
        ("A=x#y", "x#y"),
        ("A= # only a comment", ""),
        (r'A="line\nnext"', "line\nnext"),
        (r"A='raw\n'", r"raw\n"),
        (r'A="say \"hi\""', 'say "hi"'),
        ("A='open", "'open"),
        ("A=it's", "it's"),
        ("\ufeffA=1", "1"),
        ("A=1\r", "1"),
    ],
)
def test_a_line_of_a_dotenv_file(line: str, wanted: str) -> None:
    assert parse_dotenv(line) == {"A": wanted}


def test_comments_blank_lines_and_nonsense_are_passed_over() -> None:
    assert parse_dotenv("# A=1\n\nnonsense\n=x\nB=2\nB=3\n") == {"B": "3"}


def test_the_file_is_found_here_or_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("KEY=above")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert Secret.from_dotenv()._values == {"KEY": "above"}
    assert Secret.from_dotenv(below / "script.py")._values == {"KEY": "above"}
    with pytest.raises(InvalidError, match=r"no \.other in"):
        Secret.from_dotenv(filename=".other")


def test_values_are_text_and_none_is_left_out() -> None:
    assert Secret.from_dict({"A": "1", "B": None})._values == {"A": "1"}
    with pytest.raises(InvalidError, match="'A' has a int"):
        Secret.from_dict({"A": 1})  # type: ignore[dict-item]


def test_variables_of_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORRY_TEST_VALUE", "v")
    assert Secret.from_local_environ(["LORRY_TEST_VALUE"])._values == {"LORRY_TEST_VALUE": "v"}
    with pytest.raises(InvalidError, match="no variable LORRY_TEST_MISSING"):
        Secret.from_local_environ(["LORRY_TEST_MISSING"])


def test_a_pickle_or_repr_of_a_secret_holds_no_value() -> None:
    secret = Secret.from_dict({"A": "hunter2"})
    secret._secret_id = "se-1"
    data = pickle.dumps(secret)
    assert b"hunter2" not in data
    assert "hunter2" not in repr(secret)
    assert pickle.loads(data).object_id == "se-1"
