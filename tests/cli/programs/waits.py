import time

import lorry

app = lorry.App("waits")


@app.function()
def forever():
    print("it has started", flush=True)
    time.sleep(600)


@app.function()
def lines(n: int = 100_000):
    for i in range(n):
        print("line", i)


@app.function()
def bar():
    import sys

    for percent in range(0, 101, 20):
        sys.stderr.write(f"\r{percent:3d}% of a bar that is much wider than forty columns ################")
        sys.stderr.flush()
        time.sleep(0.2)
    sys.stderr.write("\n")


@app.function()
def item(x: int):
    time.sleep(0.05)
    return x


@app.cls()
class Slow:
    @lorry.method()
    def work(self):
        print("it works", flush=True)
        time.sleep(600)

    @lorry.exit()
    def leave(self):
        time.sleep(600)


@app.function()
def windows_lines():
    print("one\r\ntwo\r")


@app.local_entrypoint()
def mapped(n: int = 40):
    print("sum", sum(item.map(range(n))))
