"""Functions that tell whether they are forks of one process."""

import os
import random
import subprocess
import uuid

import lorry

app = lorry.App("forking")
IMPORTED = uuid.uuid4().hex
count = 0


@app.function(scaledown_window=2)
def look(_=0) -> dict[str, object]:
    global count
    count += 1
    before = os.listdir("/tmp") + os.listdir("/root")
    for folder in ("/tmp", "/root", "/dev/shm"):
        with open(f"{folder}/left-behind", "w") as file:
            file.write("x")
    return {
        "imported": IMPORTED,
        "count": count,
        "before": before,
        "shm": os.listdir("/dev/shm"),
        "others": os.listdir("/run/containers"),
        "mounts": os.readlink("/proc/self/ns/mnt"),
        "random": random.random(),
        "threads": os.environ["OMP_NUM_THREADS"],
        "capabilities": [line for line in open("/proc/self/status") if line.startswith("Cap")],
        "environ": b"LORRY_APP_ID" in open("/proc/self/environ", "rb").read(),
        "container": os.environ["LORRY_CONTAINER_ID"],
    }


@app.function(single_use_containers=True)
def alone(_=0) -> dict[str, object]:
    return look.local()


@app.function()
def mount_something() -> int:
    return subprocess.run(["unshare", "--user", "--mount", "true"], capture_output=True, check=False).returncode


@app.function(retries=0)
def leave(code: int) -> None:
    os._exit(code)


@app.function(timeout=60)
def wait_for(folder: str) -> str:
    open(f"{folder}/waiting", "w").close()
    while not os.path.exists(f"{folder}/go"):
        os.sched_yield()
    return IMPORTED


@app.function()
def daemon(seconds: str) -> None:
    """A grandchild in a session of its own."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvp("sleep", ["sleep", seconds])
        os._exit(0)


@app.cls(single_use_containers=True)
class Model:
    @lorry.enter(snap=True)
    def load(self) -> None:
        self.weights = uuid.uuid4().hex

    @lorry.enter()
    def connect(self) -> None:
        self.connection = uuid.uuid4().hex

    @lorry.method()
    def state(self, _=0) -> tuple[str, str]:
        return self.weights, self.connection
