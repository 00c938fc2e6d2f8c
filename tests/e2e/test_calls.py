"""Calls of every kind, through a real server and real containers."""

from __future__ import annotations

import asyncio
import builtins
import traceback
import uuid
from collections.abc import Iterator

import calls
import pytest
from server_home import ServerHome

import lorry
from lorry import exception


@pytest.fixture(scope="module")
def running(shared_home: ServerHome) -> Iterator[lorry.App]:
    from server_home import entered

    with entered(shared_home), calls.app.run():
        yield calls.app


pytestmark = pytest.mark.usefixtures("running", "server")


def test_a_call_returns_its_value() -> None:
    assert calls.square.remote(7) == 49


def test_keyword_and_default_arguments_arrive() -> None:
    assert calls.add.remote(1) == 11
    assert calls.add.remote(1, 2, c=3) == 6
    assert calls.add.remote(b=1, a=2) == 3


def test_local_runs_here() -> None:
    assert calls.square.local(3) == 9


def test_calling_the_function_itself_names_remote_and_local() -> None:
    with pytest.raises(TypeError, match=r"square\.remote.*square\.local"):
        calls.square(3)


def test_the_exception_comes_back_as_itself_with_the_remote_traceback() -> None:
    with pytest.raises(calls.Oops) as caught:
        calls.fail.remote("own")
    assert caught.value.code == 7
    text = "".join(traceback.format_exception(caught.value))
    assert "in fail" in text
    assert 'raise Oops(7, "seven")' in text  # the source line of the user's own file


def test_the_cause_of_an_exception_comes_along() -> None:
    with pytest.raises(RuntimeError, match="outer") as caught:
        calls.fail.remote("cause")
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_exception_that_cannot_be_pickled_becomes_a_remote_error() -> None:
    with pytest.raises(exception.RemoteError, match="Unpicklable: holds a lock"):
        calls.fail.remote("unpicklable")


def test_sys_exit_in_a_function_is_an_error_of_that_input_only() -> None:
    with pytest.raises(SystemExit):
        calls.fail.remote("exit")
    assert calls.square.remote(2) == 4


def test_a_result_that_cannot_be_pickled_is_named() -> None:
    with pytest.raises(exception.SerializationError, match="lock"):
        calls.unpicklable_result.remote()


def test_an_argument_that_cannot_be_pickled_is_named() -> None:
    import threading

    with pytest.raises(exception.SerializationError, match="element 1 → element 0 → a _thread.lock"):
        calls.square.remote(threading.Lock())


def test_lambdas_travel() -> None:
    assert calls.fail.remote("lambda")() == 1


def test_a_missing_file_that_exists_here_names_the_three_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        calls.fail.remote("file")
    notes = "\n".join(caught.value.__notes__)
    assert "add_local_file" in notes
    assert "Volume" in notes
    assert "batch_upload" in notes


def test_a_missing_package_names_the_line_to_add() -> None:
    with pytest.raises(ModuleNotFoundError) as caught:
        calls.fail.remote("import")
    assert 'uv_pip_install("numpy' in "\n".join(caught.value.__notes__)


def test_input_in_a_container_names_local_and_shell() -> None:
    with pytest.raises(exception.InvalidError, match=r"\.local\(\)"):
        calls.fail.remote("input")


def test_a_container_that_dies_each_time_ends_with_its_story() -> None:
    with pytest.raises(exception.ContainerLostError, match=r"exited with code 9.*8 times"):
        calls.die.remote("exit")


def test_a_segfault_is_told_as_such() -> None:
    with pytest.raises(exception.ContainerLostError, match="SIGSEGV"):
        calls.die.remote("segv")


def test_generators_stream_and_end() -> None:
    assert list(calls.count.remote_gen(200)) == list(range(200))
    assert list(calls.async_count.remote_gen(5)) == list(range(5))


