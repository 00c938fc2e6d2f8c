"""The launcher's mounts: libc by hand, and the root file system that `rootfs.plan` asks for.

Part of the launcher (see there): standard library only, and nothing may be imported once the root has
changed.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False  # `typing` costs 3 ms of the start
if TYPE_CHECKING:
    from .spawn import LaunchConfig

RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
CLOEXEC, EMPTY_PATH, RECURSIVE, ENOSYS, ELOOP = 0o2000000, 0x1000, 0x8000, 38, 40
OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 428, 429, 442
"""The same numbers on every architecture; `pivot_root` and `keyctl` are older than that agreement."""
PIVOT_ROOT, KEYCTL = {"x86_64": (155, 250), "ppc64le": (203, 271), "s390x": (217, 280)}.get(
    os.uname().machine, (41, 219)
)
O_PATH = getattr(os, "O_PATH", 0)

libc = ctypes.CDLL(None, use_errno=True)


class Progress:
    """What is being done, for the sentence of an error."""

    step = "reading the configuration"


def at(step: str) -> None:
    Progress.step = step


def must(result: int) -> int:
    """The result of a libc call; OSError with its errno if it is negative."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind, options)]
    must(libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]))


def write(path: str, text: str, dir_fd: int | None = None) -> None:
    fd = os.open(path, os.O_WRONLY, dir_fd=dir_fd)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def make_part(part: str, folder: bool, fd: int, owner: int | None) -> None:
    try:
        if folder:
            os.mkdir(part, 0o755, dir_fd=fd)
        else:
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644, dir_fd=fd))
    except FileExistsError:
        return
    if owner is not None:
        os.chown(part, owner, owner, dir_fd=fd, follow_symlinks=False)


def mount_point(root: str, target: str, directory: bool, owner: int | None) -> int:
    """A descriptor of `target` below `root`, made where missing. No component of it may be a symbolic link:
    a Volume's content belongs to user code, and a link in it must not lead this process, perhaps root,
    away."""
    fd = os.open(root, O_PATH | os.O_DIRECTORY)
    parts = target.strip("/").split("/")
    for i, part in enumerate(parts):
        folder = directory or i < len(parts) - 1
        make_part(part, folder, fd, owner)
        below = os.open(part, O_PATH | os.O_NOFOLLOW | (os.O_DIRECTORY if folder else 0), dir_fd=fd)
        os.close(fd)
        fd = below
    if os.fstat(fd).st_mode & 0o170000 == 0o120000:
        raise OSError(ELOOP, os.strerror(ELOOP))
    return fd


def bind(source: str, root: str, target: str, flags: int, owner: int | None) -> None:
    """Attributes are set on every mount of the tree before it is attached: it is never writable, not for a
    moment."""
    point = mount_point(root, target, os.path.isdir(source), owner)
    tree = libc.syscall(OPEN_TREE, -100, os.fsencode(source), 1 | CLOEXEC | RECURSIVE)
    attributes = (ctypes.c_uint64 * 4)(flags, 0, 0, 0)
    if tree >= 0 and libc.syscall(MOUNT_SETATTR, tree, b"", EMPTY_PATH | RECURSIVE, attributes, 32) >= 0:
        must(libc.syscall(MOVE_MOUNT, tree, b"", point, b"", 0x44))
    elif ctypes.get_errno() == ENOSYS:
        bind_before_linux_5_12(source, f"/proc/self/fd/{point}", os.fsencode(root + target), flags)
    else:
        must(-1)
    os.close(point)
    if tree >= 0:
        os.close(tree)


def bind_before_linux_5_12(source: str, point: str, path: bytes, flags: int) -> None:
    mount(source, point, None, BIND | REC)
    with open("/proc/self/mountinfo", "rb") as lines:
        mounts = [line.split()[4].decode("unicode_escape").encode("latin-1") for line in lines]
    for name in mounts:
        if name == path or name.startswith(path + b"/"):
            # Flags that the host set are locked in a user namespace: a remount that forgets one is refused.
            kept = os.statvfs(name).f_flag & (RDONLY | NOSUID | NODEV | NOEXEC)
            mount(None, os.fsdecode(name), None, REMOUNT | BIND | kept | flags)


