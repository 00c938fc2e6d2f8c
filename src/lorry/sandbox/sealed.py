"""The interpreter that executes the launcher: a sealed copy in memory where the file belongs to the server's own user.

What a sandbox executes may be a script whose first line is `#!/proc/self/exe` (as in CVE-2019-5736): the kernel then
executes the launcher's program once more, and its name in /proc leads to the host's file through the host's mount,
which is writable. In the sandbox of an ordinary user that file's owner could change it, and with it every Python of
that user.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import sys

KEPT_ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
SEALS = 0x1 | 0x2 | 0x4 | 0x8
"""F_SEAL_SEAL, _SHRINK, _GROW, _WRITE: for ever."""
CLOEXEC, ALLOW_SEALING, EXECUTABLE = 0x1, 0x2, 0x10


def interpreter(seals: bool) -> str:
    """The path to execute under the name `sys.executable`, by children of this process. `seals`: what comes into the
    sandbox has the launcher's user id, and fewer rights."""
    sealed = _sealed(os.path.realpath(sys.executable)) if seals else None
    return sys.executable if sealed is None else f"/proc/{os.getpid()}/fd/{sealed}"


def environment(seals: bool) -> dict[str, str]:
    """What an interpreter needs to find its own libpython. The program gets nothing of it."""
    kept = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
    if interpreter(seals) != sys.executable:  # a libpython beside it would be looked for beside /proc
        beside = [f"{sys.base_prefix}/lib", *filter(None, [kept.get("LD_LIBRARY_PATH")])]
        kept["LD_LIBRARY_PATH"] = ":".join(beside)
    return kept


@functools.cache
def _sealed(path: str) -> int | None:
    """A descriptor that stays open. None: nobody but another user can change the file, or there are no such copies."""
    if sys.platform != "linux" or os.stat(path).st_uid != os.geteuid():
        return None
    flags = CLOEXEC | ALLOW_SEALING
    try:
        copy = os.memfd_create("python", flags | EXECUTABLE)
    except OSError as e:
        if e.errno != errno.EINVAL:  # vm.memfd_noexec=2: nothing in memory is executed on this machine
            return None
        copy = os.memfd_create("python", flags)  # before Linux 6.3
    with open(path, "rb") as file:
        while os.sendfile(copy, file.fileno(), None, 1 << 30):
            pass
    os.fchmod(copy, 0o555)
    fcntl.fcntl(copy, fcntl.F_ADD_SEALS, SEALS)
    return copy