def test_a_generator_that_fails_delivers_its_values_first() -> None:
    values = calls.count_and_fail.remote_gen(3)
    assert [next(values), next(values), next(values)] == [0, 1, 2]
    with pytest.raises(calls.Oops):
        next(values)


def test_an_abandoned_generator_frees_its_container() -> None:
    endless = calls.count.remote_gen(10**9)
    assert next(endless) == 0
    endless.close()
    assert list(calls.count.remote_gen(2)) == [0, 1]


def test_a_time_out_really_stops_the_work() -> None:
    with pytest.raises(exception.FunctionTimeoutError, match="timeout"):
        calls.sleep_over.remote(600)
    assert calls.sleep_over.remote(0) == "done"


def test_a_timeout_error_is_the_builtin_one_too() -> None:
    with pytest.raises(builtins.TimeoutError):
        calls.sleep_over.remote(600)


def test_async_functions_run() -> None:
    assert calls.async_square.remote(5) == 25


def test_aio_twins() -> None:
    async def main() -> None:
        assert await calls.square.remote.aio(6) == 36
        assert await asyncio.gather(*(calls.square.remote.aio(i) for i in range(20))) == [i * i for i in range(20)]
        assert [x async for x in calls.count.remote_gen.aio(3)] == [0, 1, 2]
        call = await calls.square.spawn.aio(3)
        assert await call.get.aio() == 9
        assert [x async for x in calls.square.map.aio(range(50))] == [i * i for i in range(50)]

    asyncio.run(main())


def test_concurrent_inputs_share_a_container() -> None:
    assert sorted(calls.together.map(range(16))) == list(range(16))
    names = set(calls.threads.map(range(12)))
    assert all(name.startswith("lorry-input") for name in names)


def test_functions_call_functions() -> None:
    assert calls.call_square.remote(4) == 17


def test_handles_travel_as_arguments_and_results() -> None:
    assert calls.apply.remote(calls.square, 5) == 25
    call = calls.square.spawn(6)
    assert calls.echo.remote(call).get() == 36


def test_inside_a_container_the_code_knows_where_it_is() -> None:
    found = calls.identity_of.remote()
    assert found["local"] is False
    assert found["call"].startswith("fc-")
    assert (found["cwd"], found["home"], found["uid"]) == ("/root", "/root", 0)
    assert "calls.py" in found["files"]


@pytest.mark.parametrize("function", [calls.input_id, calls.input_id_among_others])
def test_each_input_of_a_map_has_an_id_of_its_own(function: lorry.Function) -> None:
    found = list(function.map(range(600)))
    assert len({call for call, _ in found}) == 1
    assert len({name for _, name in found}) == 600
    call, name = function.remote(0)
    assert name == f"in-{call[3:]}-0-0"


def test_spawn_and_get() -> None:
    call = calls.square.spawn(9)
    assert call.get() == 81
    assert lorry.FunctionCall.from_id(call.object_id).get() == 81


def test_get_without_waiting_raises_the_builtin_timeout_error() -> None:
    call = calls.nap.spawn(600)
    with pytest.raises(builtins.TimeoutError):
        call.get(timeout=0)
    call.cancel()


def test_cancel_interrupts_what_runs_and_is_not_retried() -> None:
    call = calls.nap.spawn(600)
    call.cancel()
    with pytest.raises(exception.CallCancelledError):
        call.get(timeout=20)


def test_code_that_refuses_to_stop_is_killed() -> None:
    call = calls.stubborn.spawn("x")
    call.cancel()
    with pytest.raises(exception.CallCancelledError):
        call.get(timeout=20)


def test_gather() -> None:
    spawned = [calls.square.spawn(i) for i in range(5)]
    assert lorry.FunctionCall.gather(*spawned) == [0, 1, 4, 9, 16]


def test_an_unknown_call_is_told_as_expired() -> None:
    with pytest.raises(exception.OutputExpiredError, match="7 days"):
        lorry.FunctionCall.from_id("fc-" + "0" * 32).get(timeout=0)


