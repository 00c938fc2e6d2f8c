"""The filters of system calls: what they decide, on both architectures, and that programs live well under them."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox_box import PYTHON, Box

from lorry.sandbox import seccomp
from lorry.sandbox.interface import Mount

LEVELS = (seccomp.CONTAINER, seccomp.TEMPLATE)
READ = {"x86_64": 0, "aarch64": 63}
FOREIGN = {"x86_64": 0x40000003, "aarch64": 0x40000028}
ALLOW, KILL = seccomp.ALLOW, seccomp.KILL_PROCESS


def error(number: int) -> int:
    return seccomp.ERRNO | number


def decide(level: str, machine: str, number: int, *arguments: int, architecture: int | None = None) -> int:
    """What the kernel would do, from an interpreter of the few operations that the filters use."""
    own = seccomp.ARCHITECTURES[machine][0]
    data = struct.pack("<IIQ6Q", number, own if architecture is None else architecture, 0, *(*arguments, *[0] * 6)[:6])
    lines = list(struct.iter_unpack("<HBBI", seccomp.assemble(level, machine)))
    tests = {
        seccomp.IF_EQUAL: lambda a, k: a == k,
        seccomp.IF_AT_LEAST: lambda a, k: a >= k,
        seccomp.IF_ANY_BIT: lambda a, k: bool(a & k),
    }
    place, loaded = 0, 0
    while True:
        operation, true, false, operand = lines[place]
        place += 1
        if operation == seccomp.RETURN:
            return int(operand)
        if operation == seccomp.LOAD:
            (loaded,) = struct.unpack_from("<I", data, operand)
        else:
            place += true if tests[operation](loaded, operand) else false


@pytest.mark.parametrize("machine", seccomp.ARCHITECTURES)
@pytest.mark.parametrize("level", LEVELS)
def test_each_listed_call_is_denied_and_a_template_keeps_four(level: str, machine: str) -> None:
    column = seccomp.ARCHITECTURES[machine][1]
    for name, numbers in seccomp.DENIED.items():
        if numbers[column] is not None:
            kept = level == seccomp.TEMPLATE and name in ("unshare", "mount", "umount2", "pivot_root")
            assert decide(level, machine, numbers[column]) == (ALLOW if kept else error(errno.EPERM)), name


@pytest.mark.parametrize("machine", seccomp.ARCHITECTURES)
@pytest.mark.parametrize("level", LEVELS)
def test_calls_are_told_apart_by_their_arguments(level: str, machine: str) -> None:
    column = seccomp.ARCHITECTURES[machine][1]
    clone, ioctl, socket = (numbers[column] for numbers in (seccomp.CLONE, seccomp.IOCTL, seccomp.SOCKET))
    thread = 0x3D0F00
    assert decide(level, machine, clone, thread) == decide(level, machine, clone, signal.SIGCHLD) == ALLOW
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert decide(level, machine, clone, flag | signal.SIGCHLD) == error(errno.EPERM)
    tiocsti, tcgets = 0x5412, 0x5401
    assert decide(level, machine, ioctl, 0, tcgets) == ALLOW
    assert decide(level, machine, ioctl, 0, tiocsti) == decide(level, machine, ioctl, 0, tiocsti | 1 << 32)
    assert decide(level, machine, ioctl, 0, tiocsti) == error(errno.EPERM)
    for family in range(64):
        wanted = ALLOW if family in (1, 2, 10, 16) else error(errno.EAFNOSUPPORT)
        assert decide(level, machine, socket, family) == wanted


@pytest.mark.parametrize("machine", seccomp.ARCHITECTURES)
@pytest.mark.parametrize("level", LEVELS)
def test_the_rest_is_allowed_and_another_architectures_numbers_end_the_process(level: str, machine: str) -> None:
    assert decide(level, machine, READ[machine]) == ALLOW
    assert decide(level, machine, READ[machine], architecture=FOREIGN[machine]) == KILL
    assert decide(level, machine, seccomp.CLONE3[0]) == error(errno.ENOSYS)


def test_x32_calls_are_foreign_but_no_call_at_all_is_not() -> None:
    assert decide(seccomp.CONTAINER, "x86_64", seccomp.X32_BIT) == KILL
    assert decide(seccomp.CONTAINER, "x86_64", seccomp.NO_CALL) == ALLOW


def known_names() -> Iterator[tuple[str, int]]:
    """(name, number) of every system call in the kernel's header of this machine."""
    for header in Path("/usr/include").glob("*-linux-gnu/asm/unistd_64.h"):
        for line in header.read_text().splitlines():
            if line.startswith("#define __NR_"):
                _, name, number = line.split()
                yield name.removeprefix("__NR_"), int(number)


