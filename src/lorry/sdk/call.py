"""`FunctionCall`: a handle on calls that were spawned; it outlives the program that made it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from lorry import errors
from lorry.ids import call_bytes, call_name
from lorry.sdk.results import value_of
from lorry.sdk.steps import Answer, Ask, BoundTwin, Steps, twin
from lorry.wire.frames import Flag, unpack_selection


class FunctionCall:
    """One call, or the many inputs of a `spawn_map`. Results are kept for 7 days."""

    def __init__(self, call: bytes) -> None:
        self._call = call

    @property
    def object_id(self) -> str:
        return call_name(self._call)

    def __repr__(self) -> str:
        return f"<lorry.FunctionCall {self.object_id}>"

    def __reduce__(self) -> Any:
        return FunctionCall, (self._call,)

    @staticmethod
    def from_id(function_call_id: str) -> FunctionCall:
        """A handle on an earlier call. InvalidError if it is not an id; a lost call shows at first use."""
        try:
            return FunctionCall(call_bytes(function_call_id))
        except ValueError as wrong:
            raise errors.InvalidError(str(wrong)) from None

    def _get(self, timeout: float | None = None, *, index: int = 0) -> Steps[Any]:
        """The result; waits `timeout` seconds (None: for ever, 0: not at all).

        `index`: of which input, for a `spawn_map`. Raises the builtin TimeoutError when it is not ready in time,
        OutputExpiredError when it is not kept any more, CallCancelledError, or what the function raised."""
        chunk, offset = yield from self._locate(index)
        params = {"call": self.object_id, "chunk": chunk, "index": offset, "wait": timeout}
        reply = yield Ask("call_result", params)
        if not isinstance(reply, Answer):
            raise errors.TimeoutError(f"{self.object_id} has no result after {timeout or 0:g} s")
        return _pick(reply, offset)

    get = twin(_get)

    def _locate(self, index: int) -> Steps[tuple[int, int]]:
        """Chunk and place in it. A spawn_map sends chunks of one fixed size, all but the last full; runs singly."""
        if index == 0:
            return 0, 0
        info = yield Ask("call_info", {"call": self.object_id})
        if not 0 <= index < info["inputs"]:
            raise errors.InvalidError(f"index {index}: {self.object_id} has {info['inputs']} inputs")
        from lorry.sdk.mapping import SPAWN_CHUNK

        size = 1 if info["resumable"] else SPAWN_CHUNK
        return index - index % size, index % size

    def _num_inputs(self) -> Steps[int]:
        """How many inputs it has: 1, or those of a `spawn_map`."""
        info = yield Ask("call_info", {"call": self.object_id})
        return int(info["inputs"])

    num_inputs = twin(_num_inputs)

    def iter(self, *, start: int = 0, end: int | None = None) -> Iterator[Any]:
        """Results of a `spawn_map` in the order of its inputs; each is waited for."""
        count = self.num_inputs()
        for index in range(start, count if end is None else min(end, count)):
            yield self.get(index=index)

    def _cancel(self, terminate_containers: bool = False) -> Steps[None]:
        """Drop what waits, interrupt what runs (InputCancellation inside the code; it is never retried)."""
        yield Ask("call_cancel", {"call": self.object_id})

    cancel = twin(_cancel)

    def _info(self) -> Steps[dict[str, Any]]:
        """State and counts: {"state", "inputs", "finished", "created_at", …}."""
        return dict((yield Ask("call_info", {"call": self.object_id})))

    info = twin(_info)

    def _get_call_graph(self) -> Steps[dict[str, Any]]:
        """This call and, nested under "children", the calls that it made."""
        return dict((yield Ask("call_graph", {"call": self.object_id})))

    get_call_graph = twin(_get_call_graph)

    gather: ClassVar[BoundTwin[..., list[Any]]]
    """`gather(*calls)`: the results of several calls, in order; the first exception is raised."""


def _gather(*calls: FunctionCall) -> Steps[list[Any]]:
    values = []
    for call in calls:
        values.append((yield from call._get()))
    return values


FunctionCall.gather = BoundTwin(_gather)


def _pick(answer: Answer, index: int) -> Any:
    """One input's value out of a RESULT frame that may cover several."""
    frame = answer.frame
    value = value_of(frame.status, answer.pieces)
    if not frame.flags & Flag.BATCH:
        return value
    selection, _ = unpack_selection(memoryview(frame.body))
    position = 0
    for low, high in selection:
        if low <= index < high:
            return value[position + index - low]
        position += high - low
    raise errors.InternalError("a result does not cover the input that was asked for")