def test_retries_run_again_until_it_works() -> None:
    assert calls.flaky.remote(uuid.uuid4().hex) == 3


def test_classes_keep_state() -> None:
    counter = calls.Counter(start=100)
    assert [counter.add.remote(1), counter.add.remote(2)] == [101, 103]
    assert counter.twice.remote(1) == 208
    assert list(calls.Counter(start=3).up_to.remote_gen(6)) == [3, 4, 5]
    assert calls.Counter().add.local(5) == 5


def test_class_parameters_are_checked_here() -> None:
    with pytest.raises(exception.InvalidError, match="no parameter 'begin'"):
        calls.Counter(begin=1)
    with pytest.raises(exception.InvalidError, match="is int, not str"):
        calls.Counter(start="1")


def test_with_options_has_containers_of_its_own() -> None:
    patient = calls.sleep_over.with_options(timeout=60)
    assert patient.remote(1.2) == "done"


def test_large_arguments_and_results() -> None:
    assert calls.size_of.remote(bytes(3_000_000)) == 3_000_000
    assert len(calls.zeros.remote(5_000_000)) == 5_000_000
    assert calls.echo.remote("x" * 1_000_000) == "x" * 1_000_000


def test_maps_in_order_and_not() -> None:
    assert list(calls.square.map(range(1000))) == [i * i for i in range(1000)]
    assert sorted(calls.square.map(range(100), order_outputs=False)) == [i * i for i in range(100)]
    assert list(calls.add.map([1, 2], [3, 4], kwargs={"c": 1})) == [5, 7]
    assert list(calls.add.starmap([(1, 2), (3, 4)])) == [3, 7]


def test_an_empty_map_is_empty() -> None:
    assert list(calls.square.map([])) == []


def test_a_map_raises_at_the_place_of_the_error() -> None:
    outputs = calls.fail.map(["x", "own", "x"])
    assert next(outputs) is None
    with pytest.raises(calls.Oops):
        next(outputs)


def test_return_exceptions_puts_them_in_place() -> None:
    values = list(calls.fail.map(["x", "own", "x", "cause"], return_exceptions=True))
    assert [type(value).__name__ for value in values] == ["NoneType", "Oops", "NoneType", "RuntimeError"]


def test_an_iterator_that_raises_raises_here_after_the_outputs_before_it() -> None:
    def inputs() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("input")

    outputs = calls.square.map(inputs())
    assert [next(outputs), next(outputs)] == [1, 4]
    with pytest.raises(KeyError):
        next(outputs)


def test_an_endless_input_is_read_as_far_as_needed() -> None:
    import itertools

    outputs = calls.square.map(itertools.count())
    assert [next(outputs) for _ in range(50)] == [i * i for i in range(50)]
    outputs.close()


def test_spawn_map() -> None:
    call = calls.square.spawn_map(range(600))
    assert call.num_inputs() == 600
    assert call.get(index=599) == 599 * 599
    assert list(call.iter(start=250, end=260)) == [i * i for i in range(250, 260)]


def test_for_each_ignores_exceptions_when_told() -> None:
    calls.fail.for_each(["x", "own"], ignore_exceptions=True)
    with pytest.raises(calls.Oops):
        calls.fail.for_each(["own"])


def test_generators_refuse_remote_and_map() -> None:
    with pytest.raises(exception.InvalidError, match="remote_gen"):
        calls.count.remote(3)
    with pytest.raises(exception.InvalidError, match="remote_gen"):
        calls.count.map([3])


def test_an_input_of_a_map_that_takes_too_long_costs_only_itself() -> None:
    """Its neighbours in the chunk go on in the same container."""
    assert list(calls.sleep_over.map([0.0] * 8)) == ["done"] * 8  # measured: the next ones travel together
    values = list(calls.sleep_over.map([0.0, 0.0, 600.0, 0.0, 0.0], return_exceptions=True))
    assert [type(value).__name__ for value in values] == ["str", "str", "FunctionTimeoutError", "str", "str"]
