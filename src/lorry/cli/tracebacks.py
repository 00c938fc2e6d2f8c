"""What a person sees of an exception: the traceback from their own code on, without the platform's frames."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from types import TracebackType

import lorry
from lorry import errors

_PLATFORM = os.path.dirname(os.path.abspath(lorry.__file__)) + os.sep
_STDLIB = sysconfig.get_path("stdlib") + os.sep
_BEFORE_USER_CODE = tuple(
    _STDLIB + name for name in ("importlib", "runpy.py", "contextlib.py", "asyncio", "concurrent", "threading.py")
)
"""Of the standard library: these call user code for us. Below the user's first frame they are the user's own."""


def show(problem: BaseException) -> None:
    """To stderr: one line for an error of the platform that no user code led to, else a trimmed traceback."""
    sys.stdout.flush()
    _trim(problem, set())
    if isinstance(problem, errors.Error) and problem.__traceback__ is None:
        text = f"Error: {problem}"
        text += "".join(f"\n{note}" for note in getattr(problem, "__notes__", ()))
    else:
        text = "".join(traceback.TracebackException.from_exception(problem, compact=True).format())
    sys.stderr.write(text.rstrip("\n") + "\n")
    sys.stderr.flush()


def advise_missing_module(problem: BaseException) -> None:
    """An import that failed while the user's file was loaded *here*: say that it need not work here."""
    if isinstance(problem, ModuleNotFoundError) and problem.name:
        from lorry.images.advice import distribution_of

        top = problem.name.partition(".")[0]
        problem.add_note(
            f"{top} is not installed in this Python ({sys.prefix}). If only the container needs it, name it in the "
            "image, and import it inside the function, or here in a block:\n"
            f'  image = lorry.Image.debian_slim().uv_pip_install("{distribution_of(problem.name)}")'
            f"   # and @app.function(image=image)\n"
            f"  with image.imports():\n      import {top}"
        )


def _trim(problem: BaseException, seen: set[int]) -> None:
    """Take the platform's frames out of an exception and of those it was caused by."""
    if id(problem) in seen:
        return
    seen.add(id(problem))
    problem.__traceback__ = _users_part(problem.__traceback__)
    for linked in (problem.__cause__, problem.__context__):
        if linked is not None:
            _trim(linked, seen)
    if isinstance(problem, BaseExceptionGroup):
        for part in problem.exceptions:
            _trim(part, seen)


def _users_part(trace: TracebackType | None) -> TracebackType | None:
    frames: list[TracebackType] = []
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        leads_to_user = not frames and (file.startswith(_BEFORE_USER_CODE) or _launcher(trace))
        if not (file.startswith((_PLATFORM, "<frozen ")) or leads_to_user):
            frames.append(trace)
        trace = trace.tb_next
    rebuilt: TracebackType | None = None
    for frame in reversed(frames):
        rebuilt = TracebackType(rebuilt, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return rebuilt


def _launcher(trace: TracebackType) -> bool:
    """The `lorry` script itself, and typer's frames."""
    file = trace.tb_frame.f_code.co_filename
    return os.path.basename(file) == "lorry" or f"{os.sep}typer{os.sep}" in file
