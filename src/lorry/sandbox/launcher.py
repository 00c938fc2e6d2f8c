"""The program that becomes a sandbox. Standard library only, one thread, started by `spawn.py`.

A, a child of the server, joins the cgroup, makes namespaces and mounts, forks B and ends when all is handed
over. B is the sandbox's pid 1 (without namespaces: its subreaper). It starts C, the program, reaps every
child, records how C ended and ends with the same code. There is no parent-death signal: a sandbox outlives
the server.

stdin: 4 bytes of length, a marshalled LaunchConfig (json costs 5 ms of imports), then b"g" once the server
holds a pidfd of B; end of file instead means that the server died, and C is never started. stdout: `pid <B>`,
then either end of file (C was executed: the descriptor closes on exec) or `error`, errno, step and text on
lines of their own.

Danger: after the root has changed the standard library is gone. Whatever runs later must be imported at the
top.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` itself builds enums, which costs 2 ms
import ctypes
import marshal
import os
import resource
import sys

from . import seccomp
from .mounts import NODEV, NOEXEC, NOSUID, O_PATH, Progress, at, build_root, enter_root, libc, mount, must, write
from .privileges import become_builder, drop_privileges, leave_root, make_namespaces, map_ids, map_ranges

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from .spawn import LaunchConfig

SET_SUBREAPER, CLONE3, CLONE_INTO_CGROUP = 36, 435, 0x200000000


def execute(config: LaunchConfig, files: list[int]) -> NoReturn:
    """C. All descriptors but 0, 1 and 2 close on exec, the report too: that is how the server learns of
    success."""
    at(f"entering the working directory {config['cwd']}")
    os.setsid()
    os.umask(0o022)
    os.chdir(config["cwd"])
    for number in range(1, 32):
        if number not in (_signal.SIGKILL, _signal.SIGSTOP):
            _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
    for fd, file in enumerate(files):
        os.dup2(file, fd)
    for which, limit in config["rlimits"]:
        resource.setrlimit(which, (limit, limit))
    if config["isolate"] and not config["wrapper"]:
        at("installing the filter of system calls")
        lenient = config["template"] or config["build"]
        seccomp.install(seccomp.TEMPLATE if lenient else seccomp.CONTAINER)
    if not config["argv"]:
        os._exit(0)  # a probe
    at(f"executing {config['argv'][0]}")
    replace(config["argv"], config["env"])


def replace(argv: list[str], env: dict[str, str]) -> NoReturn:
    """os.execvpe would import `warnings`, which is out of reach by now."""
    folders = [""] if "/" in argv[0] else env.get("PATH", "/usr/local/bin:/usr/bin:/bin").split(":")
    error: OSError = FileNotFoundError(2, os.strerror(2))
    for folder in folders:
        try:
            os.execve(os.path.join(folder, argv[0]), argv, env)  # noqa: S606
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as e:
            error = e
    raise error


def sweep(program: int) -> None:
    """Without a pid namespace: ends what the program left behind. Orphans come to this process, their
    subreaper."""
    try:  # noqa: SIM105 - no contextlib in here
        os.killpg(program, _signal.SIGKILL)
    except OSError:
        pass
    while True:
        try:
            with open(f"/proc/self/task/{os.getpid()}/children") as file:
                for child in file.read().split():
                    os.kill(int(child), _signal.SIGKILL)
            os.wait()
        except OSError:
            return


def await_forks() -> None:
    """A template has ended; the containers that it forked are this process's children now, and end with it."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


def supervise(program: int, record: int, isolate: bool, template: bool) -> NoReturn:
    cpu, peak, pid, status = 0.0, 0, 0, 0
    while pid != program:
        pid, status, used = os.wait4(-1, 0)
        cpu, peak = cpu + used.ru_utime + used.ru_stime, max(peak, used.ru_maxrss)
    if not isolate:
        sweep(program)
    code = os.waitstatus_to_exitcode(status)
    os.write(record, f"{code} {peak} {cpu:.3f}\n".encode())
    if template:
        await_forks()
    os._exit(code if code >= 0 else 128 - code)


