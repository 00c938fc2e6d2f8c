"""Raises its own hard limit of open files, and opens more than that."""

import os
import resource

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard + 64, hard + 64))
    for _ in range(hard + 8):
        os.open(os.devnull, os.O_RDONLY)
    print(f"succeeded: more than {hard} files")
except (OSError, ValueError):
    pass
