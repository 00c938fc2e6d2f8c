"""`lorry run` on a terminal: status, bars, narrow windows, Ctrl-C."""

from __future__ import annotations

import json
import re

import pexpect
import pytest
from cli_terminal import Terminal, screen
from server_home import wait_until

from lorry.cli.live_display import bar_text, clipped

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def test_the_status_line_counts_containers_and_goes_away(lorry: Terminal) -> None:
    terminal = lorry.typed("run", "waits.py::forever")
    terminal.expect("it has started")
    terminal.expect(r"Running \(1/1 containers\)")
    terminal.sendintr()
    terminal.expect("Stopping the app")
    terminal.expect(r"Stopped after .*\r\n")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 130
    assert json.loads(lorry("container", "list", "--json").stdout) == []


def test_a_map_has_a_progress_bar(lorry: Terminal) -> None:
    terminal = lorry.typed("run", "waits.py")
    terminal.expect(r"item .*\d+")
    terminal.expect("sum 780\r\n")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


LEFT, RIGHT = (f"{name}: 100%|#####| of a bar that is rather wide" for name in ("left", "right"))


@pytest.mark.parametrize("columns", [80, 40])
def test_bars_of_several_containers_stand_below_each_other_and_leave_their_last_state(
    lorry: Terminal, columns: int
) -> None:
    terminal = lorry.typed("run", "bars.py", columns=columns)
    terminal.expect(r"(left|right): [^\n]*\r\n[^\n]*(left|right): ")  # both at once
    seen = terminal.before + terminal.after
    terminal.expect(pexpect.EOF)
    seen += terminal.before
    terminal.close()
    assert terminal.exitstatus == 0
    shown = screen(seen)
    assert sorted(line for line in shown if "%" in line) == [LEFT, RIGHT]
    assert shown[-2].startswith("Finished in ")
    blocks = [line for line in re.split(r"[\r\n]+|\x1b\[[AJ]", COLOUR.sub("", seen)) if "%" in line]
    assert max(len(line) for line in blocks if line not in (LEFT, RIGHT)) <= columns - 1


def test_bars_without_a_terminal_are_their_last_state(lorry: Terminal) -> None:
    done = lorry("run", "bars.py")
    assert sorted(line for line in done.stderr.splitlines() if "%" in line) == [LEFT, RIGHT]
    assert "\r" not in done.stderr


def test_a_thousand_lines_a_second_come_whole_and_in_order(lorry: Terminal) -> None:
    terminal = lorry.typed("run", "bars.py::thousand_a_second")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
    lines = [line for line in screen(terminal.before) if line.startswith("line ")]
    assert lines == [f"line {i}" for i in range(2000)]


def test_a_terminal_that_does_not_read_does_not_stop_the_run(lorry: Terminal) -> None:
    """It takes some kilobytes, as after Ctrl-S; the function is not slowed, and no line is lost."""
    terminal = lorry.typed("run", "--name", "unread", "waits.py::lines", "--n", "30000")
    wait_until(lambda: "line 29999" in lorry("app", "logs", "unread", "--tail", "1", code=None).stdout, 60)
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
    lines = [line for line in screen(terminal.before) if line.startswith("line ")]
    assert lines == [f"line {i}" for i in range(30_000)]


def test_no_color_means_no_colour(lorry: Terminal) -> None:
    terminal = lorry.typed("run", "hello.py", NO_COLOR="1")
    terminal.expect(pexpect.EOF)
    assert "remote says 9" in terminal.before
    assert not COLOUR.search(terminal.before)


def test_a_dumb_terminal_gets_plain_lines(lorry: Terminal) -> None:
    terminal = lorry.typed("run", "hello.py", TERM="dumb")
    terminal.expect(pexpect.EOF)
    assert "remote says 9" in terminal.before
    assert "\x1b" not in terminal.before


def test_a_map_over_a_list_shows_its_total_from_the_start(lorry: Terminal) -> None:
    terminal = lorry.typed("run", "waits.py", "--n", "60")
    terminal.expect(r"item [━─]+ \d+/60 ")
    terminal.sendintr()
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 130


def test_a_second_ctrl_c_is_patient_and_a_third_ends_the_command(lorry: Terminal) -> None:
    terminal = lorry.typed("run", "waits.py::Slow.work")
    terminal.expect("it works")
    terminal.sendintr()
    terminal.expect("Stopping the app")
    terminal.sendintr()
    terminal.sendintr()
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 130


def test_a_bar_fits_its_columns() -> None:
    assert bar_text("f", 50, 100, 10.0, 60) == "f " + "━" * 20 + "─" * 20 + " 50/100 0:10 left"
    assert len(bar_text("f", 50, 100, 10.0, 40)) <= 40
    assert bar_text("f", 50, None, 0.5, 40) == "f 50 done"


def test_wide_characters_count_twice_and_control_characters_not_at_all() -> None:
    assert clipped("漢字kanji\x1b\t", 6) == "漢字ka"
