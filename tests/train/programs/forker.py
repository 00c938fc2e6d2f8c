"""Forks one process per line of stdin, waits for it, and says how it ended. It has imported torch, on one thread."""

import atexit
import gc
import importlib
import json
import os
import select
import signal
import sys
import tempfile
import time
import traceback

import torch

torch.set_num_threads(1)
torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # the first one imports more than torch itself does
gc.freeze()


def attempt(order):
    """In the fork: everything from here on is what a program of its own would do."""
    os.environ["LORRY_FAULT"] = order["fault"]
    from lorry import faults

    importlib.reload(faults)
    program = importlib.import_module(order["program"])
    program.train(order["folder"], **order["options"])
    atexit._run_exitfuncs()  # what the end of a program does for a run; taking torch down takes seconds
    os._exit(0)


def run(order):
    if order["warm"]:
        importlib.import_module(order["program"])
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if not child:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            sys.stdin = open(os.devnull)
            try:
                attempt(order)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
        handle = os.pidfd_open(child)
        limit = 60 if order["kill_after"] is None else order["kill_after"]
        if not select.select([handle], [], [], limit)[0]:
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.close(handle)
        seconds = time.monotonic() - began
        said.seek(0)
        return {"status": status, "seconds": seconds, "said": said.read()}


for line in sys.stdin:
    print(json.dumps(run(json.loads(line))), flush=True)
os._exit(0)
