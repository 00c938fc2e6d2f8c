"""Opens a disk of the machine, past its file systems; nothing is read."""

import contextlib
import os
import stat
import tempfile
from pathlib import Path

node = f"{tempfile.mkdtemp()}/node"
made = False
rows = [line.split() for line in Path("/proc/partitions").read_text().splitlines()[2:]]
for major, minor, _, name in rows:
    with contextlib.suppress(OSError):
        os.mknod(node, 0o600 | stat.S_IFBLK, os.makedev(int(major), int(minor)))
        made = True
    for path in (f"/dev/{name}", node):
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_RDONLY))
            print(f"succeeded: opened {path}")
            raise SystemExit
    with contextlib.suppress(OSError):
        os.unlink(node)
if made:
    print("cannot: this machine's control group of devices forbids it to root itself")
