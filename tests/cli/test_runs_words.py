"""A run in a line and on a page; the server's answers are made up."""

from __future__ import annotations

import dataclasses
import io
import re
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_runs import NOW, RUN, TRACEBACK, info, shown

from lorry.cli import execution, run_watch, run_words, units
from lorry.cli.live_display import LiveDisplay
from lorry.cli.run_page import fitting, loss, page, throughput
from lorry.cli.run_watch import PLAIN_PERIOD, RunLines
from lorry.cli.targets import Target
from lorry.model.function import CodeRef, FunctionKind, FunctionSpec, ResumePolicy
from lorry.sdk.display import PlainDisplay

CODE = CodeRef(module="m", qualname="f")
NOTHING_YET = dict.fromkeys(("head_step", "total_steps", "metrics", "seconds_per_step", "eta")) | {"step": 0}

# Lines


def test_the_line_on_a_terminal() -> None:
    line = run_words.screen_line(info(), "train", 100, drawn=True)
    assert line.startswith("train  step 1,200/5,000 ▕█████")
    assert line.endswith("▏ 24 %  loss 1.234  3.1 steps/s  ETA 20 min  slice 3")


def test_the_line_in_a_pipe() -> None:
    assert run_words.pipe_line(info()) == (
        "train: step 1,200/5,000 (24 %), loss 1.234, 3.1 steps/s, about 20 min left, slice 3"
    )


def test_on_a_narrow_terminal_the_least_important_is_left_out() -> None:
    narrow = run_words.screen_line(info(), "train", 60, drawn=True)
    assert "24 %  loss 1.234" in narrow
    assert "slice" not in narrow
    assert run_words.screen_line(info(), "train", 28, drawn=True) == "train  step 1,200/5,000 24 %"


@given(st.integers(1, 200), st.booleans(), st.none() | st.integers(0, 10**12), st.sampled_from(["training", "saving"]))
def test_a_line_is_never_wider_than_asked(columns: int, drawn: bool, total: int | None, phase: str) -> None:
    line = run_words.screen_line(
        info(step=3, head_step=None, total_steps=total, phase=phase), "t", columns, drawn=drawn
    )
    assert len(line) <= columns


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"phase": "restoring"}, "step 1,200/5,000 (24 %), loads its checkpoint, "),
        ({"state": "waiting", "phase": "training"}, ", waits for a container, "),
        ({"state": "cancelled", "phase": "saving"}, "step 1,200/5,000 (24 %), saves, "),
        (
            {"step": 0, "head_step": None, "total_steps": None, "metrics": None, "seconds_per_step": None, "eta": None},
            "step 0, slice",
        ),
        ({"seconds_per_step": 12.4}, "12 s/step"),
        ({"seconds_per_step": 0.0004}, "2,500 steps/s"),
        ({"step": 4999}, "(99 %)"),
        ({"metrics": {"step": 1, "time": 2.0, "lr": 0.1, "eval_loss": 3.0}}, "eval_loss 3,"),
        ({"metrics": {"step": 1, "time": 2.0, "best": True, "accuracy": 0.5}}, "accuracy 0.5,"),
    ],
)
def test_what_a_line_says(changes: dict[str, Any], says: str) -> None:
    assert says in run_words.pipe_line(info(**changes))


def test_a_run_that_stands_still_says_how_to_go_on() -> None:
    how = f"go on with: lorry runs resume {RUN}"
    assert run_words.how_to_go_on(info(state="cancelled")) == f"{RUN} stopped at step 1,150; {how}"
    assert run_words.how_to_go_on(info(state="failed", head_step=None)) == f"{RUN} failed; {how}"
    assert run_words.how_to_go_on(info(state="done")) == ""
    assert run_words.how_to_go_on(info(state="failed", error=f"lost. Go on: lorry runs resume {RUN}")) == ""


def test_a_short_id_is_longer_than_that_of_its_twin() -> None:
    assert run_words.short("ru-0123456789", ["ru-0123456789"]) == "ru-01234567"
    assert run_words.short("ru-0123456789", ["ru-0123456788"]) == "ru-0123456789"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (3569, "59 min"), (3571, "1 h 0 min")]
)
def test_roughly(seconds: float, text: str) -> None:
    assert units.about(seconds) == text


# The page


def test_the_page_has_everything_that_the_server_knows() -> None:
    text = "\n".join(page(shown(), columns=80, drawn=True, now=NOW))
    for part in (
        f"train  {RUN}  running",
        "finetune (ap-",
        f"train/{RUN}/metrics.jsonl",
        "3 slices, 1 interruption, 4 attempts, checkpoint of step 1,150",
        "24 %  loss 1.455  3.1 steps/s  ETA 20 min",
        "lowest 1.252",
        "steps/s",
        "300-600    killed      its process was killed by signal 9",
        "900-1,200  goes on",
        "step 1,150  18 s ago        1.4 GiB  944 MiB  12 ms  410 ms",
        "and 2 earlier ones",
    ):
        assert part in text


