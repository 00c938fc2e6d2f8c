"""Functions whose containers are there when the worker comes back."""

import os
import time
from pathlib import Path

import lorry

app = lorry.App("adopted")


@app.function(secrets=[lorry.Secret.from_name("hub")])
def tell_twice() -> str:
    """The second time when there is a file `go-on` in its home."""
    print("before", os.environ["HUB_TOKEN"], flush=True)
    while not Path("~/go-on").expanduser().exists():
        time.sleep(0.02)
    print("after", os.environ["HUB_TOKEN"], flush=True)
    return "told"


@app.cls(startup_timeout=3)
class NeverUp:
    @lorry.enter()
    def wait(self) -> None:
        print("booting", flush=True)
        time.sleep(600)

    @lorry.method()
    def work(self) -> str:
        return "worked"