def overlay_root(root: str, layers: str, owner: int | None) -> int:
    """Mounts an overlay on `root`, itself a fresh tmpfs. `layers`: lines of lower folders, topmost first, then an
    empty line, then upper and work folder; without those what is written (mount points) goes to the tmpfs.

    Returns a descriptor of that tmpfs. An ordinary user's overlay keeps its marks in user.* attributes (overlayfs(5),
    userxattr), root's in trusted.*.
    """
    lower, _, own = layers.partition("\n\n")
    upper, work = own.split("\n") if own else (f"{root}/upper", f"{root}/work")
    if not own:
        for folder in (upper, work):
            os.mkdir(folder, 0o755)
            if owner is not None:
                os.chown(folder, owner, owner)
    # By descriptor: the paths may hold commas and colons, and all options together are at most a page.
    held = [os.open(path, O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW) for path in (upper, work, *lower.split("\n"))]
    names = [f"/proc/self/fd/{fd}" for fd in held]
    options = f"upperdir={names[0]},workdir={names[1]},lowerdir={':'.join(names[2:])}"
    options += ",index=off,metacopy=off" + (",userxattr" if owner is None else "")
    base = os.open(root, O_PATH | os.O_DIRECTORY)
    mount("lorry", root, "overlay", NOSUID | NODEV, options)
    for fd in held:
        os.close(fd)
    return base


def make_inside(root: str, base: int, step: tuple[str, str, str, int], owner: int | None) -> None:
    """One step of `rootfs.plan` in the content of an image. What is there already stays. `base`: the tmpfs below."""
    verb, target, what, number = step
    if verb == "bind":
        bind(what, root, target, number, owner)
    elif verb == "dir":
        os.close(mount_point(root, target, True, owner))
    elif verb == "link":
        above, _, name = target.rpartition("/")
        folder = mount_point(root, above, True, owner)
        os.symlink(what, name, dir_fd=folder)
        os.close(folder)
    elif verb == "file":
        # Mounted over, not written: the image's own may belong to a user that has no id in here.
        name = target.replace("/", "_")
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=base)
        os.write(file, what.encode())
        os.close(file)
        bind(f"/proc/self/fd/{base}/{name}", root, target, RDONLY | NOSUID | NODEV, owner)
    else:
        point = mount_point(root, target, True, owner)
        mount(verb, f"/proc/self/fd/{point}", verb, number, what)
        os.close(point)
        if owner is not None and verb == "tmpfs":
            point = mount_point(root, target, True, owner)
            os.chown(f"/proc/self/fd/{point}", owner, owner)
            os.close(point)


def build_root(config: LaunchConfig) -> None:
    root, owner = config["root"], config["owner"]
    at("making the sandbox's root file system")
    mount(None, "/", None, REC | PRIVATE)
    mount("lorry", root, "tmpfs", NOSUID | NODEV, "size=1m,mode=755")
    base = -1
    for verb, target, what, number in config["steps"]:
        at(f"mounting {what} at {target}" if verb == "bind" else f"making {target}")
        if verb == "overlay":
            base = overlay_root(root, what, owner)
        elif base >= 0:
            make_inside(root, base, (verb, target, what, number), owner)
        elif verb == "bind":
            bind(what, root, target, number, owner)
        elif verb == "dir":
            os.mkdir(root + target, number)
        elif verb == "link":
            os.symlink(what, root + target)
        elif verb == "file":
            with open(root + target, "w") as file:
                file.write(what)
        else:
            mount(verb, root + target, verb, number, what)
    if not config["writable"]:
        at("making the sandbox's root read-only")
        mount(None, root, None, REMOUNT | BIND | RDONLY | NOSUID | NODEV)


def enter_root(root: str) -> None:
    """Only a member of the new pid namespace can mount its /proc, so this is for the first process in it."""
    at("mounting /proc")
    mount("proc", root + "/proc", "proc", NOSUID | NODEV | NOEXEC)
    at("changing the root")
    os.chdir(root)
    must(libc.syscall(PIVOT_ROOT, b".", b"."))
    must(libc.umount2(b".", 2))
    os.chdir("/")
