"""Functions that use more than they have, end in odd ways, or write without end. Others never notice."""

from __future__ import annotations

import asyncio
import builtins
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import limits
import pytest
from server_home import ServerHome, entered, processes_of, wait_until

import lorry
from lorry import exception
from lorry.sdk.channel import Channel
from lorry.wire.control import encode
from lorry.wire.frames import Kind


@pytest.fixture(scope="module")
def running(shared_home: ServerHome) -> Iterator[lorry.App]:
    with entered(shared_home), limits.app.run():
        yield limits.app


pytestmark = pytest.mark.usefixtures("running", "server")


def lines_of(app: lorry.App, call: str | None = None) -> list[str]:
    channel = Channel()
    rows: list[str] = []
    try:
        params = {"app_id": app.app_id, "call": call}
        channel.ask("app_logs", params, lambda event: rows.extend(row["x"] for row in event.get("lines", ())))
    finally:
        channel.close()
    return rows


def alive() -> list[dict[str, object]]:
    channel = Channel()
    try:
        return list(channel.ask("container_list", {"app_id": limits.app.app_id})["containers"])
    finally:
        channel.close()


def volume_folder(home: ServerHome) -> Path:
    return home.state / "volumes" / str(limits.out.hydrate().object_id)


# Memory


def test_an_argument_of_2_gib_arrives() -> None:
    size = 2 << 30
    value = bytearray(size)
    value[-1] = 7
    import pickle

    assert limits.length.remote(pickle.PickleBuffer(value)) == (size, 7)


def test_a_result_over_the_memory_limit_names_it_and_leaves_others_alone() -> None:
    neighbour = limits.pids.remote()["pid"]
    with pytest.raises(exception.OutOfMemoryError, match=r"limit of 160 MiB \(peak 1\d\d MiB\).*memory="):
        limits.large_result.remote(400)
    assert limits.pids.remote()["pid"] == neighbour


# Output


def test_output_without_end_hinders_nobody_and_stays_bounded(own_server: ServerHome) -> None:
    os.environ["LORRY_LOG_LIMIT"] = "2"
    try:
        again = lorry.App("limits-again")
        print_forever = again.function(timeout=600)(limits.print_forever.get_raw_f())
        echo = again.function()(limits.echo.get_raw_f())
        with again.run() as app:
            noisy = print_forever.spawn("noise " * 100)
            log = own_server.state / "logs" / f"{app.app_id}.jsonl"
            wait_until(lambda: log.with_suffix(".old").exists(), 30)
            for i in range(50):
                assert echo.remote(i) == i
            sizes = [file.stat().st_size for file in (own_server.state / "logs").iterdir()]
            assert sum(sizes) < 4 << 20
            noisy.cancel()
            with pytest.raises(exception.CallCancelledError):
                noisy.get(timeout=20)
    finally:
        del os.environ["LORRY_LOG_LIMIT"]


def rss_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_line_of_100_mb_is_kept_in_pieces_and_waits_for_no_follower(server: ServerHome) -> None:
    follower = Channel()
    params = {"app_id": limits.app.app_id, "follow": True, "only_new": True}
    for frame in encode(Kind.REQUEST, 1, {"method": "app_logs", "params": params}):
        follower.open().send(frame)  # and never read
    before = rss_of(server.worker_pid())
    call = limits.one_line.spawn(100)
    assert call.get(timeout=60) == 100
    assert rss_of(server.worker_pid()) - before < 64 << 20
    follower.close()
    lines = lines_of(limits.app, call.object_id)
    assert sum(map(len, lines)) == 100 << 20
    assert max(map(len, lines)) <= 16 * 1024


def test_binary_output_is_shown_escaped() -> None:
    call = limits.binary.spawn()
    assert call.get(timeout=30) == "done"
    lines = lines_of(limits.app, call.object_id)
    assert lines[0] == "\\xff\\xfe\x00binary\\x80"


# Processes


def test_a_fork_that_returns_from_the_function_does_not_answer_or_stay() -> None:
    first = limits.fork_and_return.remote()
    assert [limits.fork_and_return.remote() for _ in range(3)] == [first] * 3
    assert list(limits.fork_and_return.map([], kwargs={})) == []
    assert limits.fork_in_thread.remote() == limits.fork_in_thread.remote()


def test_the_limit_of_processes_leaves_the_machine_most_of_its_numbers(server: ServerHome) -> None:
    limits.pids_limit.remote()
    container = next(c for c in alive() if c["function"] == "pids_limit")
    found = [*Path("/sys/fs/cgroup").rglob(f"*{container['container_id']}*/pids.max")]
    if not found:
        pytest.skip("no pids controller on this machine")
    assert int(found[0].read_text()) <= int(Path("/proc/sys/kernel/pid_max").read_text()) // 4 + 16


def test_killing_pid_1_of_a_container_runs_its_input_again(server: ServerHome) -> None:
    call = limits.leave_pid.spawn("killed")
    folder = volume_folder(server)
    wait_until(lambda: (folder / "killed").exists())
    container = next(c for c in alive() if c["function"] == "leave_pid")
    os.kill(processes_of(server.state / "containers" / str(container["container_id"]))[0], signal.SIGKILL)
    (folder / "killed.go").write_text("")
    assert call.get(timeout=30) is None
    assert len((folder / "killed").read_text().split()) == 2


def test_a_thread_may_go_on_after_its_function_returned(server: ServerHome) -> None:
    folder = volume_folder(server)
    assert limits.leave_a_thread.remote("thread") == "returned"
    (folder / "thread.go").write_text("")
    wait_until(lambda: (folder / "thread.done").exists())
    wait_until(lambda: "a word from the thread" in lines_of(limits.app))
    (folder / "second.go").write_text("")
    assert limits.leave_a_thread.remote("second") == "returned"


