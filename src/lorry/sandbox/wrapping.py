"""The launcher's work where bubblewrap makes the namespaces: its argument line, and the first process inside.

Part of the launcher (see there): standard library only. A starts bubblewrap (M), which makes namespaces and mounts and
executes this module as pid 1 of the sandbox; from there B's and C's code is the launcher's own. Once B lives, M has
nothing more to do and is killed: B becomes the server's child, as in the other tiers.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import marshal
import os
import sys

from . import seccomp
from .mounts import RDONLY, at, libc, must

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .spawn import LaunchConfig

INSIDE = "/run/launcher"
"""Where the sandbox shows the folder of these modules."""
PROGRAM = f"import sys; sys.path.append({INSIDE!r}); from sandbox.wrapping import main; main()"
SET_DUMPABLE = 4
FIXED = (
    *("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try"),
    *("--disable-userns", "--uid", "0", "--gid", "0", "--cap-drop", "ALL", "--new-session", "--as-pid-1"),
)
MESSAGES = 4096


def mount_arguments(steps: list[tuple[str, str, str, int]], data: Callable[[bytes], int]) -> list[str]:
    """bubblewrap's words for `rootfs.plan`; `data` keeps bytes in a descriptor. /dev is bubblewrap's own, with the GPUs
    and a /dev/shm of the wanted size."""
    words: list[str] = []
    for verb, target, what, number in steps:
        if target == "/proc":
            words += ["--proc", target]
        elif target == "/dev":
            words += ["--dev", target]
        elif verb == "tmpfs":
            options = dict(option.split("=") for option in what.split(","))
            size = int(options["size"].removesuffix("m")) << 20
            words += ["--perms", options["mode"], "--size", str(size), "--tmpfs", target]
        elif target.startswith("/dev/nvidia"):
            words += ["--dev-bind", what, target]
        elif target.startswith("/dev/"):
            continue
        elif verb == "bind":
            words += ["--ro-bind" if number & RDONLY else "--bind", what, target]
        elif verb == "dir":
            words += ["--perms", f"{number:o}", "--dir", target]
        elif verb == "link":
            words += ["--symlink", what, target]
        elif verb == "file":
            words += ["--perms", "644", "--file", str(data(what.encode())), target]
        else:
            raise OSError(0, f"the sandbox tier bwrap cannot mount a file system of type {verb}")
    return [*words, "--remount-ro", "/dev", "--remount-ro", "/"]


def arguments(config: LaunchConfig, inside: int, info: int, data: Callable[[bytes], int]) -> list[str]:
    words = [config["wrapper"], *FIXED, "--hostname", config["hostname"], "--info-fd", str(info)]
    if config["block_network"]:
        words.append("--unshare-net")
    if seccomp.is_known():
        words += ["--seccomp", str(data(seccomp.program(seccomp.CONTAINER)))]
    python = os.path.realpath(sys.executable)
    return [*words, *mount_arguments(config["steps"], data), "--", python, "-I", "-S", "-c", PROGRAM, str(inside)]


def memory(content: bytes) -> int:
    """A descriptor that bubblewrap inherits and reads from its beginning."""
    fd = os.memfd_create("lorry", 0)
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def start_wrapped(config: LaunchConfig, fork: Callable[[], int], ready: int, kept: list[int]) -> tuple[int, int]:
    """Host pids of B, which has said that it is ready, and of M. `kept`: descriptors for B, `tell_ready` first.
    Raises OSError with bubblewrap's own words."""
    at("making the sandbox with bubblewrap")
    info, tell_info = os.pipe()
    messages, tell_messages = os.pipe()
    # `steps` has done its work then, and may be large.
    inside = memory(marshal.dumps((dict(config) | {"steps": []}, kept)))
    words = arguments(config, inside, tell_info, memory)
    monitor = fork()
    if monitor == 0:
        for fd in (*kept, tell_info):
            os.set_inheritable(fd, True)
        os.dup2(tell_messages, 2)
        os.execve(words[0], words, {})  # noqa: S606
    for fd in (tell_info, tell_messages, kept[0]):
        os.close(fd)
    _, _, pid = os.read(info, MESSAGES).partition(b'"child-pid":')
    if os.read(ready, 1) != b"r" or not pid:
        os.waitpid(monitor, 0)
        text = os.read(messages, MESSAGES).decode(errors="replace").strip().removeprefix("bwrap: ")
        if text.startswith("Can't "):
            at("mounting with bubblewrap")
        raise OSError(number_in(text), text or "it ended without a word")
    return int(pid.split(b"\n")[0].strip(b" ,}")), monitor


def number_in(text: str) -> int:
    """The errno that a message ends with, by its words; 0 if it is none."""
    return next((number for number in range(1, 134) if text.endswith(os.strerror(number))), 0)


def leave(monitor: int) -> None:
    """B stays: it does not ask to die with its parent."""
    os.kill(monitor, _signal.SIGKILL)
    os.waitpid(monitor, 0)


def main() -> None:
    """B, inside. Its only argument: the descriptor with what `start_wrapped` keeps for it."""
    from .launcher import become_init, report_error

    fd = int(sys.argv[1])
    with open(fd, "rb") as file:
        config, (ready, go, record, report, *files) = marshal.loads(file.read())  # noqa: S302 - it comes from A
    for kept in (ready, go, record, report, *files):
        os.set_inheritable(kept, False)
    try:
        # Its memory and descriptors are closed to the program, which has the same user id. exec resets it.
        must(libc.prctl(SET_DUMPABLE, 0, 0, 0, 0))
        become_init(config, ready, go, files, record)
    except Exception as e:
        report_error(e, report)
