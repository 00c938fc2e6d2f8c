"""`lorry run` on a terminal: status, bars, narrow windows, Ctrl-C."""

from __future__ import annotations

import json
import re

import pexpect
from cli_terminal import Terminal

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


def test_forty_columns_are_enough(lorry: Terminal) -> None:
    terminal = lorry.typed("run", "waits.py::bar", columns=40)
    terminal.expect("100% of a bar")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


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
