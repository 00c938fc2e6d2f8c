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
    "max_inputs that is no number": ("max_inputs='3' must be a whole", lambda: make_app().function(max_inputs="3")),
    "max_inputs of none": ("max_inputs=0 must be a whole", lambda: make_app().cls(max_inputs=0)),
    "env that is no dict": ("env must be a dict of texts", lambda: make_app().function(env=["A=1"])),
    "env with a number": ('value of A must be a text such as "1", not 1', lambda: make_app().function(env={"A": 1})),
    "env with an impossible name": ("'A=' cannot be a name", lambda: make_app().function(env={"A=": "1"})),
    "tags that are no dict": ("tags must be a dict of texts", lambda: make_app().function(tags="x")),
    "tags with a number": ("tags: the value of team", lambda: make_app().function(tags={"team": 1})),
    "tags of the app": ("tags: the value of team", lambda: lorry.App(tags={"team": 1})),  # type: ignore[dict-item]
    "secrets by name": (
        r"secrets=.*lorry\.Secret\.from_name\('hub'\)",
        lambda: make_app().function(secrets=["hub"]),
    ),
    "secrets of the app": ("secrets= takes", lambda: lorry.App(secrets=[1])),
    "volumes as a list": ("volumes= takes a dict", lambda: make_app().function(volumes=["/data"])),
    "volumes by name": (
        r"'/data' has 'corpus'; see lorry\.Volume\.from_name\('corpus'\)",
        lambda: make_app().function(volumes={"/data": "corpus"}),
    ),
    "volumes of the app": ("must be absolute", lambda: lorry.App(volumes={"data": lorry.Volume.from_name("v")})),
    "a volume in place of /tmp": (
        "take the place of /tmp",
        lambda: make_app().function(volumes={"//tmp/": lorry.Volume.from_name("v")}),
    ),
    "two volumes at one place": (
        "two volumes are mounted at /data",
        lambda: make_app().function(
            volumes={"/data": lorry.Volume.from_name("v"), "/data/": lorry.Volume.from_name("w")}
        ),
    ),
    "the app's volume at another place": (
        "the same volume is mounted at /data and /more",
        lambda: lorry.App(volumes={"/data": lorry.Volume.from_name("v")}).function(
            volumes={"/more": lorry.Volume.from_name("v")}
        ),
    ),
    "a flag that is a text": ("must be True or False, not 'no'", lambda: make_app().function(block_network="no")),
    "a flag that is a number": ("serialized must be True", lambda: make_app().function(serialized=1)),
    "a flag of the app": ("include_source must be", lambda: lorry.App(include_source="no")),  # type: ignore[arg-type]
    "a flag of enter": ("snap must be True or False", lambda: lorry.enter(snap="x")),  # type: ignore[arg-type]
    "a flag of method": ("is_generator must be", lambda: lorry.method(is_generator=1)),  # type: ignore[arg-type]
    "target_inputs that is a flag": (
        "between 1 and",
        lambda: lorry.concurrent(max_inputs=2, target_inputs=True),
    ),
    "a name with a space": ("a function's name has 1 to 64", lambda: make_app().function(name="a b")),
    "a name that is a number": ("name=5", lambda: make_app().function(name=5)),
    "an entrypoint's name": ("name='a b'", lambda: make_app().local_entrypoint(name="a b")),
    "a region that is a number": ("region must be a text", lambda: make_app().function(region=5)),
    "a cloud that is a list": ("cloud must be a text", lambda: make_app().function(cloud=["x"])),
    "a priority that is a text": ("priority must be a whole number", lambda: make_app().function(priority="high")),
    "experimental options as text": (
        "experimental_options must be",
        lambda: make_app().function(experimental_options="x"),
    ),
    "with_options with nonsense": (
        "env must be a dict",
        lambda: make_app().function()(f).with_options(env="x"),
    ),
    "a deployment's impossible name": ("letters, digits", lambda: make_app().deploy(name="a name")),
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


ACCEPTED: dict[str, Any] = {
    "image": lorry.Image.debian_slim(),
    "schedule": "0 9 * * 1",
    "env": {"A": "1"},
    "secrets": [lorry.Secret.from_name("s")],
    "gpu": ["H100", "A100-80GB:2"],
    "serialized": True,
    "volumes": {"/data": lorry.Volume.from_name("v")},
    "cpu": (1, 2.5),
    "memory": "8GB",
    "ephemeral_disk": 1024,
    "min_containers": 1,
    "max_containers": 2,
    "buffer_containers": 1,
    "scaledown_window": "2m",
    "retries": lorry.Retries(max_retries=2),
    "timeout": "24h",
    "startup_timeout": 60,
    "name": "other",
    "is_generator": False,
    "region": ["eu", "us-east"],
    "cloud": "auto",
    "nonpreemptible": True,
    "enable_memory_snapshot": True,
    "block_network": True,
    "single_use_containers": True,
    "include_source": False,
    "max_inputs": 10,
    "experimental_options": {"x": 1},
    "resumable": True,
    "budget": 5,
    "priority": 1,
    "limits": "lambda",
    "tags": {"team": "a"},
    "restrict_modal_access": True,
    "restrict_access": True,
    "proxy": "p",
}
"""A right value of each parameter in docs/reference/function.md."""


def test_every_parameter_has_a_right_value_here() -> None:
    from lorry.sdk.options import KNOWN

    assert ACCEPTED.keys() == KNOWN


@pytest.mark.filterwarnings("ignore:@app")
@pytest.mark.parametrize("name", ACCEPTED)
def test_right_values_are_accepted_and_none_is_the_same_as_nothing(name: str) -> None:
    from lorry.sdk.options import NOT_CLS

    class C:
        @lorry.method()
        def m(self) -> None: ...

    for value in (ACCEPTED[name], None):
        assert make_app().function(**{name: value})(f).options.get(name) == value
        if name not in NOT_CLS:
            assert make_app().cls(**{name: value})(C).options.get(name) == value


def test_a_parameter_without_effect_warns_for_the_line_of_the_decorator() -> None:
    with pytest.warns(UserWarning, match="budget= is accepted, but") as caught:
        make_app().function(budget=5)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("name", ["a b", "", "-x", "x" * 65, 5])
def test_a_name_of_an_app_is_checked_wherever_it_is_given(name: Any) -> None:
    app = make_app()
    with pytest.raises(InvalidError, match="letters, digits"):
        app.name = name
    assert app.name == "test"
