"""Runs without torch: they count, print and save."""

import time

import lorry

app = lorry.App("trains")


@app.function(timeout=60, resumable=lorry.Resumable(every=5, grace=20))
def train(steps: int = 100, pause: float = 0.01, breaks_at: int = 0):
    run = lorry.run()
    state = {"sum": 0}
    data = run.data(range(steps), batch=1)
    run.track(state=state, data=data)
    print("restored" if run.restore() else "from the start", flush=True)
    for (number,) in data:
        time.sleep(pause)
        state["sum"] += number
        if run.step_number + 1 == breaks_at:
            raise ValueError("the batch is bad")
        run.step(loss=10.0 / (1 + run.step_number))
        if run.step_number % 10 == 0:
            print("step", run.step_number, flush=True)
    return state["sum"]
