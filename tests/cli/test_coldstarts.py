"""`lorry app coldstarts`: a table that fits the terminal, advice in whole words, and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable

import pexpect
from cli_terminal import Terminal

SLOW = """
import time
import lorry

time.sleep(0.4)
app = lorry.App("slow-to-start")


@app.cls()
class Model:
    @lorry.enter()
    def load(self):
        time.sleep(0.4)

    @lorry.method()
    def answer(self):
        return 42


@app.local_entrypoint()
def main():
    Model().answer.remote()
"""


def test_a_slow_start_by_stage_and_what_helps(lorry: Terminal, program: Callable[[str], str]) -> None:
    lorry("run", "-q", program(SLOW))
    name, heading, row, *advice = lorry("app", "coldstarts", "slow-to-start").stdout.splitlines()
    assert name == "Model:"
    assert heading.split()[0] == "STARTED"
    assert "IMPORT" in heading
    assert "0.0 ms" not in row
    assert row.endswith("template")
    assert any("the module's own code 0.4" in line for line in advice)
    assert any("@enter(snap=True)" in line for line in advice)

    found = json.loads(lorry("app", "coldstarts", "slow-to-start", "--json").stdout)
    assert found["starts"][0]["seconds"]["import"] >= 0.4
    assert [f"  {sentence}" for sentence in found["advice"]["Model"]] == advice

    terminal = lorry.typed("app", "coldstarts", "slow-to-start", columns=80)
    terminal.expect(pexpect.EOF)
    shown = terminal.before.splitlines()
    assert len(shown) > 3 + len(advice)
    assert max(map(len, shown)) <= 80
    terminal.close()


def test_an_app_that_has_started_nothing_and_one_that_is_none(lorry: Terminal, program: Callable[[str], str]) -> None:
    lorry("run", "-q", program("import lorry\napp = lorry.App('idle')\n@app.local_entrypoint()\ndef main(): pass\n"))
    assert lorry("app", "coldstarts", "idle").stdout == "None of its containers has answered an input yet.\n"
    assert "no app 'nowhere'" in lorry("app", "coldstarts", "nowhere", code=1).stderr
