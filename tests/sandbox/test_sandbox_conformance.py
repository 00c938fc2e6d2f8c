"""What every tier promises. Each test runs once per tier, with real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sandbox_box import Box, drain, next_line

from lorry.errors import InvalidError
from lorry.sandbox.interface import Feature
from lorry.sandbox.procfs import family
from lorry.sandbox.records import read_exit

FOREVER = "import os, signal; os.write(1, b'ready\\n'); signal.pause()"
DOUBLE_FORK = """
import os, signal
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(1, b'grandchild\\n')
        signal.pause()
    os._exit(0)
os.wait()
"""


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_the_exit_code_is_the_programs_own(box: Box, code: int) -> None:
    end, _, _ = box.run(f"import os; os._exit({code})")
    assert (end.code, end.signal, end.oom_killed) == (code, None, False)


def test_a_signal_that_ends_the_program_is_told_apart_from_an_exit_code(box: Box) -> None:
    end, _, _ = box.run("import os; os.kill(os.getpid(), 11)")
    assert (end.code, end.signal) == (139, signal.SIGSEGV)
    assert "native code" in end.describe()
    assert box.run("import os; os._exit(139)")[0].signal is None


def test_both_outputs_arrive_even_when_the_program_ends_at_once(box: Box) -> None:
    end, out, err = box.run("import os; os.write(1, b'to out'); os.write(2, b'to err')")
    assert (end.code, out, err) == (0, "to out", "to err")


def test_standard_input_is_empty(box: Box) -> None:
    assert box.prints("import sys; print(repr(sys.stdin.read()))") == "''"


def test_no_other_descriptor_is_inherited(box: Box) -> None:
    leak = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(leak, True)
    try:
        seen = box.prints("import os; print(sorted(os.listdir('/proc/self/fd')))")
    finally:
        os.close(leak)
    assert seen == "['0', '1', '2', '3']"  # 3 is the listing itself


def test_the_environment_is_exactly_what_was_given(box: Box) -> None:
    given = {"PATH": "/usr/bin:/bin", "KEY": "värde = 1", "EMPTY": ""}
    out = box.prints("", argv=("env", "-0"), env=tuple(given.items()))
    seen = dict(item.split("=", 1) for item in out.split("\0") if item)
    if box.tier == "process":
        assert Path(seen.pop("HOME")).parent == Path(seen.pop("TMPDIR")).parent
    assert seen == given


def test_home_and_tmp_are_writable_and_lie_in_the_containers_folder(box: Box) -> None:
    spec = box.spec(
        "import os, tempfile\n"
        "for d in (os.path.expanduser('~'), tempfile.gettempdir()): open(d + '/mark', 'w').write('x')",
        env=(("PATH", "/usr/bin"), ("HOME", "/root")),
    )

    async def go() -> int:
        process = await box.sandbox.start(spec)
        end = await process.wait()
        process.close()
        return end.code

    assert asyncio.run(go()) == 0
    assert Path(spec.folder, "home/mark").exists()
    assert Path(spec.folder, "tmp/mark").exists()


def test_it_starts_in_the_given_directory(box: Box) -> None:
    assert box.prints("import os; print(os.getcwd())", cwd="/usr/lib") == "/usr/lib"


@pytest.mark.parametrize(
    "wrong", [{"argv": ("/no/such/program",)}, {"argv": ("no-such-program",)}, {"cwd": "/no/such/folder"}]
)
def test_a_program_or_directory_that_is_not_there_is_the_users_error(box: Box, wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidError, match="No such file"):
        box.run("", **wrong)


def test_it_is_a_session_of_its_own_with_default_signals(box: Box) -> None:
    code = "import os; print(os.getsid(0) == os.getpid(), open('/proc/self/status').read())"
    out = box.prints(code, argv=("sh", "-c", "ps -o sid= -p $$ | grep -qw $$ && grep SigIgn /proc/self/status"))
    of_glibc = (
        0b11 << 31
    )  # signals 32 and 33 are glibc's own: no program can set them, but some parents leave them ignored
    assert int(out.split()[1], 16) & ~of_glibc == 0


def test_kill_ends_every_process_in_it(box: Box) -> None:
    async def go() -> None:
        process = await box.start(DOUBLE_FORK + FOREVER)
        assert {await next_line(process.outputs[0]) for _ in range(2)} == {"ready", "grandchild"}
        process.kill()
        process.kill()
        end = await process.wait()
        assert (end.code, end.signal) == (137, signal.SIGKILL)
        # End of file, not BlockingIOError: nobody has it open any more.
        assert drain(process.outputs[0]) == ""
        process.kill()
        process.close()

    asyncio.run(go())


def test_the_end_of_the_program_ends_what_it_left_behind(box: Box) -> None:
    end, out, _ = box.run(DOUBLE_FORK)
    assert end.code == 0
    assert out in ("", "grandchild\n")  # read up to end of file: it has no writer any more


def test_many_tasks_may_wait_and_one_may_give_up(box: Box) -> None:
    async def go() -> None:
        process = await box.start(FOREVER)
        waiters = [asyncio.create_task(process.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        waiters[0].cancel()
        process.kill()
        ends = await asyncio.gather(*waiters, return_exceptions=True)
        assert isinstance(ends[0], asyncio.CancelledError)
        assert ends[1] == ends[2] == await process.wait()
        process.close()

    asyncio.run(go())


def test_a_cancelled_start_leaves_nothing_running(box: Box) -> None:
    async def go() -> None:
        spec = box.spec(FOREVER)
        task = asyncio.create_task(box.sandbox.start(spec))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        reader = os.open(f"{spec.folder}/out", os.O_RDONLY | os.O_NONBLOCK)
        assert drain(reader) == ""
        os.close(reader)

    asyncio.run(go())


def test_usage_counts_cpu_and_memory(box: Box) -> None:
    async def go() -> None:
        process = await box.start("x = b'1' * (64 << 20); sum(range(10**6))\n" + FOREVER)
        await next_line(process.outputs[0])
        usage = process.usage()
        assert usage.cpu_seconds > 0
        assert usage.memory >= 64
        assert usage.peak_memory >= usage.memory
        process.kill()
        assert (await process.wait()).peak_memory >= 64
        process.close()

    asyncio.run(go())


STARTER = """
import asyncio, sys
sys.path[:0] = {path!r}
from pathlib import Path
from sandbox_box import Box
async def main():
    box = Box({tier!r}, Path({base!r}))
    spec = box.spec({code!r})
    process = await box.sandbox.start(spec)
    print(spec.container_id, spec.folder, process.pid, process.pid_started, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def start_and_die(box: Box, code: str) -> tuple[str, str, int, int]:
    """Starts a sandbox from another process, which is then killed with SIGKILL."""
    path = [str(Path(__file__).parent), *sys.path]
    source = STARTER.format(path=path, tier=box.tier, base=str(box.base), code=code)
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        container_id, folder, pid, started = starter.stdout.readline().split()
        starter.kill()
    return container_id, folder, int(pid), int(started)


def test_it_outlives_a_kill_of_its_server_and_is_adopted_with_its_exit_code(box: Box) -> None:
    code = (
        "import os, tempfile\n"
        "os.mkfifo(tempfile.gettempdir() + '/go'); print('ready')\n"
        "open(tempfile.gettempdir() + '/go').read()\n"
        "print('went on'); os._exit(7)"
    )
    known = start_and_die(box, code)

    async def go() -> None:
        process = box.sandbox.adopt(*known)
        assert process is not None
        assert process.pid == known[2]
        assert await next_line(process.outputs[0]) == "ready"
        Path(known[1], "tmp/go").write_text("")
        assert (await process.wait()).code == 7
        assert drain(process.outputs[0]) == "went on\n"
        process.close()

    asyncio.run(go())
    assert box.sandbox.adopt(*known) is None
    assert (end := read_exit(known[1])) is not None
    assert end.code == 7


def test_an_adopted_sandbox_can_be_killed(box: Box) -> None:
    known = start_and_die(box, FOREVER)

    async def go() -> None:
        process = box.sandbox.adopt(*known)
        assert process is not None
        process.kill()
        assert (await process.wait()).signal == signal.SIGKILL
        process.close()

    asyncio.run(go())


def test_another_process_with_the_same_pid_is_not_adopted(box: Box) -> None:
    spec = box.spec("")
    assert box.sandbox.adopt(spec.container_id, spec.folder, os.getpid(), 1) is None


def test_memory_beyond_the_limit_ends_the_offender_alone(box: Box) -> None:
    async def go() -> None:
        neighbour = await box.start(FOREVER, memory_limit=64)
        await next_line(neighbour.outputs[0])
        hog = await box.start("b = []\nwhile True: b.append(bytearray(1 << 20))", memory_limit=64)
        end = await hog.wait()
        if Feature.MEMORY_LIMIT in box.features:
            assert (end.oom_killed, end.signal) == (True, signal.SIGKILL)
            assert 60 <= end.peak_memory <= 64
            assert "memory limit" in end.describe()
        else:
            assert end.code == 1
            assert "MemoryError" in drain(hog.outputs[1])
        assert len(family(neighbour.pid)) == 2
        neighbour.kill()
        assert not (await neighbour.wait()).oom_killed
        for process in (hog, neighbour):
            process.close()

    asyncio.run(go())


def test_a_fork_bomb_stops_at_the_limit(box: Box) -> None:
    code = """
import os, signal
n = 0
try:
    while True:
        if os.fork() == 0: signal.pause()
        n += 1
except OSError: print(n)
"""
    if box.sandbox.missing([Feature.PIDS_LIMIT]):
        with pytest.raises(InvalidError, match="number of processes"):
            box.run(code, pids_limit=16)
    else:
        assert 13 <= int(box.prints(code, pids_limit=16)) <= 16


def test_a_declared_limit_that_the_tier_lacks_is_refused(box: Box) -> None:
    if Feature.CPU_LIMIT in box.features:
        assert box.prints("print('runs')", cpu_limit=0.5) == "runs"
    else:
        with pytest.raises(InvalidError, match=r"cpu.*groups"):
            box.run("", cpu_limit=0.5)


def test_it_works_under_uvloop(box: Box) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def go() -> int:
        process = await box.start("import os; os._exit(3)")
        end = await process.wait()
        process.close()
        return end.code

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(go()) == 3