def test_the_numbers_are_those_of_the_kernels_header() -> None:
    known = dict(known_names())
    if os.uname().machine != "x86_64" or not known:
        pytest.skip("no kernel header of x86_64 here (package linux-libc-dev)")
    mine = {name: numbers[0] for name, numbers in seccomp.DENIED.items()} | {
        name: numbers[0]
        for name, numbers in (
            ("clone3", seccomp.CLONE3),
            ("clone", seccomp.CLONE),
            ("ioctl", seccomp.IOCTL),
            ("socket", seccomp.SOCKET),
        )
    }
    assert {name: known.get(name, number) for name, number in mine.items()} == mine


def test_a_container_and_a_template_run_under_one_filter_each(confined: Box) -> None:
    shell = ("sh", "-c", "grep -E '^Seccomp' /proc/self/status; unshare --user true 2>/dev/null && echo may")
    seen = confined.prints("", argv=("sh", "-c", f"{shell[2]} || echo may not")).split()
    assert seen == ["Seccomp:", "2", "Seccomp_filters:", "1", "may", "not"]
    if confined.tier == "namespaces":
        seen = confined.prints("", argv=("sh", "-c", f"{shell[2]} || echo may not"), template=True).split()
        assert seen == ["Seccomp:", "2", "Seccomp_filters:", "1", "may"]


DENIALS = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
for number in {numbers!r}:
    ctypes.set_errno(0)
    result = libc.syscall(number, 0, 0, 0, 0, 0, 0)
    print(number, errno.errorcode.get(ctypes.get_errno()))
"""


def test_denied_calls_fail_in_a_container_as_without_the_capability(confined: Box) -> None:
    if not seccomp.is_known():
        pytest.skip("no filter for this architecture")
    column = seccomp.ARCHITECTURES[os.uname().machine][1]
    numbers = {name: row[column] for name, row in seccomp.DENIED.items() if row[column] is not None}
    code = DENIALS.format(numbers=[*numbers.values(), seccomp.CLONE3[column]])
    answers = dict(line.split() for line in confined.prints(code, argv=(PYTHON, "-I", "-c", code)).splitlines())
    assert answers.pop(str(seccomp.CLONE3[column])) == "ENOSYS"
    assert {name: answers[str(number)] for name, number in numbers.items()} == dict.fromkeys(numbers, "EPERM")


FOREIGN_CALL = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write({code!r})
ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
print('survived')
"""
GETPID_32 = bytes.fromhex("b814000000cd80c3")  # mov eax, 20; int 0x80; ret
GETPID_X32 = bytes.fromhex("b8270000400f05c3")  # mov eax, 0x40000027; syscall; ret


@pytest.mark.parametrize("machine_code", [GETPID_32, GETPID_X32])
def test_a_call_by_another_architectures_number_ends_the_program(confined: Box, machine_code: bytes) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("machine code of x86_64")
    code = FOREIGN_CALL.format(code=machine_code)
    end, out, _ = confined.run(code, argv=(PYTHON, "-I", "-c", code))
    assert (end.signal, out) == (signal.SIGSYS, "")
    assert "sandbox forbids" in end.describe()


ORDINARY = """
import asyncio, concurrent.futures, multiprocessing, subprocess, threading
def double(x): return 2 * x
async def child():
    process = await asyncio.create_subprocess_exec('echo', 'hello', stdout=subprocess.PIPE)
    return (await process.communicate())[0]
if __name__ == '__main__':
    print(asyncio.run(child()).decode().strip(), subprocess.check_output(['sh', '-c', 'echo world'], text=True).strip())
    with concurrent.futures.ThreadPoolExecutor(8) as pool: print(sum(pool.map(double, range(10))))
    for way in ('fork', 'forkserver', 'spawn'):
        with multiprocessing.get_context(way).Pool(2) as pool: print(way, pool.map(double, [1, 2]))
    print(multiprocessing.shared_memory.SharedMemory(create=True, size=10).size)
"""


def test_threads_processes_and_event_loops_work_as_ever(confined: Box) -> None:
    folder = confined.volume("code", **{"ordinary.py": "import multiprocessing.shared_memory\n" + ORDINARY})
    mounts = (Mount(source=str(folder), target="/code"),)
    argv = (PYTHON, "-I", "-W", "ignore", "/code/ordinary.py")
    lines = confined.prints("", argv=argv, mounts=mounts).splitlines()
    assert lines == ["hello world", "90", "fork [2, 4]", "forkserver [2, 4]", "spawn [2, 4]", "10"]


def test_a_browser_runs_without_a_sandbox_of_its_own(confined: Box) -> None:
    browser = shutil.which("chromium", path="/usr/bin")
    if browser is None:
        pytest.skip("no chromium in /usr/bin")
    mounts = tuple(
        Mount(source=path, target=path) for path in ("/etc/chromium.d", "/etc/fonts") if os.path.exists(path)
    )
    page = "data:text/html,<script>document.write('six times seven is ' + 6 * 7)</script>"
    argv = (browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page)
    env = (("PATH", "/usr/bin:/bin"), ("HOME", "/root"))
    assert "six times seven is 42" in confined.prints("", argv=argv, mounts=mounts, env=env)
