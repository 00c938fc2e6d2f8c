"""Opens a setting of the machine's kernel for writing; nothing is written."""

import os

for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/power/state"):
    try:
        os.close(os.open(path, os.O_WRONLY))
    except OSError:
        continue
    print(f"succeeded: opened {path}")
    break
