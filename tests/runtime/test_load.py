"""From a CodeRef to callables: modules, scripts, classes with hooks and parameters, serialized functions."""

from __future__ import annotations

import base64
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorry import errors
from lorry.model.function import CodeRef, FunctionKind, FunctionSpec
from lorry.runtime.load import MAIN_ALIAS, Loaded, load
from lorry.wire import pickling

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
PROGRAM = """
import lorry

app = lorry.App("t")
ran = __name__

@app.function()
def double(x):
    return 2 * x

def plain(x):
    return -x

class Base:
    @lorry.enter()
    def first(self):
        self.log = ["first"]

    @lorry.exit()
    def last(self):
        self.log.append("last")

@app.cls()
class Model(Base):
    size: int = lorry.parameter(default=3)
    name: str = lorry.parameter()

    @lorry.enter()
    def second(self):
        self.log.append("second")

    @lorry.enter(snap=True)
    def snapped(self):
        self.snap = True

    @lorry.method()
    def show(self):
        return (self.size, self.name, self.log, self.helper(1))

    @lorry.method()
    def helper(self, x):
        return x + 1

if __name__ == "__main__":
    raise SystemExit("the guard did not hold")
"""


@pytest.fixture
def source(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "program_under_test.py").write_text(PROGRAM)
    main = sys.modules["__main__"]
    alias = sys.modules.get(MAIN_ALIAS)
    sys.path.insert(0, str(tmp_path))
    yield str(tmp_path)
    sys.path.remove(str(tmp_path))
    sys.modules.pop("program_under_test", None)
    sys.modules["__main__"] = main
    sys.modules.pop(MAIN_ALIAS, None)
    if alias is not None:
        sys.modules[MAIN_ALIAS] = alias


def loaded(source: str, qualname: str, kind: FunctionKind = FunctionKind.FUNCTION, **more: str | None) -> Loaded:
    parameters = more.pop("parameters", None)
    fields = {"module": "program_under_test", **more}
    code = CodeRef(qualname=qualname, **fields)  # type: ignore[arg-type]
    return load(FunctionSpec(tag="t", kind=kind, code=code, parameters=parameters), source)


def packed(values: dict[str, object]) -> str:
    return base64.b64encode(pickle.dumps(values)).decode()


def test_a_decorated_and_a_plain_function(source: str) -> None:
    assert loaded(source, "double").methods[None](4) == 8
    assert loaded(source, "plain").methods[None](4) == -4


def test_a_script_is_loaded_under_the_alias_of_main_and_its_guard_holds(source: str) -> None:
    loaded(source, "double", module=MAIN_ALIAS, entry="program_under_test.py")
    assert sys.modules["__main__"] is sys.modules[MAIN_ALIAS]
    assert sys.modules[MAIN_ALIAS].ran == MAIN_ALIAS


def test_a_class_has_its_methods_hooks_and_parameters(source: str) -> None:
    found = loaded(source, "Model", FunctionKind.CLASS, parameters=packed({"name": "n"}))
    assert set(found.methods) == {"show", "helper"}
    assert [hook.__name__ for hook in [*found.snaps, *found.enters]] == ["snapped", "first", "second"]
    for hook in [*found.snaps, *found.enters]:
        hook()
    assert found.methods["show"]() == (3, "n", ["first", "second"], 2)
    (last,) = found.exits
    last()


def test_a_parameter_without_a_value_is_named(source: str) -> None:
    with pytest.raises(errors.InvalidError, match="needs a value for its parameter 'name'"):
        loaded(source, "Model", FunctionKind.CLASS)


def test_what_is_not_there_or_no_function_is_told(source: str) -> None:
    with pytest.raises(AttributeError):
        loaded(source, "missing")
    with pytest.raises(ModuleNotFoundError):
        loaded(source, "f", module="no_such_module_here")
    with pytest.raises(errors.InvalidError, match="is not a function"):
        loaded(source, "ran")
    with pytest.raises(errors.InvalidError, match="is not a class"):
        loaded(source, "plain", FunctionKind.CLASS)
    with pytest.raises(errors.InvalidError, match="not a Python file"):
        loaded(source, "x", entry="data.bin")


def test_a_serialized_function_needs_the_same_python(source: str) -> None:
    data = base64.b64encode(pickling.dump_function(lambda x: x + 1)).decode()
    assert loaded(source, "x", serialized=data, python=HERE).methods[None](1) == 2
    with pytest.raises(errors.SerializationError, match=r"Python 3\.0 and its container runs"):
        loaded(source, "x", serialized=data, python="3.0")
