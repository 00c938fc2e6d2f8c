"""Rows of metrics.jsonl, and what is left of them when training goes on from an earlier step."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorry.train import metrics
from lorry.train.metrics import MOST_LINE, MetricsLog


@pytest.fixture
def log(tmp_path: Path) -> MetricsLog:
    return MetricsLog(tmp_path / "metrics.jsonl")


def rows(log: MetricsLog) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.path.read_text().splitlines()]


def read() -> int:
    """Bytes that this process has read so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def checkpoint(step: int) -> dict[str, Any]:
    return {"step": step, "manifest": f"{step:064x}"}


def test_a_long_file_is_not_read_to_find_its_end(log: MetricsLog) -> None:
    with log.path.open("w") as file:
        file.writelines(f'{{"step": {step}, "time": 1.0, "note": "{"x" * 80}"}}\n' for step in range(1, 100_001))
    size, before = log.path.stat().st_size, read()
    log.cut_back(99_990)
    assert read() - before < size / 20
    assert log.path.read_bytes().splitlines()[-1].startswith(b'{"step": 99990,')
    log.cut_back(10)
    assert [row["step"] for row in rows(log)] == list(range(1, 11))


def test_a_hole_without_an_end_of_a_line_takes_no_memory(log: MetricsLog) -> None:
    log.path.write_text('{"step": 1, "time": 1.0}\n')
    with log.path.open("r+b") as file:
        file.truncate(16 * MOST_LINE)
    tracemalloc.start()
    try:
        log.cut_back(5)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * MOST_LINE
    assert [row["step"] for row in rows(log)] == [1]


def test_the_row_of_the_checkpoint_from_which_it_goes_on_stays(log: MetricsLog) -> None:
    """It was written when training had gone on; killed twice, and there it is still."""
    for step in range(1, 8):
        log.add(step, 1.0, {"loss": 1.0})
        if step in (4, 7):
            log.add(step, 2.0, {"checkpoint": checkpoint(step - 1)})
    log.flush()
    for _ in range(2):
        log.cut_back(3)
        assert [(row["step"], row["time"], row.get("checkpoint")) for row in rows(log)] == [
            (1, 1.0, None),
            (2, 1.0, None),
            (3, 1.0, None),
            (3, 2.0, checkpoint(3)),
        ]
        log.add(4, 1.0, {"loss": 1.0})
        log.flush()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40),
    st.lists(st.integers(0, 60), max_size=3),
    st.sampled_from([b"", b'{"step": 9', b"\0\0", b"[]\n"]),
)
def test_what_stays_is_what_a_look_at_every_row_would_keep(
    log: MetricsLog, monkeypatch: pytest.MonkeyPatch, steps: list[tuple[int, bool]], cuts: list[int], rest: bytes
) -> None:
    monkeypatch.setattr(metrics, "NEAR", 100)
    log.path.unlink(missing_ok=True)
    step, expected = 0, []
    for more, saved in steps:
        step += more
        values = {"checkpoint": checkpoint(max(0, step - 2))} if saved else {"loss": 0.5}
        expected.append({"step": step, "time": 1.0, **values})
        log.add(step, 1.0, values)
    log.flush()
    with log.path.open("ab") as file:
        file.write(rest)
    for cut in cuts:
        log.cut_back(cut)
        made = [row.get("checkpoint", {}).get("step", 1000) for row in expected]
        expected = [
            row if row["step"] <= cut else {**row, "step": cut}
            for row, saved_at in zip(expected, made, strict=True)
            if min(row["step"], saved_at) <= cut
        ]
        assert rows(log) == expected