def test_a_failed_run_ends_with_its_error_and_what_to_do() -> None:
    lines = page(shown(state="failed", finished_at=NOW, error=TRACEBACK), columns=80, drawn=False, now=NOW)
    assert lines[-3] == "ValueError: the batch is empty"
    assert lines[-1].endswith(f"lorry runs resume {RUN}")
    assert "took 7 min" in "\n".join(lines)


def test_an_error_of_a_run_that_goes_on_is_an_attempt_s_or_what_ended_it_before_it_was_resumed() -> None:
    attempts = shown()["attempt_rows"]
    for error, says in (
        (attempts[1]["reason"], "an attempt before this one failed:"),
        (f"{RUN} was cancelled", "before it was resumed:"),
    ):
        assert page(shown(error=error), columns=80, drawn=False, now=NOW)[-2:] == [says, error]
    cancelled = page(shown(state="cancelled", error=f"{RUN} was cancelled"), columns=80, drawn=False, now=NOW)
    assert not any("before" in line for line in cancelled)


def test_an_attempt_that_was_stopped_says_by_whom() -> None:
    attempts = shown()["attempt_rows"]
    attempts[2]["reason"] = "a person stopped it"
    text = "\n".join(page(shown(attempt_rows=attempts), columns=80, drawn=False, now=NOW))
    assert "0-300      slice over\n" in text
    assert "600-900    stopped     a person stopped it" in text


def test_a_checkpoint_says_what_is_known_of_it() -> None:
    unknown = dict.fromkeys(("created_at", "stall", "persist", "total_bytes", "new_bytes"))
    known = {"created_at": NOW - 5, "stall": 0.01, "persist": 0.2}
    rows = [
        {"step": 1, "manifest": "a", **known, "total_bytes": 0, "new_bytes": 0},
        {"step": 2, "manifest": "b", **known, "total_bytes": 4096, "new_bytes": 0},
        {"step": 3, "manifest": "c", **unknown},
    ]
    lines = page(shown(checkpoints=rows), columns=80, drawn=False, now=NOW)
    assert [re.split("  +", line) for line in lines[-3:]] == [
        ["step 1", "5 s ago", "manifest only", "10 ms", "200 ms"],
        ["step 2", "5 s ago", "4.0 KiB", "0 B", "10 ms", "200 ms"],
        ["step 3", "?", "?", "?", "?", "?"],
    ]


def test_the_page_of_a_run_that_has_done_nothing_yet() -> None:
    nothing = {**NOTHING_YET, "metrics": [], "attempt_rows": [], "checkpoints": []}
    run = shown(state="waiting", phase=None, **nothing)
    assert page(run, columns=80, drawn=True, now=NOW)[-1] == "train  step 0  waits for a container  slice 3"


@given(st.integers(30, 200), st.booleans())
def test_curves_and_progress_are_never_wider_than_the_terminal(columns: int, drawn: bool) -> None:
    lines = page(shown(attempt_rows=[], checkpoints=[]), columns=columns, drawn=drawn, now=NOW)
    assert max(map(len, lines[7:])) <= columns


@given(st.integers(1, 80))
def test_the_page_that_redraws_itself_fits_the_screen(rows: int) -> None:
    lines = fitting(shown(), columns=80, rows=rows, drawn=True, now=NOW)
    assert len(lines) <= rows
    whole = page(shown(), columns=80, drawn=True, now=NOW)
    assert lines[:7] == whole[: min(7, rows)]
    assert (lines == whole) == (rows >= len(whole))


def test_the_last_attempts_and_checkpoints_are_seen_on_a_small_screen() -> None:
    text = "\n".join(fitting(shown(), columns=80, rows=23, drawn=True, now=NOW))
    assert "900-1,200  goes on" in text
    assert "step 1,150  18 s ago" in text


def test_throughput_passes_over_a_clock_that_was_set_back_and_rows_without_steps() -> None:
    rows = [{"step": s, "time": t, "loss": 1.0} for s, t in [(0, 0.0), (2, 1.0), (4, 0.5), (6, 1.5)]]
    assert throughput(rows) == [(2, 2.0), (6, 2.0)]
    assert throughput(rows[:1]) == []


def test_the_loss_is_that_of_the_newest_row_that_has_one() -> None:
    rows = [{"step": 1, "time": 1.0, "loss": 3.0}, {"step": 2, "time": 2.0}, {"step": 3, "time": 3.0, "loss": 1.0}]
    assert loss(rows) == ("loss", [(1, 3.0), (3, 1.0)])
    assert loss([]) == ("loss", [])


