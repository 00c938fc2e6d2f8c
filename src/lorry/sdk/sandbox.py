"""`Sandbox`: a container for programs that nobody trusts, and programs started in it."""

from __future__ import annotations

import dataclasses
import difflib
import warnings
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from lorry import errors
from lorry.ids import new_id
from lorry.model.function import CodeRef, FunctionKind, FunctionSpec
from lorry.sdk import option_checks as check
from lorry.sdk import options as opt
from lorry.sdk import sandbox_files as files
from lorry.sdk.build_spec import secret_ids, volume_mounts
from lorry.sdk.container_process import ContainerProcess, StreamWriter, start_program
from lorry.sdk.launch import prepare_image
from lorry.sdk.sandbox_files import SandboxFile, SandboxFileEntry
from lorry.sdk.steps import Ask, BoundTwin, Steps, twin
from lorry.wire.codec import to_json

if TYPE_CHECKING:
    from lorry.sdk.app import App
    from lorry.sdk.secret import Secret

_Started = TypeVar("_Started")
SLEEPER = ("sleep", "infinity")
"""The program of a sandbox that only others are started in."""
OPTIONS = frozenset(
    ("image", "env", "secrets", "volumes", "workdir", "gpu", "cpu", "memory", "timeout", "block_network", "tags")
)
UNNAMED = "sandboxes"
"""The app of sandboxes that were given none."""
TERMINAL = (24, 80)
"""Rows and columns of a terminal whose size nobody has told."""
TERMINATED, TIMED_OUT = 137, 124
LOG_POLL = 0.25
"""Seconds between looks at the log of a sandbox that runs."""
_Place = dict[str, int]
"""How far a reader of a log is, as the server gave it."""


class Sandbox:
    """Made by `Sandbox.create`, found again by `Sandbox.from_id` and `Sandbox.list`. It lives until its program ends,
    `terminate()`, its `timeout`, or the end of its app."""

    create: ClassVar[BoundTwin[..., Sandbox]]
    from_id: ClassVar[BoundTwin[..., Sandbox]]
    list: ClassVar[_List]

    def __init__(self, sandbox_id: str) -> None:
        self._id = sandbox_id
        self._code: int | None = None
        self.stdout = _Log(self, 1)
        self.stderr = _Log(self, 2)

    @property
    def object_id(self) -> str:
        return self._id

    def __repr__(self) -> str:
        return f"<lorry.Sandbox {self._id}>"

    def __reduce__(self) -> Any:
        return Sandbox, (self._id,)

    # Programs in it

    def _exec(
        self,
        *args: str,
        timeout: float | str | None = None,
        workdir: str | None = None,
        env: Mapping[str, str] | None = None,
        secrets: Sequence[Secret] = (),
        text: bool = True,
        bufsize: int = -1,
        pty: bool = False,
    ) -> Steps[ContainerProcess]:
        """Start a program in it, and return once it is executed. Options: `timeout`, after which it is killed with exit
        code 124; `env` and `secrets`, beside the sandbox's own; `text=False` for streams of bytes; `pty` for a
        terminal. `bufsize` is -1, or 1 with `text`: iteration gives lines either way."""
        if bufsize not in (-1, 1) or (bufsize == 1 and not text):
            raise errors.InvalidError(f"bufsize is -1, or 1 with text=True, not {bufsize!r}: output is given by lines")
        words = _words(args)
        check.check_secrets(secrets)
        options = {
            "secrets": (yield from secret_ids(secrets)),
            "timeout": None if timeout is None else opt.seconds(timeout, "timeout"),
            "workdir": workdir,
            "env": ({"TERM": "xterm-256color"} if pty else {}) | opt.texts(env or {}, "env"),
            "terminal": TERMINAL if pty else None,
            "text": text,
        }
        return (yield from _hinting(args, start_program(self._id, words, options)))

    exec = twin(_exec)

    @property
    def stdin(self) -> StreamWriter:
        """Of a program that `exec` has started only."""
        raise errors.InvalidError(
            "the sandbox's own program has no stdin, since it outlives whoever would write there: start the program "
            "with exec(), whose process has .stdin"
        )

    def _tunnels(self, timeout: float = 50) -> Steps[dict[int, Any]]:
        """Not there yet."""
        raise errors.InvalidError(
            "tunnels come with a later version of Lorry. A sandbox shares this machine's network unless "
            "block_network=True: connect to the port that its program listens on at 127.0.0.1"
        )
        yield

    tunnels = twin(_tunnels)

    # Its life

    def _poll(self) -> Steps[int | None]:
        """The exit code of its program, or None while it runs."""
        if self._code is None:
            yield from self._ask_code(0)
        return self._code

    poll = twin(_poll)

    def _ask_code(self, seconds: float | None) -> Steps[str]:
        """The reason of its end, in a sentence."""
        reply = yield Ask("sandbox_wait", {"sandbox_id": self._id, "wait": seconds})
        self._code = reply["code"]
        return str(reply["reason"])

    def _wait(self, raise_on_termination: bool = True) -> Steps[int]:
        """Until it ends; the exit code of its program. SandboxTimeoutError when its `timeout` was over, and
        SandboxTerminatedError when it was stopped or killed, unless `raise_on_termination=False`."""
        reason = yield from self._ask_code(None)
        assert self._code is not None
        if self._code == TIMED_OUT and "timeout" in reason:
            raise errors.SandboxTimeoutError(f"{self._id}: {reason}; give it more with Sandbox.create(timeout=…)")
        if self._code == TERMINATED and raise_on_termination:
            raise errors.SandboxTerminatedError(f"{self._id}: {reason}")
        return self._code

    wait = twin(_wait)

    @property
    def returncode(self) -> int | None:
        """As the last `poll()` or `wait()` knew it: None while it runs, 124 after its `timeout`, 137 when it was
        terminated."""
        return self._code

    def _terminate(self) -> Steps[None]:
        """End everything in it, now."""
        yield Ask("sandbox_terminate", {"sandbox_id": self._id})

    terminate = twin(_terminate)

    # Tags

    def _set_tags(self, tags: Mapping[str, str]) -> Steps[None]:
        """In place of those that it has."""
        yield Ask("sandbox_tag", {"sandbox_id": self._id, "tags": opt.texts(tags, "tags")})

    set_tags = twin(_set_tags)

    def _get_tags(self) -> Steps[dict[str, str]]:
        return dict((yield Ask("sandbox_info", {"sandbox_id": self._id}))["tags"])

    get_tags = twin(_get_tags)

    # Files

    def _open(self, path: str, mode: str = "r") -> Steps[SandboxFile]:
        """A file in it: r, w, x or a, and b for bytes. NotFoundError, AlreadyExistsError, or ExecutionError with the
        system's words."""
        return (yield from SandboxFile(self._id, path, mode)._load())

    open = twin(_open)

    def _ls(self, path: str = "/") -> Steps[Sequence[str]]:
        """Names in a folder, sorted."""
        found = yield from self._list_files(path)
        return [entry.name for entry in found]

    ls = twin(_ls)

    def _list_files(self, path: str = "/") -> Steps[Sequence[SandboxFileEntry]]:
        """What is in a folder, sorted by name."""
        return files.entries((yield from files.operate(self._id, "list", path)))

    list_files = twin(_list_files)

    def _mkdir(self, path: str, parents: bool = False) -> Steps[None]:
        yield from files.operate(self._id, "mkdir", path, "p" if parents else "")

    mkdir = twin(_mkdir)

    def _rm(self, path: str, recursive: bool = False) -> Steps[None]:
        yield from files.operate(self._id, "remove", path, "r" if recursive else "")

    rm = twin(_rm)


