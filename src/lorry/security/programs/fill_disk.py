"""Writes to /tmp what no limit of the sandbox holds back."""

import os
import tempfile

MEBIBYTES = 32
with tempfile.TemporaryFile(buffering=0) as file:
    for _ in range(MEBIBYTES):
        os.write(file.fileno(), bytes(1 << 20))
    print(f"succeeded: wrote {MEBIBYTES} MiB")
