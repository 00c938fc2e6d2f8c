"""Attaches to the neighbour as a debugger."""

import ctypes
import json
import os
import sys
from pathlib import Path

ATTACH, DETACH = 16, 17
facts = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
pids = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
for pid in {*pids, facts["pid"]} - {os.getpid()}:
    try:
        theirs = facts["mark"].encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        continue
    if theirs and libc.ptrace(ATTACH, pid, None, None) == 0:
        os.waitpid(pid, 0x40000000)  # __WALL
        libc.ptrace(DETACH, pid, None, None)
        print(f"succeeded: traced {pid}")
        break
