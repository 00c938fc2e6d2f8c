"""From a RESULT frame to a value or an exception."""

from __future__ import annotations

import json
import os
from typing import Any

from lorry import errors
from lorry.model.records import Status
from lorry.sdk import source
from lorry.wire import identity, pickling
from lorry.wire.codec import from_plain
from lorry.wire.failures import Failure, rebuild
from lorry.wire.pickling import Piece

_VALUES = frozenset(map(int, (Status.OK, Status.YIELD, Status.DONE)))


def value_of(status: int, pieces: list[Piece]) -> Any:
    """The value, or the exception raised as if the function had run here."""
    if status in _VALUES:
        return load(pieces)
    raise exception_of(status, bytes(pieces[0]))


def load(pieces: list[Piece]) -> Any:
    """SerializationError when a class of the result is not importable here."""
    try:
        return pickling.loads(pieces)
    except (ImportError, AttributeError) as missing:
        raise errors.SerializationError(
            f"the result cannot be rebuilt here: {missing}. It contains objects of a package that this Python does "
            "not have; return plain data, or install the package here too"
        ) from missing
    except Exception as broken:
        raise errors.SerializationError(
            f"the result cannot be rebuilt here: {type(broken).__name__}: {broken}"
        ) from broken


def exception_of(status: int, body: bytes) -> BaseException:
    """The exception behind a result that is not OK."""
    try:
        plain = json.loads(body)
    except ValueError:
        return errors.InternalError(f"a failure of status {status} that is not JSON")
    if "error" in plain:
        cls = errors.BY_NAME.get(plain["error"], errors.RemoteError)
        return cls(plain["message"])
    failure = from_plain(Failure, plain)
    if status == Status.TIMEOUT:
        return errors.FunctionTimeoutError(_timed_out(failure))
    if status == Status.CANCELLED:
        return errors.CallCancelledError("the input was cancelled while it ran")
    problem = rebuild(failure, source.local_path)
    explain(problem, failure)
    return problem


def _timed_out(failure: Failure) -> str:
    where = failure.frames[-1] if failure.frames else None
    place = f" It was in {where.name}, {source.local_path(where.file)}:{where.line}." if where else ""
    return f"the input ran longer than its function's timeout.{place} Raise it with timeout= on the function"


def explain(problem: BaseException, failure: Failure) -> None:
    """Add what a newcomer needs to know: the file or package is here, not there."""
    if identity.container is not None:
        return
    if isinstance(problem, FileNotFoundError) and isinstance(problem.filename, str):
        note = _missing_file(problem.filename)
    elif isinstance(problem, ModuleNotFoundError) and problem.name:
        note = _missing_module(problem.name)
    else:
        return
    if note:
        problem.add_note(note)


def _missing_file(name: str) -> str:
    if not os.path.exists(name):
        return ""
    remote = name if os.path.isabs(name) else f"/root/{name}"
    return (
        f"{name} exists on this machine, but not in the container. Ways to bring it there:\n"
        f'  image = lorry.Image.debian_slim().add_local_file("{name}", "{remote}")\n'
        "      with @app.function(image=image), for small files that change with the code\n"
        '  data = lorry.Volume.from_name("my-data", create_if_missing=True)\n'
        '      with @app.function(volumes={"/data": data}), for data that stays; to copy the file into it:\n'
        f"  with data.batch_upload() as batch: batch.put_file({name!r}, {os.path.basename(name)!r})"
    )


def _missing_module(name: str) -> str:
    from lorry.images.advice import missing_module_advice
    from lorry.model.image import ImageSpec

    has, version = _client_has(name.partition(".")[0])
    return missing_module_advice(name, ImageSpec(), has, version)


def _client_has(module: str) -> tuple[bool, str | None]:
    import importlib.metadata
    import importlib.util

    try:
        found = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False, None
    names = importlib.metadata.packages_distributions().get(module, []) if found else []
    return found, importlib.metadata.version(names[0]) if names else None
