"""Writes three times as much to /dev/shm as its memory limit allows."""

import json
import os
import sys
import tempfile

mebibytes = 3 * json.loads(sys.argv[1])["mebibytes"]
with tempfile.TemporaryFile(dir="/dev/shm", buffering=0) as file:
    for _ in range(mebibytes):
        os.write(file.fileno(), bytes(1 << 20))
    if file.tell() == mebibytes << 20:
        print(f"succeeded: wrote {mebibytes} MiB")
