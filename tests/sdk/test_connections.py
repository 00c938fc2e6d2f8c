"""Connections of clients through a real server: given up, forked, cancelled, and large maps."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import calls
import pytest
from server_home import ServerHome, entered, wait_until

import lorry
from lorry import exception
from lorry.sdk import async_channel, channel


@pytest.fixture(scope="module")
def running(shared_home: ServerHome) -> Iterator[lorry.App]:
    with entered(shared_home), calls.app.run():
        yield calls.app


pytestmark = pytest.mark.usefixtures("running", "server")


def open_descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("count", [1, 3])
def test_a_map_whose_inputs_are_large_is_not_overtaken_by_its_end(count: int) -> None:
    assert list(calls.size_of.map([bytes(400_000 + n) for n in range(count)])) == [400_000 + n for n in range(count)]

    async def main() -> list[int]:
        return [n async for n in calls.size_of.map.aio([bytes(400_000)] * count)]

    assert asyncio.run(main()) == [400_000] * count


def test_maps_with_large_inputs_leave_no_descriptors_behind() -> None:
    list(calls.size_of.map([bytes(100_000)]))
    before = open_descriptors()
    for _ in range(3):
        list(calls.size_of.map([bytes(100_000)]))
    assert open_descriptors() <= before


def test_loops_that_end_take_their_connections_along() -> None:
    async def main() -> Any:
        return await calls.square.remote.aio(3)

    asyncio.run(main())
    before = open_descriptors()
    for _ in range(3):
        assert asyncio.run(main()) == 9
    assert open_descriptors() <= before
    assert len(async_channel._per_loop) == 0


def test_ctrl_c_in_the_middle_of_a_call_leaves_the_connection_usable() -> None:
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    timer = threading.Timer(0.3, lambda: signal.pthread_kill(main_thread, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        calls.sleep_over.remote(0.8)
    timer.join()
    assert [calls.square.remote(n) for n in range(5)] == [n * n for n in range(5)]


def test_ctrl_c_in_a_map_ends_it_and_leaves_the_connection_usable() -> None:
    outputs = calls.square.map(itertools.count())
    assert next(outputs) == 0
    with pytest.raises(KeyboardInterrupt):
        outputs.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    assert calls.square.remote(2) == 4
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "lorry-map"])


def test_a_task_that_is_cancelled_does_not_disturb_the_others() -> None:
    async def main() -> None:
        slow = asyncio.create_task(calls.nap.remote.aio(30))
        quick = [asyncio.create_task(calls.square.remote.aio(n)) for n in range(10)]
        await asyncio.sleep(0.2)
        slow.cancel()
        assert await asyncio.gather(*quick) == [n * n for n in range(10)]
        with pytest.raises(asyncio.CancelledError):
            await slow
        assert await calls.square.remote.aio(4) == 16

    asyncio.run(main())


def test_many_large_calls_of_one_loop_share_its_connection() -> None:
    async def main() -> list[int]:
        return await asyncio.gather(*(calls.size_of.remote.aio(bytes(70_000 + n)) for n in range(60)))

    assert asyncio.run(main()) == [70_000 + n for n in range(60)]


def test_a_forked_child_has_a_connection_of_its_own() -> None:
    assert calls.square.remote(2) == 4
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, str(calls.square.remote(5)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    assert os.read(reader, 100) == b"25"
    os.close(reader)
    assert os.waitpid(child, 0)[1] == 0
    assert calls.square.remote(3) == 9


def failing_inputs() -> Iterator[int]:
    yield from range(300)
    raise KeyError("input")


@pytest.mark.parametrize("_round", range(5))
def test_the_outputs_before_a_failing_input_are_all_delivered(_round: int) -> None:
    found = []
    with pytest.raises(KeyError):
        for value in calls.square.map(failing_inputs()):
            found.append(value)
    assert found == [n * n for n in range(300)]

    async def inputs() -> AsyncIterator[int]:
        for n in failing_inputs():
            yield n

    async def main() -> None:
        found = []
        with pytest.raises(KeyError):
            async for value in calls.square.map.aio(inputs()):
                found.append(value)
        assert found == [n * n for n in range(300)]

    asyncio.run(main())


def test_an_input_that_cannot_be_pickled_is_told() -> None:
    with pytest.raises(exception.SerializationError, match="lock"):
        list(calls.square.map([1, 2, threading.Lock()]))

    async def main() -> None:
        with pytest.raises(exception.SerializationError, match="lock"):
            async for _ in calls.square.map.aio([1, threading.Lock()]):
                pass

    asyncio.run(main())


def test_a_map_over_nothing_iterable_is_told() -> None:
    for act in (lambda: calls.square.map(), lambda: calls.square.map.aio(), lambda: calls.square.map(5)):
        with pytest.raises(TypeError):
            act()


def test_a_connection_that_was_refused_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "PROTOCOL_VERSION", 999)
    stranger = channel.Channel()
    for _ in range(2):
        with pytest.raises(exception.VersionError):
            stranger.open()
        assert stranger.sock is None


# Inputs that come slowly, and many at once


def slowly(count: int) -> Iterator[int]:
    """Like a queue or a sensor: the next input comes only after the output of the one before was seen."""
    for n in range(count):
        yield n
        assert seen.wait(20), f"the output of input {n} is held back"
        seen.clear()


seen = threading.Event()


def test_an_output_does_not_wait_for_inputs_that_have_not_come_yet() -> None:
    list(calls.square.map(range(2000)))  # inputs are known to be short: chunks are large
    for n, output in enumerate(calls.square.map(slowly(30))):
        assert output == n * n
        seen.set()
    assert n == 29


def test_nor_does_it_on_a_loop() -> None:
    async def slowly() -> AsyncIterator[int]:
        for n in range(30):
            yield n
            await asyncio.wait_for(output_seen.wait(), 20)
            output_seen.clear()

    output_seen = asyncio.Event()

    async def main() -> list[int]:
        found = []
        async for output in calls.square.map.aio(slowly()):
            found.append(output)
            output_seen.set()
        return found

    assert asyncio.run(main()) == [n * n for n in range(30)]


def test_inputs_that_come_in_bursts_keep_their_order() -> None:
    def bursts() -> Iterator[int]:
        for n in range(20_000):
            if n % 3001 == 0:
                time.sleep(0.05)
            yield n

    assert list(calls.square.map(bursts())) == [n * n for n in range(20_000)]
