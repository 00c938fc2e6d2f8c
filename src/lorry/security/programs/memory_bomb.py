"""Takes three times as much memory as its limit allows."""

import json
import sys

mebibytes = 3 * json.loads(sys.argv[1])["mebibytes"]
taken = bytearray(mebibytes << 20)
taken[:: 1 << 12] = b"x" * len(taken[:: 1 << 12])
print(f"succeeded: took {mebibytes} MiB")
