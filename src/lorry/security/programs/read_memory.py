"""Looks for a value in the writable memory of the neighbour."""

import hashlib
import json
import re
import sys
from pathlib import Path

MOST = 64 << 20
facts = json.loads(sys.argv[1])


def search(process: Path) -> bool:
    with open(process / "maps") as maps, open(process / "mem", "rb", buffering=0) as memory:
        for line in maps:
            span, rights = line.split()[:2]
            start, end = (int(number, 16) for number in span.split("-"))
            if not rights.startswith("rw") or end - start > MOST:
                continue
            try:
                memory.seek(start)
                words = re.findall(rb"canary-[0-9a-f]{32}", memory.read(end - start))
            except OSError:
                continue
            if any(hashlib.sha256(word).hexdigest() == facts["digest"] for word in words):
                return True
    return False


for process in Path("/proc").glob("[0-9]*"):
    try:
        if facts["mark"].encode() in (process / "cmdline").read_bytes() and search(process):
            print(f"succeeded: read {process}/mem")
            break
    except OSError:
        continue
