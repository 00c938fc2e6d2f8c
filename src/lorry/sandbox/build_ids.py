"""The user and group ids that an image build has to itself: apt and dpkg give files to many users."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

FIRST = 1_900_000_000
"""Host id of a build's id 1, for a server that is root. systemd documents 1879048192-2147352575 as unused."""
COUNT = 65_535
"""Ids besides 0: as many as a distribution uses, `nogroup` included."""

Ids = tuple[tuple[int, int, int], ...]
"""(first inside, first outside, how many); the same for uids and gids, except that 0 is the user's own group."""


def build_ids(owner: int | None) -> Ids:
    """`owner`: the host uid of a root server's sandboxes. Empty: this user has no such range, `no_ids` says why."""
    if owner is not None:
        return ((0, owner, 1), (1, FIRST, COUNT)) if _mapped(FIRST + COUNT) else ()
    first = _subordinate()
    return () if first is None or not _tools() else ((0, os.getuid(), 1), (1, first, COUNT))


def no_ids(owner: int | None) -> str:
    """Why `build_ids` is empty and what to do, as the end of a sentence; empty if it is not."""
    if build_ids(owner):
        return ""
    if owner is not None:
        return f"the user namespace that the server runs in has no ids from {FIRST} on: run it outside of one"
    user = _user_name()
    if not _tools():
        return "newuidmap and newgidmap are missing (Debian, Ubuntu: apt-get install uidmap; Fedora: shadow-utils)"
    return (
        f"the user {user} has no subordinate ids: "
        f"`usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}` as root, or run the server as root"
    )


def _tools() -> bool:
    return all(shutil.which(name, path="/usr/bin") for name in ("newuidmap", "newgidmap"))


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _subordinate() -> int | None:
    """The first id of a range that is long enough and the same in both tables."""
    uids, gids = (_ranges(Path("/etc", table)) for table in ("subuid", "subgid"))
    return min(uids & gids, default=None)


def _ranges(table: Path) -> set[int]:
    try:
        rows = [line.split(":") for line in table.read_text().splitlines() if line.count(":") == 2]
    except OSError:
        return set()
    names = {_user_name(), str(os.getuid())}
    return {int(first) for name, first, count in rows if name in names and int(count) >= COUNT}


def _mapped(last: int) -> bool:
    for table in ("uid_map", "gid_map"):
        rows = (map(int, line.split()) for line in Path("/proc/self", table).read_text().splitlines())
        if not any(first <= FIRST and last <= first + count for first, _outside, count in rows):
            return False
    return True
