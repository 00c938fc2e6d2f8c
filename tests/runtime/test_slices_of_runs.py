"""Runs in the runner: what is asked of them waits for a safe point, and its outcome is CONTINUE."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from test_sync_runner import CANCEL, TIMEOUT, Bench, FakeLink, frame, interrupted_at

from lorry.errors import InputCancellation, SliceTooShortError, YieldSlice
from lorry.model.function import CodeRef, FunctionKind, FunctionSpec, ResumePolicy
from lorry.model.records import Status
from lorry.runtime import slice as slices
from lorry.runtime.load import Loaded
from lorry.runtime.sync_runner import SyncRunner
from lorry.wire.frames import Kind

YIELD = frame(Kind.REQUEST)
SPEC = FunctionSpec(
    tag="f", kind=FunctionKind.FUNCTION, code=CodeRef(module="m", qualname="f"), timeout=60, resumable=ResumePolicy()
)


class YieldingLink(FakeLink):
    payloads: list[bytes]

    def __init__(self) -> None:
        super().__init__()
        self.payloads = []

    def control(self, frame: Any) -> Any:
        return {"method": "yield"}

    def send(self, header: Any, payload: Any, selection: bytes = b"") -> None:
        self.payloads.append(bytes(payload[0]))
        super().send(header, payload, selection)


class RunBench(Bench):
    def __init__(self, function: Callable[..., Any]) -> None:
        self.link: YieldingLink = YieldingLink()
        self.runner = SyncRunner(self.link, Loaded({None: function}), SPEC)  # type: ignore[arg-type]

    @property
    def status(self) -> int:
        ((fields, _),) = self.link.sent
        return int(fields["status"])


def current() -> slices.Slice:
    assert slices.current is not None
    return slices.current


def safe_point() -> None:
    wanted = current().wanted
    if wanted is not None:
        current().yielded = wanted
        raise YieldSlice(wanted)


@pytest.mark.parametrize(
    ("asked", "wanted", "status"),
    [
        ([YIELD], "drain", Status.CONTINUE),
        ([TIMEOUT], "slice", Status.CONTINUE),
        ([CANCEL], "cancel", Status.CANCELLED),
        ([CANCEL, YIELD, TIMEOUT], "cancel", Status.CANCELLED),
        ([YIELD, CANCEL], "cancel", Status.CANCELLED),
    ],
)
@pytest.mark.parametrize("batch", [False, True])
def test_an_active_run_ends_at_its_safe_point(asked: list[Any], wanted: str, status: Status, batch: bool) -> None:
    seen: list[str | None] = []

    def train(_x: int) -> None:
        current().active = True
        bench.nudge(*asked)
        seen.append(current().wanted)
        safe_point()

    bench = RunBench(train)
    bench.run_batch([1]) if batch else bench.run_one(1)
    assert (seen, bench.status) == ([wanted], status)
    assert slices.current is None


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("ending", ["returns", "raises"])
def test_it_has_ended_whatever_the_user_s_code_makes_of_that(batch: bool, ending: str) -> None:
    def train(_x: int) -> int:
        current().active = True
        bench.nudge(YIELD)
        try:
            safe_point()
        except BaseException:
            if ending == "raises":
                raise KeyError("clean-up") from None
        return 5

    bench = RunBench(train)
    bench.run_batch([1]) if batch else bench.run_one(1)
    assert bench.status == Status.CONTINUE


@pytest.mark.parametrize(
    ("asked", "status"), [(YIELD, Status.CONTINUE), (TIMEOUT, Status.TIMEOUT), (CANCEL, Status.CANCELLED)]
)
def test_what_is_no_run_yet_is_interrupted_at_once(asked: Any, status: Status) -> None:
    def train() -> None:
        with pytest.raises(InputCancellation):
            bench.nudge(asked)
        raise InputCancellation

    bench = RunBench(train)
    bench.run_one()
    assert bench.status == status


@pytest.mark.parametrize(("asked", "status"), [(YIELD, Status.CONTINUE), (CANCEL, Status.CANCELLED)])
@pytest.mark.parametrize("batch", [False, True])
def test_an_interruption_that_got_lost_is_followed_at_the_first_safe_point(
    asked: Any, status: Status, batch: bool
) -> None:
    def train(_x: int) -> None:
        with contextlib.suppress(BaseException):  # as in a callback of the garbage collector, or of an import
            bench.nudge(asked)
        current().active = True
        safe_point()

    bench = RunBench(train)
    bench.run_batch([1]) if batch else bench.run_one(1)
    assert bench.status == status


def test_a_run_that_is_done_before_its_safe_point_has_a_result() -> None:
    def train() -> int:
        current().active = True
        bench.nudge(YIELD)
        return 5

    bench = RunBench(train)
    bench.run_one()
    assert bench.link.sent[0][1] == 5


def test_a_slice_that_is_too_short_is_the_platform_s_verdict() -> None:
    def train() -> None:
        raise SliceTooShortError("60 s are not enough")

    bench = RunBench(train)
    bench.run_one()
    assert bench.status == Status.PLATFORM
    assert json.loads(bench.link.payloads[0]) == {"error": "SliceTooShortError", "message": "60 s are not enough"}


def test_each_input_has_a_slice_of_its_own_and_others_have_none() -> None:
    seen: list[slices.Slice | None] = []
    bench = RunBench(lambda: seen.append(slices.current))
    bench.run_one()
    bench.run_one()
    assert seen[0] is not None
    assert seen[0] is not seen[1]
    assert (seen[0].limit, seen[0].active, seen[0].wanted) == (60, False, None)
    Bench(lambda: seen.append(slices.current)).run_one()
    assert seen[2] is None


def test_a_process_that_user_code_forks_has_no_slice() -> None:
    codes: list[int] = []

    def train() -> None:
        if not (pid := os.fork()):
            os._exit(0 if slices.current is None else 1)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    RunBench(train).run_one()
    assert codes == [0]


def test_a_request_that_came_while_the_arguments_were_rebuilt_is_heard() -> None:
    ran: list[int] = []
    bench = RunBench(ran.append)
    bench.link.inbox.append(YIELD)
    bench.runner._missed = True
    bench.run_one(1)
    assert ran == []
    assert bench.status == Status.CONTINUE


@pytest.mark.parametrize("asked", [YIELD, CANCEL, TIMEOUT])
def test_a_request_at_any_instruction_gives_one_answer(asked: Any) -> None:
    def train(x: int) -> int:
        current().active = True
        safe_point()
        return x

    step, more = 1, True
    while more:
        bench = RunBench(train)
        more = interrupted_at(step, bench, lambda bench=bench: bench.run_one(4), asked)  # type: ignore[misc]
        ((fields, value),) = bench.link.sent
        assert value == 4 or fields["status"] in (Status.CONTINUE, Status.CANCELLED, Status.TIMEOUT)
        assert slices.current is None
        step += 1
    assert step > 20
