"""Functions whose template, or whose fork, dies at a chosen moment: `WHEN` of their environment."""

import os
import signal
import sys
import time
from typing import NoReturn

import lorry

app = lorry.App("forking-deaths")
out = lorry.Volume.from_name("out", create_if_missing=True)
WHEN = os.environ.get("WHEN", "")
IN_TEMPLATE = os.environ.get("LORRY_CONTAINER_ID", "").startswith("tp-")


def leave(name: str, text: object) -> None:
    with open(f"/out/{name}", "a") as file:
        file.write(f"{text}\n")


def die_once(moment: str) -> None:
    if moment == WHEN and not os.path.exists("/out/died"):
        leave("died", os.getpid())
        os.kill(os.getpid(), signal.SIGKILL)


def refuse(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))


if IN_TEMPLATE:
    leave("imports", os.environ["LORRY_CONTAINER_ID"])
    if WHEN == "always at the import":
        os.kill(os.getpid(), signal.SIGKILL)
    while WHEN == "told to go on" and not os.path.exists("/out/go"):
        time.sleep(0.01)
    if WHEN == "no process":
        os.fork = lambda: refuse(11)
    if WHEN == "no space":
        sys.modules["lorry.sandbox.fork"].drop_capabilities = lambda: refuse(28)
    os.register_at_fork(
        before=lambda: die_once("before the fork"),
        after_in_parent=lambda: die_once("after the fork"),
        after_in_child=lambda: die_once("in the child"),
    )


@app.cls(volumes={"/out": out}, timeout=60)
class Marker:
    @lorry.enter()
    def greeted(self) -> None:
        die_once("after hello")

    @lorry.method()
    def mark(self, i: int) -> int:
        leave("log", i)
        return i
