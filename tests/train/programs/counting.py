"""Training without torch: python counting.py FOLDER STEPS SECONDS-PER-STEP [word…]. Prints what a test waits for."""

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


if "handler" in words:
    signal.signal(signal.SIGTERM, lambda number, frame: say("the program's own handler"))
run = lorry.run(folder, every=1000)
run.track(state=state)
say(f"restored {run.restore()} at {run.step_number}")
if "fork" in words and not os.fork():
    say(f"fork {os.getpid()}")
    time.sleep(60)
    os._exit(1)
while run.step_number < int(steps):
    state["sum"] += random.Random(run.step_number).random()
    if run.step_number == 1:
        say("training")
    if "stuck" in words and run.step_number == 2:
        say("stuck")
        time.sleep(60)
    time.sleep(float(pause))
    run.step(sum=state["sum"])
if "exception" in words:
    raise RuntimeError("a bug in the program")
say(f"sum {state['sum']:.12f}")
