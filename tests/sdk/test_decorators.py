"""Decorators in wrong places or order say so at once, not in a container."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import lorry
from lorry.errors import InvalidError
from lorry.sdk.cls import check_class


def f() -> None: ...


def make_app() -> lorry.App:
    return lorry.App("test")


WRONG: dict[str, tuple[str, Callable[[], Any]]] = {
    "function without parentheses": ("parentheses", lambda: make_app().function(f)),
    "cls without parentheses": ("parentheses", lambda: make_app().cls(f)),
    "entrypoint without parentheses": ("parentheses", lambda: make_app().local_entrypoint(f)),
    "enter without parentheses": ("parentheses", lambda: lorry.enter(f)),
    "exit without parentheses": ("parentheses", lambda: lorry.exit(f)),
    "method without parentheses": ("parentheses", lambda: lorry.method(f)),
    "concurrent without parentheses": ("parentheses", lambda: lorry.concurrent(f)),
    "concurrent without a number": ("max_inputs=None", lambda: lorry.concurrent()),
    "concurrent with nonsense": ("target_inputs='x'", lambda: lorry.concurrent(max_inputs=2, target_inputs="x")),  # type: ignore[arg-type]
    "target above the most": ("between 1 and", lambda: lorry.concurrent(max_inputs=2, target_inputs=3)),
    "a class as a function": ("@app.cls", lambda: make_app().function()(type("C", (), {}))),
    "a function as a class": ("decorates classes", lambda: make_app().cls()(f)),
    "decorated twice": ("decorated already", lambda: make_app().function()(make_app().function()(f))),
    "a number as a function": ("decorates functions", lambda: make_app().function()(5)),
    "method outside a class": ("belong to classes", lambda: make_app().function()(lorry.method()(f))),
    "method above function": ("outermost", lambda: lorry.method()(make_app().function()(f))),
    "enter above function": ("outermost", lambda: lorry.enter()(make_app().function()(f))),
    "concurrent above function": ("outermost", lambda: lorry.concurrent(max_inputs=2)(make_app().function()(f))),
    "enter on a class": ("is for methods", lambda: lorry.enter()(type("C", (), {}))),
    "an unknown parameter": ("did you mean memory", lambda: make_app().function(memry=5)),
    "an image that is none": ("lorry.Image", lambda: make_app().function(image="debian")),
    "secrets that are no list": ("must be a list", lambda: make_app().function(secrets="x")),
    "an impossible time-out": ("timeout", lambda: make_app().function(timeout="soon")),
    "an impossible name": ("letters, digits", lambda: lorry.App("a name")),
    "a default that cannot travel": ("str, int, bytes or bool", lambda: lorry.parameter(default=[])),
    "not in this version": ("not in this version", lambda: lorry.batched(max_batch_size=1)),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_decorations_raise_at_decoration(case: str) -> None:
    message, act = WRONG[case]
    with pytest.raises(InvalidError, match=message):
        act()


def test_two_functions_of_one_name_are_refused() -> None:
    app = make_app()
    app.function()(f)
    with pytest.raises(InvalidError, match="two functions called 'f'"):
        app.function()(f)
    app.function(name="g")(f)
    assert set(app.registered_functions) == {"f", "g"}


def test_marks_add_up_in_any_order() -> None:
    one = lorry.method()(lorry.concurrent(max_inputs=3)(f))
    other = lorry.concurrent(max_inputs=3)(lorry.method()(f))
    assert one.__lorry_marks__ == other.__lorry_marks__
    assert one.__lorry_function__ is f


def test_a_class_with_an_init_is_refused() -> None:
    class C:
        def __init__(self) -> None: ...

        @lorry.method()
        def m(self) -> None: ...

    with pytest.raises(InvalidError, match="__init__"):
        check_class(C)


def test_a_class_without_methods_is_refused() -> None:
    with pytest.raises(InvalidError, match="no method"):
        check_class(type("C", (), {}))


def test_parameters_need_a_simple_type() -> None:
    class C:
        x: list = lorry.parameter()  # type: ignore[type-arg]

        @lorry.method()
        def m(self) -> None: ...

    with pytest.raises(InvalidError, match=r"C\.x needs a type"):
        check_class(C)


def test_other_annotations_may_name_what_only_the_image_has() -> None:
    class C:
        model: torch.nn.Module  # type: ignore[name-defined]  # noqa: F821
        size: int = lorry.parameter(default=3)

        @lorry.method()
        def m(self) -> int:
            return self.size

    cls = make_app().cls()(C)
    assert cls().size == 3
    assert cls(size=4).m.local() == 4
    with pytest.raises(InvalidError, match="is int, not str"):
        cls(size="4")
    with pytest.raises(InvalidError, match="no parameter 'siz'"):
        cls(siz=4)
    with pytest.raises(InvalidError, match="by name"):
        cls(4)
    with pytest.raises(AttributeError, match="no method or parameter"):
        cls().missing  # noqa: B018


def test_a_parameter_without_a_default_must_be_given() -> None:
    class C:
        name: str = lorry.parameter()

        @lorry.method()
        def m(self) -> str:
            return self.name

    cls = make_app().cls()(C)
    with pytest.raises(InvalidError, match="needs a value for name"):
        cls()
    assert cls(name="n").m.local() == "n"


def test_inside_the_class_methods_call_each_other_and_enter_runs_first() -> None:
    class Base:
        @lorry.enter()
        def start(self) -> None:
            self.log = ["base"]

    class C(Base):
        @lorry.enter()
        def more(self) -> None:
            self.log.append("own")

        @lorry.method()
        def m(self) -> list[str]:
            return self.helper()

        @lorry.method()
        def helper(self) -> list[str]:
            return self.log

    assert make_app().cls()(C)().m.local() == ["base", "own"]


def test_a_handle_is_not_called_directly() -> None:
    with pytest.raises(TypeError, match=r"f\.remote.*f\.local"):
        make_app().function()(f)()