def _words(args: Sequence[str]) -> tuple[str, ...]:
    if not args:
        raise errors.InvalidError('a program is needed, such as exec("python", "-c", "print(1)")')
    for word in args:
        if not isinstance(word, str):
            raise errors.InvalidError(f"a program is given as texts, one per word; {word!r} is none")
    return tuple(args)


def _hinting(args: Sequence[str], started: Steps[_Started]) -> Steps[_Started]:
    """A whole line in place of its words is what everybody writes once."""
    try:
        return (yield from started)
    except errors.InvalidError as wrong:
        if args and " " in args[0] and "executing" in str(wrong):
            words = ", ".join(f'"{word}"' for word in args[0].split())
            hint = f'one word per argument: ({words}), or a line for a shell: ("sh", "-c", "{args[0]}")'
            raise errors.InvalidError(f"{str(wrong).rstrip('.')}. Give {hint}") from None
        raise


def _create(*args: str, app: App | None = None, **options: Any) -> Steps[Sandbox]:
    """A container that runs a program (without one, it waits for `exec`), returned once that is executed.

    `app`: it ends with it; without one that runs, it lives as long as its `timeout` (300 s) says. The other options
    are `image`, `env`, `secrets`, `volumes`, `workdir`, `gpu`, `cpu`, `memory`, `timeout`, `block_network` and `tags`,
    and mean what they do for `@app.function`."""
    if app is not None and options.get("image") is None:
        options["image"] = app._image
    spec = yield from sandbox_spec(_words(args) if args else SLEEPER, options)
    running = (app.app_id or app.deployed_id) if app else None
    return (yield from _hinting(args, start_sandbox(spec, running, (app.name if app else None) or UNNAMED)))