def become_inner_init(files: list[int]) -> None:
    """The first process of a build's own pid namespace. Returns in its child, which becomes the program."""
    at("mounting the build's /proc")
    mount("proc", "/proc", "proc", NOSUID | NODEV | NOEXEC)
    program = os.fork()
    if program == 0:
        return
    for fd in range(3):
        os.dup2(files[0], fd)
    os.closerange(3, 256)
    pid, status = 0, 0
    while pid != program:
        pid, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def become_init(config: LaunchConfig, ready: int, go: int, files: list[int], record: int) -> NoReturn:
    """B. Where bubblewrap has made the sandbox, it has also given up the privileges."""
    isolate = config["isolate"]
    own = isolate and not config["wrapper"]
    for number in (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM):
        _signal.signal(number, _signal.SIG_IGN)
    if own:
        enter_root(config["root"])
        leave_root(config)
    elif not isolate and sys.platform == "linux":
        must(libc.prctl(SET_SUBREAPER, 1, 0, 0, 0))
    os.write(ready, b"r")
    if os.read(go, 1) != b"g":
        os._exit(1)
    if own:
        (become_builder if config["build"] else drop_privileges)(config)
    at("forking the program")
    program = os.fork()
    if program == 0:
        if config["build"]:
            become_inner_init(files)
        execute(config, files)
    for fd in range(3):
        os.dup2(files[0], fd)
    os.closerange(3, record)
    os.closerange(record + 1, 256)
    supervise(program, record, isolate, config["template"])


def fork_init(config: LaunchConfig) -> int:
    """os.fork, straight into a version 2 control group where there is one: a process that moves itself there
    waits for an RCU grace period, 8-15 ms. What os.fork does besides is for threads, and there is only this
    one."""
    at("forking the sandbox's first process")
    if not config["clone_into"]:
        return os.fork()
    group = os.open(config["clone_into"], O_PATH | os.O_DIRECTORY)
    arguments = (ctypes.c_uint64 * 11)(CLONE_INTO_CGROUP, 0, 0, 0, _signal.SIGCHLD, 0, 0, 0, 0, 0, group)
    # PyDLL keeps the interpreter's lock over the call: in the child nobody could give it back.
    init: int = ctypes.PyDLL(None).syscall(CLONE3, arguments, ctypes.sizeof(arguments))
    if init >= 0:
        os.close(group)
        return init
    write(f"{config['clone_into']}/cgroup.procs", "0")  # before Linux 5.7, or forbidden by a seccomp filter
    return os.fork()


def launch(config: LaunchConfig, report: int) -> None:
    """A."""
    for path in config["joins"]:
        at(f"joining {path}")
        write(path, "0")
    if sys.platform == "linux":
        write("/proc/self/oom_score_adj", "200")  # a full machine should lose a container, not its server
    at("opening the container's folder")
    files = [os.open(path, os.O_RDWR) for path in (os.devnull, *config["outputs"])]
    record = os.open(config["record"], os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    if config["wrapper"]:
        launch_wrapped(config, files, record, report)
        return
    proc = -1
    if config["isolate"]:
        make_namespaces(config)
        build_root(config)
        proc = os.open("/proc", O_PATH | os.O_DIRECTORY)  # B changes A's root with its own
    ready, tell_ready = os.pipe()
    wait_go, go = os.pipe()
    init = fork_init(config)
    if init == 0:
        os.close(go)
        become_init(config, tell_ready, wait_go, files, record)
    os.close(tell_ready)
    os.write(report, f"pid {init}\n".encode())
    if os.read(ready, 1) == b"r" and os.read(0, 1) == b"g":
        if config["isolate"] and config["owner"] is not None:
            if config["ids"]:
                map_ranges(str(init), config["ids"], dir_fd=proc)
            else:
                map_ids(str(init), config["owner"], config["owner"], dir_fd=proc)
        os.write(go, b"g")


def launch_wrapped(config: LaunchConfig, files: list[int], record: int, report: int) -> None:
    """The rest of A's work, where bubblewrap makes the sandbox."""
    from .wrapping import leave, start_wrapped  # A's own root stays what it is

    ready, tell_ready = os.pipe()
    wait_go, go = os.pipe()
    init, monitor = start_wrapped(
        config, lambda: fork_init(config), ready, [tell_ready, wait_go, record, report, *files]
    )
    os.write(report, f"pid {init}\n".encode())
    if os.read(0, 1) == b"g":
        os.write(go, b"g")
    leave(monitor)


def report_error(error: Exception, report: int) -> NoReturn:
    """In A, B and C alike: whoever fails says so."""
    number, text = 0, f"{type(error).__name__}: {error}"
    if isinstance(error, OSError):
        number, text = error.errno or 0, error.strerror or text
    os.write(report, f"error\n{number}\n{Progress.step}\n{text}\n".encode())
    os._exit(1)


def main() -> None:
    size, data = int.from_bytes(os.read(0, 4), "little"), b""
    while len(data) < size:
        data += os.read(0, size - len(data)) or sys.exit(1)
    report = os.dup(1)
    try:
        launch(marshal.loads(data), report)  # noqa: S302 - it comes from our parent
    except Exception as e:
        report_error(e, report)
    os._exit(0)
