"""Functions whose containers are there when the worker comes back."""

import os
import time

import lorry

app = lorry.App("adopted")


@app.function(secrets=[lorry.Secret.from_name("hub")])
def tell_twice(seconds: float) -> str:
    print("before", os.environ["HUB_TOKEN"], flush=True)
    time.sleep(seconds)
    print("after", os.environ["HUB_TOKEN"], flush=True)
    return "told"


@app.cls(startup_timeout=6)
class NeverUp:
    @lorry.enter()
    def wait(self) -> None:
        print("booting", flush=True)
        time.sleep(600)

    @lorry.method()
    def work(self) -> str:
        return "worked"
