"""Replaces a file of the code that the platform runs in every container."""

import contextlib
import ctypes
import json
import os
import sys
from pathlib import Path

REMOUNT_BIND = 0x1020
runner = Path(json.loads(sys.argv[1])["runner"])
libc = ctypes.CDLL(None, use_errno=True)
libc.mount(None, str(runner.parent).encode(), None, ctypes.c_ulong(REMOUNT_BIND), None)
with contextlib.suppress(OSError):
    runner.chmod(0o666)
with contextlib.suppress(OSError):
    runner.write_text("owned")
with contextlib.suppress(OSError):
    other = runner.with_suffix(".new")
    other.write_text("owned")
    os.replace(other, runner)
if runner.read_text() == "owned":
    print(f"succeeded: replaced {runner}")
