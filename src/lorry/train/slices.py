"""The end of a slice: when an attempt of a resumable function has to save and make room for the next one.

A slice that is too short for one step and one save would be tried again for ever, so it is refused. But one slow start
proves nothing, and a run that goes on slowly is better than one that was refused wrongly. Hence the rule (`_refused`):

* What is asked is whether the first step of an attempt and a save after it fit into the slice. How long that step took
  does not matter for those that follow: compiling and warming up belong to the start. Later steps have their own time.
* It is asked when the slice is over and that first step was the only one. Its save is committed by then, so that
  nothing is lost, and all the costs are measured.
* An attempt that restored nothing is not refused: what it did once, such as downloads and compiled kernels that are
  kept, later ones need not do again. Nor is the one after it: a machine may be busy once. Both yield, and it takes a
  second attempt in a row that had restored something and made one step.
* A run that once had room in a slice of this length is not refused later: then a busy machine made it slow.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import FrameType
from typing import Any

from lorry.errors import SliceTooShortError, YieldSlice
from lorry.runtime.slice import Slice
from lorry.train.pace import Pace
from lorry.train.policy import Costs, Decision, can_progress, must_yield, needed, shortest
from lorry.train.stop import Asked, Signals


class SliceEnd:
    """`Ending` of an attempt in a slice."""

    def __init__(self, slice: Slice) -> None:
        self.latest = math.inf
        self.restored = False
        self.fitted: float | None = None
        """The shortest slice in which an attempt of this run had room; kept in its checkpoints."""
        self.cramped = 0
        """Attempts before this one, in a row, that had restored something and made one step; kept too."""
        self._one_step = True
        self._slice = slice
        self._signals = Signals(self._signalled)

    @property
    def asked(self) -> Asked:
        return self._slice

    def begin(self, ended: Callable[[bool], None]) -> None:
        self._signals.install()
        self._slice.at_end = ended
        self._slice.active = True

    def state(self) -> dict[str, Any]:
        return {"fitted": self.fitted, "cramped": self.cramped + 1 if self.restored and self._one_step else 0}

    def load(self, state: dict[str, Any]) -> None:
        self.restored, self.fitted, self.cramped = True, state.get("fitted"), state.get("cramped", 0)

    def over(self) -> None:
        self._signals.uninstall()
        self._slice.active, self._slice.at_end = False, None

    def _signalled(self, number: int, before: Any, frame: FrameType | None) -> None:
        """Somebody wants this container to end; who is in a hurry kills it."""
        self._slice.ask("drain")

    def look_again(self, pace: Pace, in_flight: float | None) -> None:
        """A save that is under way has to end before the last one can begin."""
        self._one_step = not pace.steps
        self.latest = self._slice.began + self._slice.limit - needed(self._slice.limit, _both(pace.costs(), in_flight))
        if pace.knows_saves and pace.first is not None and self._first_step_fits(pace).yes:
            self.fitted = min(self._slice.limit, self.fitted or math.inf)

    def due(self, now: float, pace: Pace, in_flight: float | None) -> Decision:
        if self._slice.wanted is not None:
            return Decision(True, f"the platform asked for it ({self._slice.wanted})")
        return must_yield(
            self._slice.began + self._slice.limit - now, self._slice.limit, _both(pace.costs(), in_flight)
        )

    def end(self, pace: Pace) -> BaseException:
        reason = self._slice.wanted or "slice"
        refusal = self._refused(pace) if reason == "slice" else None
        if refusal is not None:
            return SliceTooShortError(refusal)
        self._slice.yielded = reason
        return YieldSlice(reason)

    def _first_step_fits(self, pace: Pace) -> Decision:
        return can_progress(self._slice.limit, self._first_step(pace))

    def _first_step(self, pace: Pace) -> Costs:
        assert pace.first is not None
        assert pace.first_at is not None
        costs = pace.costs(start=pace.first_at - pace.first - self._slice.began)
        return dataclasses.replace(costs, step=pace.first)

    def _refused(self, pace: Pace) -> str | None:
        """See above."""
        had_room = self.fitted is not None and self.fitted <= self._slice.limit
        if not self.cramped or had_room or pace.steps or pace.first is None:
            return None
        fits = self._first_step_fits(pace)
        if fits.yes:
            return None
        least = math.ceil(shortest(self._first_step(pace)))
        return (
            f"{fits.reason}. Raise timeout= to at least {least} s; several times that, and most of each slice is "
            "training. What was done is saved"
        )


def _both(costs: Costs, in_flight: float | None) -> Costs:
    """With a save that is under way and the last one."""
    if in_flight is None:
        return costs
    return dataclasses.replace(costs, persist=2 * max(costs.persist, in_flight))
