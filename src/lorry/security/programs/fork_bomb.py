"""Has three times as many processes as its limit allows."""

import json
import os
import signal
import sys

children: list[int] = []
try:
    for _ in range(3 * json.loads(sys.argv[1])["pids"]):
        child = os.fork()
        if child == 0:
            signal.pause()
        children.append(child)
    print(f"succeeded: {len(children)} processes")
except OSError:
    pass
for child in children:
    os.kill(child, signal.SIGKILL)
