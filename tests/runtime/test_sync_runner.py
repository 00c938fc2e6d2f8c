"""The loop of a container with a fake link: interruptions at any moment lose no result and give none twice."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from lorry.errors import InputCancellation
from lorry.model.records import Selection, Status
from lorry.runtime import sync_runner
from lorry.runtime.load import Loaded
from lorry.runtime.sync_runner import SyncRunner
from lorry.wire import pickling
from lorry.wire.endpoint import Endpoint, Frame
from lorry.wire.frames import MAX_RANGES, NO_CALL, Flag, Header, Kind, pack_selection, unpack_selection

LEASE = 77


class FakeLink:
    def __init__(self) -> None:
        self.endpoint = Endpoint()
        self.inbox: deque[Frame] = deque()
        self.sent: list[tuple[dict[str, Any], Any]] = []
        self.forked = False

    def poll(self) -> Frame | None:
        return self.inbox.popleft() if self.inbox else None

    def receive(self) -> Frame:
        return self.inbox.popleft()

    def control(self, frame: Frame) -> Any:
        return {"method": "stop"}

    def send(self, header: Header, payload: tuple[bytes, list[memoryview]], selection: bytes = b"") -> None:
        names = ("kind", "flags", "status", "spare", "number", "lease", "call", "micros", "count")
        fields: dict[str, Any] = {**dict(zip(names, header, strict=True)), "selection": selection}
        assert fields["kind"] == Kind.RESULT
        assert len(selection) <= 2 + 8 * MAX_RANGES
        ok = fields["status"] in (Status.OK, Status.YIELD, Status.DONE)
        self.sent.append((fields, pickling.loads([payload[0], *payload[1]]) if ok else None))

    def send_plain(self, message: Any) -> None: ...

    def release_unused(self) -> None: ...


def frame(kind: Kind, payload: bytes = b"", *, flags: int = 0, count: int = 1, micros: int = 0) -> Frame:
    return Frame(kind, flags, 0, 0, 0, LEASE, NO_CALL, micros, count, payload)


CANCEL, TIMEOUT, STOP = frame(Kind.CANCEL), frame(Kind.TIMEOUT), frame(Kind.REQUEST)


class Bench:
    def __init__(self, function: Callable[..., Any]) -> None:
        self.link = FakeLink()
        self.runner = SyncRunner(self.link, Loaded({None: function}))  # type: ignore[arg-type]

    def nudge(self, *frames: Frame) -> None:
        self.link.inbox.extend(frames)
        self.runner.nudged()

    def run_one(self, *arguments: Any, flags: int = 0) -> None:
        self.runner._run(frame(Kind.INPUT, pickling.dumps((None, arguments, {}))[0], flags=flags))

    def run_batch(self, inputs: list[Any], left: Selection | None = None) -> None:
        body = pickling.dumps((None, {}, inputs, False))[0]
        selection = pack_selection(left) if left else b""
        flags = Flag.BATCH | (Flag.SELECT if left else 0)
        self.runner._run(frame(Kind.INPUT, selection + body, flags=flags, count=len(inputs)))

    def outcomes(self, count: int) -> dict[int, Any]:
        """Index to value or status, each at most once."""
        found: dict[int, Any] = {}
        for fields, value in self.link.sent:
            # Without a selection all inputs of the lease are meant.
            covered = unpack_selection(memoryview(fields["selection"]))[0] if fields["selection"] else self.runner._left
            indices = [i for low, high in covered for i in range(low, high)]
            values = value if fields["status"] == Status.OK else [fields["status"]] * len(indices)
            assert len(values) == len(indices)
            for index, each in zip(indices, values, strict=True):
                assert index not in found
                found[index] = each
        assert [bool(fields["flags"] & Flag.LAST) for fields, _ in self.link.sent] == [False] * (
            len(self.link.sent) - 1
        ) + [True]
        return found


def at_event(wanted: int, act: Callable[[], None]) -> tuple[Callable[..., Any], list[int]]:
    """A trace function that acts at the n-th traced step of the runner's own code: where a signal may come."""
    steps = [0]

    def trace(current: FrameType, event: str, _argument: Any) -> Any:
        if current.f_code.co_filename != sync_runner.__file__ or current.f_code.co_name not in (
            "_run_one",
            "_batch_from",
        ):
            return None
        current.f_trace_opcodes = True
        if event == "opcode":
            steps[0] += 1
            if steps[0] == wanted:
                act()
        return trace

    return trace, steps


def interrupted_at(step: int, bench: Bench, work: Callable[[], None], *frames: Frame) -> bool:
    trace, steps = at_event(step, lambda: bench.nudge(*frames))
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return steps[0] >= step


@pytest.mark.parametrize("why", [CANCEL, TIMEOUT])
def test_an_interruption_at_any_instruction_gives_one_answer(why: Frame) -> None:
    step, more = 1, True
    while more:
        bench = Bench(lambda x: x + 1)
        more = interrupted_at(step, bench, lambda bench=bench: bench.run_one(4), why)  # type: ignore[misc]
        ((fields, value),) = bench.link.sent
        assert value == 5 or fields["status"] in (Status.CANCELLED, Status.TIMEOUT)
        bench.run_one(1)
        assert bench.link.sent[-1][1] == 2
        step += 1
    assert step > 20