def test_code_that_closes_its_stdout_keeps_its_container() -> None:
    assert limits.close_stdout.remote() == "still here"
    with pytest.raises(OSError):
        limits.close_stdout.remote()  # it is closed already: the same container


# Endings


def test_the_user_s_own_interrupts_come_back_and_cost_no_container() -> None:
    with pytest.raises(KeyboardInterrupt):
        limits.raise_it.remote("keyboard")
    with pytest.raises(GeneratorExit):
        limits.raise_it.remote("generator exit")
    with pytest.raises(RuntimeError, match="StopIteration"):
        limits.raise_it.remote("stop")
    assert limits.raise_it.remote("fine") == "fine"


ENDINGS = [("stop", RuntimeError), ("keyboard", KeyboardInterrupt), ("exit", SystemExit)]


@pytest.mark.parametrize(("kind", "expected"), ENDINGS)
def test_they_come_back_from_threads_too(kind: str, expected: type[BaseException]) -> None:
    with pytest.raises(expected):
        limits.raise_in_thread.remote(kind)
    assert limits.raise_in_thread.remote("nothing") is None


def test_stop_iteration_in_a_map_is_an_error_not_an_end() -> None:
    with pytest.raises((RuntimeError, StopIteration), match=r"StopIteration|5"):
        list(limits.raise_it.map(["stop"]))


def test_async_calls_survive_them() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await limits.raise_it.remote.aio("stop")

    asyncio.run(main())


def test_too_deep_recursion_is_an_ordinary_error() -> None:
    with pytest.raises(RecursionError):
        limits.raise_it.remote("recursion")
    assert limits.raise_it.remote("fine") == "fine"


def test_a_real_stack_overflow_ends_with_its_signal() -> None:
    with pytest.raises(exception.ContainerLostError, match="SIGSEGV"):
        limits.overflow_the_stack.remote()


def test_a_message_of_100_mb_is_cut() -> None:
    with pytest.raises(exception.RemoteError, match="ValueError: beginxxx") as caught:
        limits.raise_it.remote("huge")
    text = str(caught.value)
    assert len(text) < 100_000
    assert re.search(r"99,9\d\d,\d+ characters left out", text)
    assert "xxxend" in text


def test_an_exception_that_holds_data_comes_back_whole() -> None:
    with pytest.raises(ValueError) as caught:
        limits.raise_it.remote("array")
    assert caught.value.args == (b"y" * 200_000,)


def test_an_exception_without_words_comes_back() -> None:
    with pytest.raises(limits.StrRaises):
        limits.raise_it.remote("str raises")


def test_a_result_too_deep_to_pickle_is_an_error_of_that_input() -> None:
    with pytest.raises(exception.SerializationError, match=r"cannot be pickled.*deep recursion"):
        limits.raise_it.remote("deep")


def test_an_argument_too_deep_to_pickle_is_refused_here() -> None:
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(exception.SerializationError, match="deep recursion"):
        limits.echo.remote(value)


def test_a_generator_or_coroutine_as_result_is_named_with_what_to_do() -> None:
    with pytest.raises(exception.SerializationError, match=r"builtins\.generator \(return a list.*remote_gen"):
        limits.raise_it.remote("generator")
    with pytest.raises(exception.SerializationError, match=r"element 0 → a builtins\.coroutine \(make the function"):
        limits.raise_it.remote("coroutine")


# Capacity


def test_a_card_that_is_not_here_fails_at_once_and_says_what_is() -> None:
    with pytest.raises(exception.CapacityError, match=r'L4.*gpu="any"|no GPU'):
        limits.on_one_card.remote()


def test_more_memory_than_the_machine_has_fails_at_once() -> None:
    with pytest.raises(exception.CapacityError, match=r"memory=10000000 .*installed in this machine"):
        limits.too_much_memory.remote()


CARDS = "0, NVIDIA L4, 23034\n1, NVIDIA L4, 23034\n2, NVIDIA A100-SXM4-40GB, 40960\n"


def test_cards_are_exclusive_and_fall_back_in_order(own_server: ServerHome, monkeypatch: pytest.MonkeyPatch) -> None:
    fixture = own_server.root / "cards"
    fixture.write_text(CARDS)
    monkeypatch.setenv("LORRY_GPU_FIXTURE", str(fixture))
    again = lorry.App("limits-again")
    on_one_card = again.function(gpu="L4")(limits.on_one_card.get_raw_f())
    with again.run():
        # Three variants of one function hold their idle containers: each has a card of its own.
        first = on_one_card.with_options(env={"N": "1"})
        second = on_one_card.with_options(env={"N": "2"})
        assert {first.remote(), second.remote()} == {"0", "1"}
        fallback = on_one_card.with_options(gpu=["H100", "A100"])
        assert fallback.remote() == "2"
        both = on_one_card.with_options(gpu="L4:2")  # idle ones make room
        assert both.remote() == "0,1"
        with pytest.raises(exception.CapacityError, match=r"H100.*NVIDIA L4|NVIDIA L4.*any|L4.*any"):
            on_one_card.with_options(gpu="H100").remote()
        with pytest.raises(exception.CapacityError):
            on_one_card.with_options(gpu="L4:3").remote()


def test_the_builtin_timeout_is_not_confused_with_capacity() -> None:
    with pytest.raises(exception.CapacityError) as caught:
        limits.too_much_memory.remote()
    assert not isinstance(caught.value, builtins.TimeoutError)
