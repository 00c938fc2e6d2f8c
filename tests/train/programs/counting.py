"""Training without torch: python counting.py FOLDER STEPS SECONDS-PER-STEP [word…]. Prints what a test waits for."""

import contextlib
import os
import random
import signal
import sys
import time

import lorry

folder, steps, pause, *words = sys.argv[1:]
state = {"sum": 0.0}


def say(text):
    print(text, flush=True)


def wait():
    """In small pieces: Python would see a signal that comes just before a long sleep only after it."""
    for _ in range(6000):
        time.sleep(0.01)


if "handler" in words:
    signal.signal(signal.SIGTERM, lambda number, frame: say("the program's own handler"))
run = lorry.run(folder, every=2 if "slow disk" in words else 1000)
run.track(state=state)
say(f"restored {run.restore()} at {run.step_number}")
if "slow disk" in words:
    run._store.commit = lambda *_: say("saving") or time.sleep(60)
if "fork" in words and not os.fork():
    say(f"fork {os.getpid()}")
    wait()
    os._exit(1)
with run if "with" in words else contextlib.nullcontext():
    while run.step_number < int(steps):
        state["sum"] += random.Random(run.step_number).random()
        if run.step_number == 1:
            say("training")
        if "stuck" in words and run.step_number == 2:
            say("stuck")
            wait()
        time.sleep(float(pause))
        run.step(sum=state["sum"])
if "exception" in words:
    raise RuntimeError("a bug in the program")
say(f"sum {state['sum']:.12f}")
