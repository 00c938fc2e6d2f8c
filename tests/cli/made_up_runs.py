"""Runs as the server describes them, made up."""

from __future__ import annotations

import math
import random
from typing import Any

NOW = 1_800_000_000.0
RUN = "ru-" + "3f2a" * 8
STEPS = 1200
TRACEBACK = """\
Traceback (most recent call last):
  File "/home/me/train.py", line 12, in train
    loss = step(batch)
ValueError: the batch is empty
"""


def info(**changes: Any) -> dict[str, Any]:
    """A row of run_list, in the middle of its third slice."""
    return {
        "run_id": RUN,
        "app_id": "ap-" + "0" * 32,
        "app_name": "finetune",
        "function": "train",
        "call": "fc-" + "1" * 32,
        "state": "running",
        "phase": "training",
        "step": STEPS,
        "total_steps": 5000,
        "head_step": 1150,
        "created_at": NOW - 400,
        "finished_at": None,
        "attempts": 4,
        "slices": 2,
        "interruptions": 1,
        "seconds_per_step": 0.32,
        "eta": 1216.0,
        "metrics": {"step": STEPS, "time": NOW, "lr": 1e-4, "loss": 1.2345},
        "error": None,
        "folder": f"/home/me/.local/state/lorry/runs/finetune/train/{RUN}",
        **changes,
    }


def shown(**changes: Any) -> dict[str, Any]:
    """The answer to run_show."""
    noise = random.Random(1)
    rows: list[dict[str, Any]] = [
        {
            "step": step,
            "time": NOW - 400 + step * 0.32 + noise.random(),
            "lr": 1e-4,
            "loss": 2.3 * math.exp(-step / 400) + 1.1 + noise.random() * 0.3,
        }
        for step in range(3, STEPS + 1, 3)
    ]
    ends = [
        ("continue", ""),
        ("killed", "its process was killed by signal 9 (SIGKILL); the machine had memory left, so somebody sent it"),
        ("continue", ""),
        (None, ""),
    ]
    attempts = [
        {
            "token": i + 1,
            "container_id": f"ct-{i}",
            "started_at": NOW - 400 + i * 100,
            "ended_at": NOW - 301 + i * 100 if ended else None,
            "first_step": i * 300,
            "last_step": (i + 1) * 300,
            "ended": ended,
            "reason": reason,
        }
        for i, (ended, reason) in enumerate(ends)
    ]
    checkpoints = [
        {
            "step": 96 * i + 94,
            "created_at": NOW - 370 + 32 * i,
            "stall": 0.0123,
            "persist": 0.41,
            "total_bytes": 1_490_000_000,
            "new_bytes": 1_490_000_000 if i == 0 else 990_000_000,
            "manifest": f"{i:064x}",
        }
        for i in range(12)
    ]
    made = {"metrics": rows, "attempt_rows": attempts, "checkpoints": checkpoints}
    return {**info(), **made, **changes}
