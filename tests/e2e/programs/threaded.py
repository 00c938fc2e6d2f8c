"""A module whose import starts a thread: it cannot be forked."""

import threading

import lorry

app = lorry.App("threaded")
threading.Thread(target=threading.Event().wait, daemon=True).start()


@app.function()
def answer() -> int:
    return 42
