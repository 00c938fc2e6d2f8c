"""From `FILE::name`, `-m pkg.mod::name` or `-` to something that can be run."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lorry.errors import InvalidError
from lorry.errors import NotFoundError as NotFound

if TYPE_CHECKING:
    from lorry.sdk.app import App
    from lorry.sdk.cls import Cls
    from lorry.sdk.function import Function

STDIN = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`raw` has the parameters that become flags. Exactly one of `function` and `cls` is set, or neither for a
    local entrypoint, which is `raw` itself."""

    app: App
    name: str
    raw: Callable[..., Any]
    function: Function | None = None
    cls: Cls | None = None

    @property
    def is_local(self) -> bool:
        return self.function is None and self.cls is None


def split(reference: str) -> tuple[str, str | None]:
    """`file.py::name` → ("file.py", "name")."""
    place, _, name = reference.partition("::")
    return place, name or None


# Loading


def load(place: str, *, is_module: bool) -> ModuleType:
    """The user's module. What its code raises passes through; InvalidError when there is none."""
    if place == STDIN and not is_module:
        return _load_stdin()
    if is_module:
        if place.endswith(".py") or "/" in place:
            raise InvalidError(f"-m takes a module's name, such as package.module, not {place!r}")
        sys.path.insert(0, str(Path.cwd()))
        return _imported(place)
    path = Path(place)
    if not path.is_file():
        raise InvalidError(_no_file(place))
    if path.suffix != ".py":
        raise InvalidError(f"{place} is not a Python file (.py)")
    return _load_file(path.resolve())


def _no_file(place: str) -> str:
    if Path(place).is_dir():
        return f"{place} is a folder: name a file in it, or a module with -m"
    if Path(f"{place}.py").is_file():
        return f"there is no file {place}; did you mean {place}.py?"
    module = Path(place.replace(".", "/"))
    hint = f"; for a module: lorry run -m {place}" if module.is_dir() or module.with_suffix(".py").is_file() else ""
    where = "" if Path(place).is_absolute() else f" in {Path.cwd()}"
    return f"there is no file {place}{where}{hint}"


def _imported(name: str) -> ModuleType:
    missing = [".".join(name.split(".")[: n + 1]) for n in range(name.count(".") + 1)]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as problem:
        if problem.name in missing:
            raise InvalidError(f"there is no module {problem.name} in {Path.cwd()} or on Python's path") from None
        raise


def _load_file(path: Path) -> ModuleType:
    """Under its stem, or its full name if it lies in a package, with the folder above on the path."""
    folder, names = path.parent, [path.stem]
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        names.insert(0, folder.name)
        folder = folder.parent
    name = ".".join(names)
    known = sys.modules.get(names[0])
    if names[0] in sys.stdlib_module_names or (known is not None and not _lies_below(known, folder)):
        what = "one of Python's own modules" if names[0] in sys.stdlib_module_names else "a module that is in use here"
        raise InvalidError(f"{path.name} has the name of {what} ({names[0]}) and would hide it: rename the file")
    sys.path.insert(0, str(folder))
    if len(names) > 1:
        return importlib.import_module(name)
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _lies_below(module: ModuleType, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve().is_relative_to(folder)


def _load_stdin() -> ModuleType:
    """As a notebook's `__main__`: no file, so its functions travel as bytes. Modules of this folder can be imported."""
    import linecache

    text = sys.stdin.read()
    module = ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.path.insert(0, str(Path.cwd()))
    name = "<stdin>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    exec(compile(text, name, "exec"), vars(module))  # noqa: S102 - the program that the user typed
    return module


# Choosing


def apps_of(module: ModuleType) -> list[App]:
    """The apps that the module's names refer to, `app` first."""
    from lorry.sdk.app import App

    found: list[App] = []
    for name, value in sorted(vars(module).items(), key=lambda item: item[0] != "app"):
        if isinstance(value, App) and value not in found and not name.startswith("__"):
            found.append(value)
    return found


def choose_app(module: ModuleType, place: str) -> App:
    """The one app of a module, or the one called `app`."""
    apps = apps_of(module)
    if not apps:
        raise InvalidError(f"{place} has no lorry.App at its top level")
    if len(apps) > 1 and getattr(module, "app", None) is not apps[0]:
        names = ", ".join(app.name or "(unnamed)" for app in apps)
        raise InvalidError(f"{place} has several apps ({names}): call the one to be deployed `app`")
    return apps[0]


def runnables(module: ModuleType) -> list[Target]:
    """Everything that can stand behind `::`, local entrypoints first."""
    apps = apps_of(module)
    found: list[Target] = []
    for app in apps:
        for name, entry in app.registered_entrypoints.items():
            found.append(Target(app=app, name=name, raw=entry.raw))
    for app in apps:
        for tag, function in app.registered_functions.items():
            found.append(Target(app=app, name=tag, raw=function.get_raw_f(), function=function))
        for tag, cls in app.registered_classes.items():
            for method, raw in cls.methods().items():
                found.append(Target(app=app, name=f"{tag}.{method}", raw=raw, cls=cls))
    return found


def choose(module: ModuleType, place: str, wanted: str | None) -> Target:
    """What to run. InvalidError lists the names when it is not clear."""
    found = runnables(module)
    if not found:
        choose_app(module, place)
        raise InvalidError(f"the app in {place} has no function: decorate one with @app.function()")
    if wanted is not None:
        return _named(found, place, wanted)
    local = [target for target in found if target.is_local]
    candidates = local or found
    if len(candidates) > 1:
        names = "\n".join(f"  {place}::{target.name}" for target in candidates)
        raise InvalidError(f"{place} has several things to run; choose one:\n{names}")
    return candidates[0]


def _named(found: list[Target], place: str, wanted: str) -> Target:
    matching = [target for target in found if target.name == wanted]
    if not matching:  # a class with one method
        matching = [target for target in found if target.name.startswith(f"{wanted}.")]
    if len(matching) == 1:
        return matching[0]
    names = [target.name for target in matching or found]
    close = difflib.get_close_matches(wanted, names, 1)
    listed = "\n".join(f"  {place}::{name}" for name in names)
    if matching:
        raise InvalidError(f"{wanted} has several methods; choose one:\n{listed}")
    hint = f"; did you mean {close[0]}?" if close else ""
    raise NotFound(f"{place} has no {wanted!r} that can be run{hint} There are:\n{listed}")
