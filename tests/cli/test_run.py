"""`lorry run` in pipes: what is run, what is printed where, exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Literal

import pytest
from cli_terminal import LORRY, PROGRAMS, Terminal
from server_home import wait_until

from lorry.cli.arguments import UsageError, signature_of

ESCAPE = "\x1b"


def test_the_only_local_entrypoint_runs_and_its_output_is_plain(lorry: Terminal) -> None:
    done = lorry("run", "hello.py", "--x", "5")
    assert sorted(done.stdout.splitlines()) == ["remote says 25", "squaring 5"]
    assert "careful with 5" in done.stderr.splitlines()
    assert "App hello is up: ap-" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Finished in ")
    assert "peak memory" in done.stderr.splitlines()[-1]
    assert ESCAPE not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr


def test_a_named_function_runs_and_its_value_comes_last(lorry: Terminal) -> None:
    assert lorry("run", "hello.py::square", "--x=9").stdout == "squaring 9\n81\n"


def test_quiet_hides_the_platform_and_no_output(lorry: Terminal) -> None:
    done = lorry("run", "-q", "hello.py::square")
    assert (done.stdout, done.stderr) == ("squaring 7\n49\n", "careful with 7\n")


def test_a_generator_prints_each_value(lorry: Terminal) -> None:
    assert lorry("run", "many.py::count", "--upto", "4").stdout == "0\n1\n2\n3\n"


def test_a_method_takes_its_flags_and_those_of_its_class(lorry: Terminal) -> None:
    assert lorry("run", "many.py::Greeter.greet", "--name", "Ada", "--greeting", "Hi").stdout == "Hi, Ada\n"
    assert lorry("run", "many.py::Greeter", "--name", "Ada").stdout == "Hello, Ada\n"


def test_several_things_to_run_are_listed(lorry: Terminal) -> None:
    done = lorry("run", "many.py", code=1)
    for name in ("count", "fail", "Greeter.greet"):
        assert f"  many.py::{name}" in done.stderr.splitlines()
    assert "Traceback" not in done.stderr


def test_an_unknown_name_suggests_the_close_one(lorry: Terminal) -> None:
    assert "did you mean count?" in lorry("run", "many.py::cuont", code=1).stderr


def test_an_error_shows_the_users_frames_causes_and_notes_only(lorry: Terminal) -> None:
    done = lorry("run", "many.py::fail", "--text", "really", code=1)
    assert done.stderr.count('File "') == 2
    assert '{}["missing"]' in done.stderr
    assert "KeyError: 'missing'" in done.stderr
    assert "direct cause" in done.stderr
    assert "ValueError: really\na note of the user\n" in done.stderr
    assert "src/lorry" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Failed after ")


def test_an_error_in_a_local_entrypoint_starts_there(lorry: Terminal, program) -> None:
    file = program(
        "import lorry\napp = lorry.App()\n@app.function()\ndef f(x):\n    return 1 / x\n"
        "@app.local_entrypoint()\ndef main():\n    f.remote(0)\n"
    )
    lines = lorry("run", file, code=1).stderr.splitlines()
    start = lines.index("Traceback (most recent call last):")
    assert lines[start + 1] == f'  File "{file}", line 8, in main'
    assert f'  File "{file}", line 5, in f' in lines
    assert sum("File " in line for line in lines) == 2
    assert "ZeroDivisionError: division by zero" in lines


def test_a_syntax_error_shows_the_place_and_nothing_else(lorry: Terminal, program) -> None:
    file = program("import lorry\n\ndef f(:\n    pass\n")
    done = lorry("run", file, code=1)
    assert done.stderr.splitlines()[0] == f'  File "{file}", line 3'
    assert done.stderr.splitlines()[-1].startswith("SyntaxError")


def test_a_module_that_only_the_container_needs_is_explained(lorry: Terminal, program) -> None:
    file = program("import lorry\nimport nonexistent_package\n")
    done = lorry("run", file, code=1)
    assert done.stderr.count('File "') == 1
    assert "with image.imports():" in done.stderr
    assert 'image = lorry.Image.debian_slim().uv_pip_install("nonexistent_package")' in done.stderr


def test_a_mistake_in_a_decorator_names_the_line(lorry: Terminal, program) -> None:
    file = program("import lorry\napp = lorry.App()\n@app.function(memmory=3)\ndef f(): ...\n")
    done = lorry("run", file, code=1)
    assert f'File "{file}", line 3' in done.stderr
    assert done.stderr.count('File "') == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "has no lorry.App"),
        ("import lorry\napp = lorry.App()\n", "has no function"),
    ],
)
def test_a_file_without_anything_to_run_says_so(lorry: Terminal, program, text: str, message: str) -> None:
    done = lorry("run", program(text), code=1)
    assert done.stderr.startswith("Error: ")
    assert message in done.stderr


def test_a_missing_file_is_one_line(lorry: Terminal) -> None:
    assert lorry("run", "hello", code=1).stderr == "Error: there is no file hello; did you mean hello.py?\n"
    assert lorry("run", "nothing.py", code=1).stderr.startswith("Error: there is no file nothing.py in ")


def test_flags_have_the_types_of_the_parameters(lorry: Terminal) -> None:
    line = "--learning-rate 1e-3 --epochs -2 --no-shuffle --mode slow --since 2026-01-02 --limit 5 --folder /a"
    done = lorry("run", "-q", "typed.py::main", *line.split(), "--name", "--dashes")
    assert done.stdout == (
        "(0.001, -2, '--dashes', False, 'slow', datetime.datetime(2026, 1, 2, 0, 0), 5, PosixPath('/a'))\n"
    )


def test_wrong_arguments_are_usage_errors(lorry: Terminal) -> None:
    usage, error = lorry("run", "typed.py::main", "--learning-rate", "fast", code=2).stderr.splitlines()
    assert usage.startswith("Usage: lorry run typed.py::main --learning-rate NUMBER [--epochs INTEGER]")
    assert error == "Error: --learning-rate takes NUMBER, not 'fast'"


def takes(learning_rate: float, epochs: int = 1, mode: Literal["fast", "slow"] = "fast", shuffle: bool = True) -> None:
    """Parameters for the tests below."""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--learning-rate 1 --mode medium", "--mode takes fast|slow, not 'medium'"),
        ("--learning-rate 1 --epoch 3", "there is no --epoch; did you mean --epochs?"),
        ("--learning-rate 1 --shuffle=perhaps", "--shuffle takes true or false, not 'perhaps'"),
        ("", "--learning-rate is missing"),
        ("--learning-rate", "--learning-rate needs a value: NUMBER"),
        ("1", "unexpected argument '1'; arguments are given by name, as in --learning-rate 1"),
        ("-q", "-q is an option of `lorry run` and stands before the file"),
    ],
)
def test_what_does_not_fit_is_named(line: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        signature_of(takes).parse(line.split())
    assert str(refused.value) == message


def test_what_fits_is_converted() -> None:
    line = "--learning_rate=1 --epochs -3 --shuffle=no"
    assert signature_of(takes).parse(line.split()) == ([], {"learning_rate": 1.0, "epochs": -3, "shuffle": False})


def test_annotations_that_only_the_image_can_evaluate_keep_their_default() -> None:
    def fit(tensor: torch.Tensor = None, x: int = 1) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    signature = signature_of(fit)
    assert [flag.name for flag in signature.flags] == ["x"]
    assert signature.unusable == (("tensor", "torch.Tensor"),)


def test_star_arguments_are_passed_as_they_are(lorry: Terminal) -> None:
    assert lorry("run", "-q", "typed.py::raw", "--x", "1", "--help").stdout == "--x 1 --help\n"


def test_an_async_entrypoint_runs(lorry: Terminal) -> None:
    assert lorry("run", "-q", "typed.py::later", "--x", "4").stdout == "5\n"


def test_help_of_a_function_lists_its_flags(lorry: Terminal) -> None:
    done = lorry("run", "typed.py::main", "--help")
    assert "--learning-rate NUMBER  (required)" in done.stdout


def test_a_module_of_a_package_runs(lorry: Terminal, program, tmp_path: Path) -> None:
    program("", "pkg/__init__.py")
    program("FACTOR = 10\n", "pkg/numbers.py")
    text = (
        "import lorry\nfrom pkg.numbers import FACTOR\napp = lorry.App('packaged')\n"
        "@app.function()\ndef scale(x: int):\n    return x * FACTOR\n"
    )
    file = program(text, "pkg/main.py")
    assert lorry("run", "-q", f"{file}::scale", "--x", "2").stdout == "20\n"
    done = subprocess.run(
        [LORRY, "run", "-q", "-m", "pkg.main::scale", "--x", "3"],
        cwd=tmp_path,
        env=lorry.environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "30\n"), done.stderr
    assert lorry("run", "-m", "pkg.nothing", code=1).stderr.startswith("Error: there is no module pkg")


def test_a_program_comes_from_stdin(lorry: Terminal) -> None:
    assert lorry("run", "-q", "-::square", "--x", "6", stdin=(PROGRAMS / "hello.py").read_text()).stdout == (
        "squaring 6\n36\n"
    )


def test_sys_exit_of_a_program_is_the_exit_code(lorry: Terminal, program) -> None:
    text = "import sys, lorry\napp = lorry.App()\n@app.local_entrypoint()\ndef main():\n    sys.exit(7)\n"
    lorry("run", program(text), code=7)


def test_output_in_a_pipe_ends_with_the_run_though_it_started_the_server(fresh: Terminal) -> None:
    assert "remote says 9" in fresh("run", "hello.py").stdout  # capture_output waits for the pipe's end
    assert fresh.shell("lorry run -q hello.py::square | cat").stdout == "squaring 7\n49\n"


def test_a_reader_that_leaves_ends_the_run_quietly(lorry: Terminal) -> None:
    done = lorry.shell("lorry run -q waits.py::lines | head -1; exit ${PIPESTATUS[0]}")
    assert (done.stdout, done.stderr, done.returncode) == ("line 0\n", "", 141)


def test_no_line_is_lost(lorry: Terminal) -> None:
    done = lorry("run", "-q", "waits.py::lines", "--n", "30000")
    assert done.stdout.splitlines() == [f"line {i}" for i in range(30_000)]


def test_lines_that_end_as_on_windows_are_lines(lorry: Terminal) -> None:
    assert lorry("run", "-q", "waits.py::windows_lines").stdout == "one\ntwo\n"


def test_ctrl_c_stops_the_app_and_its_containers(lorry: Terminal) -> None:
    running = subprocess.Popen(
        [LORRY, "run", "waits.py::forever"],
        cwd=PROGRAMS,
        env=lorry.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline() == "it has started\n"
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
        words = running.stderr.read()
    assert "Stopping the app" in words
    assert "Traceback" not in words
    peak = re.search(r"peak memory ([\d.]+) (\w+)", words)  # sampled, or not mentioned
    assert peak is None or (float(peak[1]) > 5 and peak[2] == "MiB"), words
    assert json.loads(lorry("container", "list", "--json").stdout) == []
    assert json.loads(lorry("app", "list", "--json").stdout) == []


def test_detach_starts_it_and_returns(lorry: Terminal) -> None:
    done = lorry("run", "--detach", "waits.py::forever")
    app_id = done.stdout.strip()
    assert f"lorry app logs {app_id} -f" in done.stderr
    assert f"lorry app stop {app_id}" in done.stderr
    with subprocess.Popen(
        [LORRY, "app", "logs", app_id, "-f"], stdout=subprocess.PIPE, env=lorry.environ, text=True
    ) as logs:
        assert logs.stdout is not None
        assert logs.stdout.readline() == "it has started\n"
        rows = json.loads(lorry("ps", "--json").stdout)
        assert [row["function"] for row in rows["containers"]] == ["forever"]
        assert "forever" in lorry("ps").stdout
        lorry("app", "stop", app_id)
        assert logs.wait(60) == 0
    assert json.loads(lorry("container", "list", "--json").stdout) == []


# What else a newcomer types


UNNAMED = "import lorry\napp = lorry.App()\n@app.function()\ndef f():\n    return 1\n"


@pytest.mark.parametrize(("name", "app"), [("my program.py", "my-program"), ("größe.py", "gr-e"), ("数.py", "unnamed")])
def test_an_app_without_a_name_is_called_like_its_file(lorry: Terminal, program, name: str, app: str) -> None:
    done = lorry("run", program(UNNAMED, name))
    assert done.stdout == "1\n"
    assert f"App {app} is up" in done.stderr


def test_an_impossible_name_is_a_usage_error(lorry: Terminal) -> None:
    assert "letters, digits" in lorry("run", "--name", "a b", "hello.py", code=2).stderr


def test_a_file_may_not_hide_a_module_of_python(lorry: Terminal, program) -> None:
    done = lorry("run", program(UNNAMED, "json.py"), code=1)
    assert done.stderr == (
        "Error: json.py has the name of one of Python's own modules (json) and would hide it: rename the file\n"
    )


def test_a_module_without_m_is_recognized(lorry: Terminal, program, tmp_path: Path) -> None:
    program("", "pkg/__init__.py")
    program(UNNAMED, "pkg/main.py")
    done = lorry.shell(f"cd {tmp_path} && lorry run pkg.main")
    assert done.stderr.rstrip().endswith("for a module: lorry run -m pkg.main")


@pytest.mark.parametrize(
    ("word", "hint"), [("hello.py", "lorry run hello.py"), ("runn", "lorry run"), ("xyzzy", "lorry --help")]
)
def test_an_unknown_command_is_answered_with_the_right_one(lorry: Terminal, word: str, hint: str) -> None:
    assert lorry(word, code=2).stderr.splitlines()[-1] == f"Error: there is no command {word!r}; see {hint}"


def test_a_closed_stdout_is_nothing_to_stumble_over(lorry: Terminal) -> None:
    done = lorry.shell("lorry run -q hello.py >&-")
    assert (done.returncode, done.stderr) == (0, "careful with 3\n")


def test_a_full_disk_behind_stdout_is_one_line(lorry: Terminal) -> None:
    done = lorry.shell("lorry config >/dev/full")
    assert done.returncode == 1
    assert done.stderr == "Error: [Errno 28] No space left on device\n"


DETACHED = """
import time, lorry
app = lorry.App("detached")
@app.function()
def forever():
    print("it has started", flush=True)
    time.sleep(600)
@app.local_entrypoint()
def main():
    forever.spawn()
    time.sleep(600)
"""


@pytest.mark.parametrize(("number", "goes_on"), [(signal.SIGINT, True), (signal.SIGKILL, False)])
def test_a_detached_entrypoint_lets_its_app_go_at_ctrl_c_and_takes_it_along_when_it_is_killed(
    lorry: Terminal, program, number: int, goes_on: bool
) -> None:
    with subprocess.Popen(
        [LORRY, "run", "--detach", program(DETACHED)],
        env=lorry.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "it has started\n"
        os.kill(running.pid, number)
        running.communicate(timeout=60)
    if goes_on:
        (app,) = json.loads(lorry("app", "list", "--json").stdout)
        assert (app["name"], app["state"]) == ("detached", "detached")
        lorry("app", "stop", "detached")
    wait_until(lambda: json.loads(lorry("app", "list", "--json").stdout) == [], 30)
