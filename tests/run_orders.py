"""Orders to `run_by_hand.obey`, and what is known of its run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from server_asking import ask
from server_home import wait_until


def run_of(name: str) -> dict[str, Any]:
    """By its id, or its call, once it has begun."""
    wait_until(lambda: [run for run in ask("run_list", all=True)["runs"] if name in (run["call"], run["run_id"])], 30)
    return ask("run_show", run=name)


class Orders:
    """For one run, from its test."""

    def __init__(self, name: str) -> None:
        run = run_of(name)
        self.run_id: str = run["run_id"]
        self.folder = Path(run["folder"])
        self.number = 0

    def give(self, verb: str, **fields: Any) -> Path:
        """Where the answer will be."""
        path = self.folder / f"order-{self.number}"
        path.with_suffix(".new").write_text(json.dumps({"do": verb, **fields}))
        os.chmod(path.with_suffix(".new"), 0o644)
        path.with_suffix(".new").rename(path)
        self.number += 1
        return self.folder / f"answer-{self.number - 1}"

    def do(self, verb: str, **fields: Any) -> Any:
        answer = self.give(verb, **fields)
        wait_until(answer.exists, 30)
        return json.loads(answer.read_text())

    def withdraw(self) -> None:
        """The last order, which nobody answers."""
        self.number -= 1
        (self.folder / f"order-{self.number}").unlink()

    def show(self) -> dict[str, Any]:
        return ask("run_show", run=self.run_id)

    def wait_for(self, **fields: Any) -> dict[str, Any]:
        wait_until(lambda: fields.items() <= self.show().items(), 30)
        return self.show()
