"""The error tree: one root, every class with its own sentence, known by its wire name."""

from __future__ import annotations

import builtins
import inspect

import pytest

from lorry import errors, exception


def test_every_error_is_known_by_its_name() -> None:
    classes = {cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.Error)}
    assert set(errors.BY_NAME.values()) == classes
    assert all(name == cls.__name__ for name, cls in errors.BY_NAME.items())


@pytest.mark.parametrize("cls", errors.BY_NAME.values())
def test_every_error_is_documented_and_drawn_in_the_tree(cls: type[errors.Error]) -> None:
    assert cls.__doc__ is not None
    assert cls.__name__ in (errors.__doc__ or "")
    assert str(cls("message")) == "message"


def test_time_outs_are_builtin_ones_too() -> None:
    for cls in (errors.TimeoutError, errors.FunctionTimeoutError, errors.OutputExpiredError):
        assert issubclass(cls, builtins.TimeoutError)


def test_a_cancellation_passes_through_except_exception() -> None:
    assert not issubclass(errors.InputCancellation, Exception)
    assert issubclass(errors.InputCancellation, BaseException)


def test_the_public_names_are_the_same_classes() -> None:
    for name in ("Error", "InvalidError", "NotFoundError", "RemoteError", "FunctionTimeoutError"):
        assert getattr(exception, name) is getattr(errors, name)
