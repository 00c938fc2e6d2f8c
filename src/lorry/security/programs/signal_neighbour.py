"""Kills the neighbour. Only a process with its mark is ever signalled."""

import json
import os
import signal
import sys
from pathlib import Path

facts = json.loads(sys.argv[1])
pids = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
for pid in {*pids, facts["pid"]} - {os.getpid()}:
    try:
        if facts["mark"].encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
            print(f"succeeded: killed {pid}")
            break
    except OSError:
        continue
