"""The attacks on a sandbox, and what is expected of each tier.

Each is a small program in `programs`, run inside a real container by `ground.py`; it prints a line that starts with
"succeeded" if it has got what it came for. In the tier `process` it must succeed, or the entry says why it cannot: a
broken attack would look like a good wall.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lorry.sandbox.interface import Feature

PROGRAMS = Path(__file__).parent / "programs"
HERE = "process"
"""The tier that separates lives, not rights: where attacks prove that they work."""
SUCCEEDED, CANNOT = "succeeded", "cannot"
"""How the line of an attack begins that has succeeded, or that had no chance to try."""
FORKING = frozenset({"namespaces"})
"""Tiers whose containers are forks of templates; in the others siblings are neighbours."""
EVERYWHERE = frozenset({"namespaces", "bwrap", HERE})


class Verdict(StrEnum):
    STOPPED = "stopped"
    """It did not get what it came for, and what stopped it is a wall of the kernel."""
    SOFT = "soft"
    """It gets something: the limit is one per process, or a watch that acts within seconds."""
    NOT_STOPPED = "not stopped"
    UNKNOWN = "cannot be measured here"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    name: str
    program: str
    """A file of `programs`, without its ending."""
    target: str = ""
    """What of the ground it is told of; see `ground.py`."""
    script: bool = False
    """It is executed as a script, by the interpreter that its first line names: whoever executes it."""
    block_network: bool = False
    limited_by: Feature | None = None
    """Control groups stop it where they give this; without them it is soft."""
    watched: bool = False
    """No wall stops it, the server's watch ends it: soft."""
    scoped: bool = False
    """In a fork of a template only Landlock stops it, where the kernel has that."""
    open_in: frozenset[str] = frozenset()
    """Tiers that do not stop it, by design; `note` says why."""
    root_only: bool = False
    """In the tier `process` it needs a server that is root: an ordinary user may not do it anyway."""
    cannot: str = ""
    """Why it cannot succeed in the tier `process` either."""
    note: str = ""

    def expected(self, tier: str, *, groups: frozenset[Feature], root: bool, scopes: bool = True) -> Verdict:
        """`groups`: what control groups limit; `scopes`: the kernel confines signals."""
        if tier == HERE:
            if self.cannot or (self.root_only and not root):
                return Verdict.STOPPED
            return Verdict.SOFT if self.watched else Verdict.NOT_STOPPED
        if tier in self.open_in or (self.scoped and tier in FORKING and not scopes):
            return Verdict.NOT_STOPPED
        if self.watched or (self.limited_by is not None and self.limited_by not in groups):
            return Verdict.SOFT
        return Verdict.STOPPED

    def judge(self, tier: str, line: str, *, groups: frozenset[Feature]) -> Verdict:
        """What a run has shown. `line`: its own word; `groups`: what control groups limit on this machine."""
        if line.startswith(SUCCEEDED):
            return Verdict.SOFT if self.watched else Verdict.NOT_STOPPED
        if line.startswith(CANNOT):
            return Verdict.UNKNOWN
        soft = tier != HERE and self.limited_by is not None and self.limited_by not in groups
        return Verdict.SOFT if soft else Verdict.STOPPED


ATTACKS = (
    Attack(name="read the server's database", program="read_file", target="database"),
    Attack(name="read another app's volume", program="read_file", target="foreign"),
    Attack(name="read the user's home", program="read_file", target="home"),
    Attack(name="read the server's environment", program="read_environment", target="server"),
    Attack(name="read another function's secrets", program="read_environment", target="neighbour"),
    Attack(name="read another function's memory", program="read_memory", target="neighbour"),
    Attack(name="trace a neighbour (ptrace)", program="trace", target="neighbour"),
    Attack(name="kill a neighbour", program="signal_neighbour", target="neighbour"),
    Attack(name="read a sibling's memory", program="read_memory", target="sibling"),
    Attack(
        name="kill a sibling or their template",
        program="signal_neighbour",
        target="sibling",
        scoped=True,
        note="forks of one function version: Landlock stops it since Linux 6.12, nothing does before",
    ),
    Attack(name="take an open file of the server", program="server_descriptor", target="server"),
    Attack(name="write outside the declared mounts", program="write_file", target="outside"),
    Attack(name="write to a read-only mount", program="write_file", target="frozen"),
    Attack(name="replace the runner's files", program="replace_runner"),
    Attack(name="replace the server's interpreter", program="replace_interpreter", target="interpreter"),
    Attack(
        name="replace it through #!/proc/self/exe", program="replace_interpreter", target="interpreter", script=True
    ),
    Attack(name="mount a file system", program="mount"),
    Attack(name="nested namespaces", program="nest"),
    Attack(name="reach keyrings, bpf, io_uring and the like", program="kernel_interfaces"),
    Attack(name="change a setting of the kernel", program="kernel_setting", root_only=True),
    Attack(name="open a disk of the machine", program="raw_disk", root_only=True),
    Attack(name="keep running after stop", program="outlive"),
    Attack(
        name="fork bomb",
        program="fork_bomb",
        limited_by=Feature.PIDS_LIMIT,
        note="without control groups: a limit per user namespace",
    ),
    Attack(
        name="memory bomb",
        program="memory_bomb",
        limited_by=Feature.MEMORY_LIMIT,
        note="without control groups: a limit per process, and the server's watch over their sum",
    ),
    Attack(name="fill /dev/shm", program="shared_memory_bomb"),
    Attack(
        name="fd bomb",
        program="descriptor_bomb",
        cannot="the kernel limits the open files of every process, and raising that takes a capability",
    ),
    Attack(
        name="fill the disk",
        program="fill_disk",
        watched=True,
        note="the server's watch ends it at ephemeral_disk, and starts nothing below 5 % of free space",
    ),
    Attack(name="connect anywhere under block_network", program="connect", block_network=True),
    Attack(name="abstract sockets under block_network", program="connect_abstract", block_network=True),
    Attack(
        name="connect to the machine's ports",
        program="connect",
        open_in=EVERYWHERE,
        note="containers share the machine's network unless block_network=True",
    ),
    Attack(
        name="abstract sockets of the machine",
        program="connect_abstract",
        open_in=EVERYWHERE,
        note="they belong to the network: block_network=True",
    ),
)

SERVER_ATTACKS = (
    "use a container's token for an administrative verb",
    "use another owner's object with a container's token",
    "ask anything at all under restrict_access",
    "symlink and .. out of a volume",
    "symlink and .. out of an uploaded archive",
    "10 GB to stdout",
    "poisoned pickle as a result",
    "find a secret in a file, a log or an answer",
)
"""What the server itself stops, the same in every tier that isolates: run through a real server by the test suite
(tests/security), not by `lorry doctor`. In the tier `process` a program may use the server's own socket and files."""


def column(tier: str) -> str:
    return tier if tier == HERE else f"{tier} ({'root' if os.geteuid() == 0 else 'user'})"


COLUMNS = ("namespaces (root)", "namespaces (user)", "bwrap (user)", HERE)