def sandbox_spec(command: tuple[str, ...], options: Mapping[str, Any]) -> Steps[FunctionSpec]:
    """What `create` was given, as the server takes it; the image is built."""
    given = check.given_values(options)
    for name in given.keys() - OPTIONS:
        close = difflib.get_close_matches(name, OPTIONS, 1)
        hint = f"; did you mean {close[0]}=?" if close else f"; it takes {', '.join(sorted(OPTIONS))}"
        raise errors.InvalidError(f"Sandbox.create has no parameter {name}={hint}")
    workdir = given.pop("workdir", None)
    check.check_values(given)
    image = yield from prepare_image(given.get("image"))
    return FunctionSpec(
        tag=FunctionKind.SANDBOX.value,
        kind=FunctionKind.SANDBOX,
        code=CodeRef(module="", qualname=""),
        image=image if workdir is None else dataclasses.replace(image, workdir=workdir),
        resources=opt.resources(given),
        timeout=opt.seconds(given.get("timeout", 300), "timeout"),
        volumes=(yield from volume_mounts(given.get("volumes", {}))),
        secret_ids=(yield from secret_ids(given.get("secrets", ()))),
        env=tuple(sorted(given.get("env", {}).items())),
        block_network=given.get("block_network", False),
        tags=tuple(sorted(given.get("tags", {}).items())),
        command=command,
    )


def start_sandbox(spec: FunctionSpec, app_id: str | None, app_name: str) -> Steps[Sandbox]:
    # The id is made here, so that asking again after a lost connection makes no second one.
    params = {"sandbox_id": new_id("sb"), "app_id": app_id, "app_name": app_name, "spec": to_json(spec)}
    reply = yield Ask("sandbox_create", params)
    if not reply["isolated"]:
        warnings.warn(
            "this machine isolates nothing (tier process): programs in a sandbox have all rights of your own user. "
            "`lorry doctor` says what is in the way",
            UserWarning,
            stacklevel=2,
        )
    return Sandbox(reply["sandbox_id"])


def _from_id(sandbox_id: str) -> Steps[Sandbox]:
    """An earlier one, of another program too. NotFoundError if there never was such a one."""
    yield Ask("sandbox_info", {"sandbox_id": sandbox_id})
    return Sandbox(sandbox_id)


class _List:
    """`Sandbox.list`: those that run, newest first."""

    def __call__(self, *, app_id: str | None = None, tags: Mapping[str, str] | None = None) -> Iterator[Sandbox]:
        """`app_id`: of one app. `tags`: those that have all of these."""
        return iter(BoundTwin(_listed)(app_id, tags))

    async def aio(self, *, app_id: str | None = None, tags: Mapping[str, str] | None = None) -> AsyncIterator[Sandbox]:
        for sandbox in await BoundTwin(_listed).aio(app_id, tags):
            yield sandbox


def _listed(app_id: str | None, tags: Mapping[str, str] | None) -> Steps[Sequence[Sandbox]]:
    reply = yield Ask("sandbox_list", {"app_id": app_id, "tags": dict(tags or {})})
    return [Sandbox(row["sandbox_id"]) for row in reply["sandboxes"]]


Sandbox.create = BoundTwin(_create)
Sandbox.from_id = BoundTwin(_from_id)
Sandbox.list = _List()


class _Log:
    """stdout or stderr of a sandbox's own program: lines of its log, which outlives it."""

    def __init__(self, sandbox: Sandbox, stream: int) -> None:
        self._sandbox = sandbox
        self._stream = stream

    def _look(self, place: _Place, seconds: float | None) -> Steps[tuple[Sequence[str], _Place | None, float]]:
        """The next lines, the place behind them (None: these were the last), and how long to wait before the next look.
        Waits `seconds` for its end first."""
        yield from self._sandbox._ask_code(seconds)
        ended = self._sandbox._code is not None
        asked = {"sandbox_id": self._sandbox.object_id, "stream": self._stream, **place}
        reply = yield Ask("sandbox_log", asked)
        if reply["lost"]:
            warnings.warn(
                f"{self._sandbox.object_id} has printed more than is kept: the newest output of its app, as much as "
                "`lorry config` says with log_limit. For programs that print a lot use exec(), whose output waits",
                UserWarning,
                stacklevel=2,
            )
        place = {"file": reply["file"], "offset": reply["offset"]}
        return reply["lines"], None if ended and reply["end"] else place, LOG_POLL if reply["end"] else 0.0

    _lines = twin(_look)

    def _read(self) -> Steps[str]:
        """All of it, once it has ended."""
        pieces: list[str] = []
        place: _Place | None = {}
        while place is not None:
            lines, place, _ = yield from self._look(place, None)
            pieces += lines
        return "".join(pieces)

    read = twin(_read)

    def __iter__(self) -> Iterator[str]:
        """Lines as they come."""
        place: _Place | None = {}
        pause = 0.0
        while place is not None:
            lines, place, pause = self._lines(place, pause)
            yield from lines

    async def __aiter__(self) -> AsyncIterator[str]:
        place: _Place | None = {}
        pause = 0.0
        while place is not None:
            lines, place, pause = await self._lines.aio(place, pause)
            for line in lines:
                yield line