def test_a_loss_that_is_no_number_any_more_is_seen() -> None:
    run = shown()
    run["metrics"][-1]["loss"] = "NaN"
    assert "loss nan" in run_words.pipe_line(info(metrics={"step": 5, "time": NOW, "lr": 1e-4, "loss": "NaN"}))
    lines = page(run, columns=100, drawn=False, now=NOW)
    assert any(line.startswith("loss ") and "-> nan, lowest 1." in line for line in lines)


def test_what_a_container_has_written_may_be_anything() -> None:
    rows = [
        {"step": 1},
        {"step": 2, "time": "noon", "loss": 1.0},
        {"step": 10**400, "time": 1.0},
        {"step": 3, "time": 3.0, "loss": 10**400, "l\x1b[31mr": 1.0},
        {"step": 4, "time": 4.0, "loss": [1]},
    ]
    odd = dict.fromkeys(("step", "created_at", "stall", "persist", "total_bytes", "new_bytes", "manifest"))
    run = shown(metrics=rows, checkpoints=[odd, {**odd, "stall": "long", "step": 3}])
    lines = page(run, columns=80, drawn=True, now=NOW)
    assert "loss: no values yet" in "\n".join(lines)
    assert "\x1b" not in "".join(lines)
    assert lines[-1].split() == ["step", "3", "?", "?", "?", "?", "?"]


# While attached


class Notes(PlainDisplay):
    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_in_a_pipe_a_run_is_announced_and_then_told_every_half_minute() -> None:
    times = [0.0, 1.0, PLAIN_PERIOD - 1, PLAIN_PERIOD, PLAIN_PERIOD + 1, 2 * PLAIN_PERIOD]
    display = Notes()
    clock = iter(times)
    lines = RunLines(display, lambda: next(clock))
    for _ in times:
        lines.see([info()])
    told = run_words.pipe_line(info())
    assert display.notes == [f"train: run {RUN} goes on, attempt 4", told, told]


def test_an_interruption_is_told_once_and_with_its_reason() -> None:
    display = Notes()
    lines = RunLines(display, lambda: 0.0)
    for interruptions, error in ((1, "old"), (1, "old"), (2, TRACEBACK), (2, TRACEBACK), (3, None)):
        lines.see([info(interruptions=interruptions, error=error)])
    assert display.notes[1:] == [
        f"train: run {RUN} was interrupted and goes on: ValueError: the batch is empty",
        f"train: run {RUN} was interrupted and goes on: nobody knows why",
    ]


def test_on_a_terminal_each_active_run_has_a_line_and_keeps_it_only_while_it_is_active(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    display = LiveDisplay(colour=False)
    monkeypatch.setattr(display, "note", lambda text: None)
    lines = RunLines(display)
    other = info(run_id="ru-" + "b" * 32)
    lines.see([info(), other])
    assert {line.text(90).split("  ")[0] for line in display.bars} == {"train ru-3f2a3f2a", "train ru-bbbbbbbb"}
    lines.see([info(state="cancelled", phase="saving"), other])
    assert len(display.bars) == 2
    lines.see([info(state="done", phase=None), other])
    assert [line.text(90).split("  ")[0] for line in display.bars] == ["train"]
    lines.clear()
    assert not display.bars


def test_hints_name_the_runs_that_are_not_done_and_not_too_many() -> None:
    lines = RunLines(Notes())
    lines.see([info(state="done"), info(state="cancelled")])
    assert lines.hints() == [run_words.how_to_go_on(info(state="cancelled"))]
    lines.see([info(state="failed", run_id=f"ru-{i}") for i in range(9)])
    assert len(lines.hints()) == 6
    assert lines.hints()[-1].startswith("and 4 more: lorry runs list --all --app ap-")


def test_nobody_asks_about_runs_of_an_app_that_cannot_have_any(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(run_watch, "RunWatch", lambda app_id, _display: asked.append(app_id))
    specs = {None: [], ResumePolicy(): ["ap-1"]}
    for policy, expected in specs.items():
        function: Any = SimpleNamespace(
            info=FunctionSpec(tag="f", kind=FunctionKind.FUNCTION, code=CODE, resumable=policy)
        )
        app: Any = SimpleNamespace(registered_functions={"f": function})
        target = Target(app=app, name="f", raw=print)
        execution._watch_over(target, "ap-1", execution.Options(), Notes())
        assert asked == expected
    leaves = execution.Options(detach=True)
    execution._watch_over(target, "ap-2", leaves, Notes())  # its entrypoint runs here
    execution._watch_over(dataclasses.replace(target, function=function), "ap-3", leaves, Notes())
    assert asked == ["ap-1", "ap-2"]
