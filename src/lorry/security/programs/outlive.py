"""Goes on after the container was stopped: a daemon that has left its session and ends who could reap it."""

import contextlib
import os
import signal

if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.pause()
    os._exit(0)
os.wait()
with contextlib.suppress(OSError):
    os.kill(os.getppid(), signal.SIGKILL)
print("the daemon runs", flush=True)
signal.pause()