def test_a_time_out_at_any_instruction_of_a_batch_moves_no_result_to_another_input() -> None:
    step, more = 1, True
    while more:
        bench = Bench(lambda x: x * 10)
        more = interrupted_at(step, bench, lambda bench=bench: bench.run_batch([0, 1, 2]), TIMEOUT)  # type: ignore[misc]
        for index, value in bench.outcomes(3).items():
            assert value in (index * 10, Status.TIMEOUT)
        assert len(bench.outcomes(3)) == 3
        step += 1
    assert step > 60


def test_a_cancelled_batch_ends_at_once() -> None:
    ran: list[int] = []

    def work(x: int) -> int:
        ran.append(x)
        if x == 1:
            bench.nudge(CANCEL)
        return x

    bench = Bench(work)
    bench.run_batch([0, 1, 2, 3])
    assert ran == [0, 1]
    assert bench.outcomes(4) == {0: 0, 1: Status.CANCELLED}


def test_a_nudge_between_two_inputs_is_followed_before_the_next() -> None:
    ran: list[int] = []
    bench = Bench(ran.append)
    bench.link.inbox.append(CANCEL)
    bench.runner._missed = True
    bench.run_batch([0, 1, 2])
    assert ran == []


def test_a_stop_on_the_way_gives_the_rest_back_unrun() -> None:
    def work(x: int) -> int:
        if x == 1:
            bench.nudge(STOP)
        return x

    bench = Bench(work)
    bench.run_batch([0, 1, 2, 3])
    assert bench.outcomes(4) == {0: 0, 1: 1}


def test_an_input_that_is_not_over_its_time_yet_goes_on() -> None:
    def work() -> str:
        bench.nudge(frame(Kind.TIMEOUT, micros=60_000_000))
        return "done"

    bench = Bench(work)
    bench.run_one()
    assert bench.link.sent[0][1] == "done"


def test_words_about_another_lease_are_passed_over() -> None:
    def work() -> str:
        bench.nudge(CANCEL._replace(lease=LEASE + 1))
        return "done"

    bench = Bench(work)
    bench.run_one()
    assert bench.link.sent[0][1] == "done"


def test_user_code_may_raise_the_cancellation_itself() -> None:
    def work() -> None:
        raise InputCancellation

    bench = Bench(work)
    bench.run_one()
    assert bench.link.sent[0][0]["status"] == Status.ERROR


def test_every_other_input_of_a_large_batch_may_fail() -> None:
    def work(x: int) -> int:
        if x % 2:
            raise ValueError
        return x

    count = 2 * MAX_RANGES + 500
    bench = Bench(work)
    bench.run_batch(list(range(count)))
    assert bench.outcomes(count) == {x: Status.ERROR if x % 2 else x for x in range(count)}


def test_a_bad_value_costs_only_itself() -> None:
    import threading

    bench = Bench(lambda x: threading.Lock() if x == 1 else x)
    bench.run_batch([0, 1, 2], ((0, 3),))
    assert bench.outcomes(3) == {0: 0, 1: Status.ERROR, 2: 2}


def test_only_the_selected_inputs_run() -> None:
    bench = Bench(lambda x: x)
    bench.run_batch([0, 1, 2, 3, 4], ((1, 2), (3, 5)))
    assert bench.outcomes(5) == {1: 1, 3: 3, 4: 4}


def test_an_unknown_method_and_unreadable_arguments_are_errors_of_the_input() -> None:
    bench = Bench(lambda: None)
    bench.runner._run(frame(Kind.INPUT, pickling.dumps(("nothing", (), {}))[0]))
    bench.runner._run(frame(Kind.INPUT, b"nonsense"))
    bench.runner._run(frame(Kind.INPUT, b"nonsense", flags=Flag.BATCH, count=3))
    assert [fields["status"] for fields, _ in bench.link.sent] == [Status.ERROR] * 3


def test_a_generator_gives_its_values_then_its_end() -> None:
    bench = Bench(lambda n: iter(range(n)))
    bench.run_one(3, flags=Flag.STREAM)
    assert [value for _, value in bench.link.sent] == [0, 1, 2, None]
    assert [fields["status"] for fields, _ in bench.link.sent] == [Status.YIELD] * 3 + [Status.DONE]


def test_a_generator_waits_for_credit_and_ends_when_nobody_reads() -> None:
    closed = []

    def endless() -> Any:
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    bench = Bench(endless)
    bench.link.inbox.extend([frame(Kind.CREDIT, count=5), CANCEL])
    bench.run_one(flags=Flag.STREAM)
    assert len(bench.link.sent) == sync_runner.CREDIT_WINDOW + 5 + 1
    assert bench.link.sent[-1][0]["status"] == Status.CANCELLED
    assert closed == [True]


def test_a_reconnecting_runner_tells_what_it_works_on() -> None:
    bench = Bench(lambda: bench.runner.running())
    assert bench.runner.running() == []
    bench.run_one()
    ((_, value),) = bench.link.sent
    assert value == [{"lease": LEASE, "call": NO_CALL.hex(), "chunk": 0, "indices": ((0, 1),), "stream": False}]
