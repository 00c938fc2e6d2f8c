"""The life of one input: QUEUED → RUNNING → FINISHED, with ways back to the queue, and CANCELLED.

A million inputs of a map have no Machine each; the dispatcher keeps two bits per input and moves them by
this table. What is told to it is filtered by the lease first: a result of an attempt that no longer holds
the input is dropped before it comes here.
"""

from __future__ import annotations

from enum import StrEnum

from lorry.lifecycle.machine import Machine


class InputState(StrEnum):
    QUEUED = "queued"
    """Waits for a container."""
    RUNNING = "running"
    """A container has it."""
    WAITING_RETRY = "waiting_retry"
    """An attempt failed, and the delay before the next one is not over."""
    FINISHED = "finished"
    """It has its one outcome: a value, an error, a time-out, or the platform's refusal."""
    CANCELLED = "cancelled"
    """Its outcome is the cancellation. Code that still runs is told to stop; what it returns is dropped."""


class InputEvent(StrEnum):
    DISPATCH = "dispatch"
    """Sent to a container."""
    RESULT = "result"
    """The outcome came from its container and is final: no retry is left, or none applies. Also the eighth
    death of a container under an input that ran alone."""
    RETRY = "retry"
    """The attempt failed and the user's policy grants another one, after a delay."""
    RETRY_DUE = "retry_due"
    """That delay is over."""
    RETURNED = "returned"
    """Its container gave it back unstarted (draining, or the rest of a chunk). It counts as no attempt."""
    CONTAINER_LOST = "container_lost"
    """Its container died or was given up. It costs no retry of the user's."""
    REFUSE = "refuse"
    """It ends without running: it never fits this machine, or the function's import fails."""
    CANCEL = "cancel"
    """Someone cancelled the input, its call or its app."""


_S = InputState
_E = InputEvent

MOVES: dict[tuple[InputState, InputEvent], InputState] = {
    (_S.QUEUED, _E.DISPATCH): _S.RUNNING,
    (_S.QUEUED, _E.REFUSE): _S.FINISHED,
    (_S.QUEUED, _E.CANCEL): _S.CANCELLED,
    (_S.RUNNING, _E.RESULT): _S.FINISHED,
    (_S.RUNNING, _E.RETRY): _S.WAITING_RETRY,
    (_S.RUNNING, _E.RETURNED): _S.QUEUED,
    (_S.RUNNING, _E.CONTAINER_LOST): _S.QUEUED,
    (_S.RUNNING, _E.CANCEL): _S.CANCELLED,
    (_S.WAITING_RETRY, _E.RETRY_DUE): _S.QUEUED,
    (_S.WAITING_RETRY, _E.REFUSE): _S.FINISHED,
    (_S.WAITING_RETRY, _E.CANCEL): _S.CANCELLED,
    # A cancellation may lose the race against the result, and may be asked for twice.
    (_S.FINISHED, _E.CANCEL): _S.FINISHED,
    (_S.CANCELLED, _E.CANCEL): _S.CANCELLED,
    # The container that runs a cancelled input still answers, gives it back, or dies.
    (_S.CANCELLED, _E.RESULT): _S.CANCELLED,
    (_S.CANCELLED, _E.RETURNED): _S.CANCELLED,
    (_S.CANCELLED, _E.CONTAINER_LOST): _S.CANCELLED,
}


def input_machine(name: str, state: InputState = InputState.QUEUED) -> Machine[InputState, InputEvent]:
    """`name` says which input it is, such as `fc-3f2a…/0/17` (call, chunk, index)."""
    return Machine(f"input {name}", MOVES, state)
