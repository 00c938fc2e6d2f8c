"""Training runs and their attempts of the memory store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lorry.errors import NotFoundError
from lorry.model.run import INTERRUPTIONS, RESUMABLE, UNDER_WAY, AttemptEnd, AttemptRecord, RunRecord, RunState
from lorry.store.memory_calls import MemoryCalls, refuse_unless, writes


class MemoryRuns(MemoryCalls):
    """The part of `MemoryStore` that follows runs from their first attempt to their end."""

    def __init__(self) -> None:
        super().__init__()
        self._runs: dict[str, RunRecord] = {}
        """In order of their making."""
        self._attempts: dict[str, list[AttemptRecord]] = {}

    @writes
    def begin_run(self, run: RunRecord, container_id: str, now: float) -> RunRecord:
        known = self._find_run(run.call, run.chunk)
        if known is None:
            refuse_unless(run.run_id not in self._runs)
            known = run
        attempts = self._attempts.setdefault(known.run_id, [])
        token, interruptions, mine = known.token + 1, known.interruptions, None
        for position, attempt in enumerate(attempts):
            if attempt.ended_at is None and attempt.container_id == container_id:
                mine = position
            elif attempt.ended_at is None:
                reason = "a newer attempt has begun"
                attempts[position] = replace(attempt, ended_at=now, ended=AttemptEnd.KILLED, reason=reason)
                interruptions += 1
        if mine is not None:
            attempts[mine] = replace(attempts[mine], token=token)
        else:
            attempts.append(
                AttemptRecord(
                    run_id=known.run_id,
                    token=token,
                    container_id=container_id,
                    started_at=now,
                    first_step=known.head_step,
                )
            )
        begun = self._runs[known.run_id] = replace(
            known,
            token=token,
            state=RunState.RUNNING,
            finished_at=None,
            attempts=known.attempts + (mine is None),
            tries=known.tries + (mine is None),
            interruptions=interruptions,
        )
        return begun

    @writes
    def move_head(self, run_id: str, token: int, container_id: str, manifest: str, step: int) -> bool:
        run = self._runs.get(run_id)
        given = [attempt.container_id for attempt in self._attempts.get(run_id, ()) if attempt.token == token]
        if run is None or run.token != token or given != [container_id]:
            return False
        self._runs[run_id] = replace(run, head_manifest=manifest, head_step=step, head_token=token)
        if (chunk := self._chunk_of(run.call, run.chunk)) is not None:
            chunk.attempts = {0: 0}
        return True

    @writes
    def end_attempt(
        self,
        run_id: str,
        container_id: str,
        now: float,
        ended: AttemptEnd,
        reason: str,
        last_step: int | None,
        seconds: float,
    ) -> bool:
        attempts = self._attempts.get(run_id, [])
        for position, attempt in enumerate(attempts):
            if attempt.ended_at is None and attempt.container_id == container_id:
                attempts[position] = replace(attempt, ended_at=now, ended=ended, reason=reason, last_step=last_step)
                break
        else:
            return False
        run = self._runs[run_id]
        self._runs[run_id] = replace(
            run,
            seconds=run.seconds + seconds,
            slices=run.slices + (ended is AttemptEnd.CONTINUE),
            interruptions=run.interruptions + (ended in INTERRUPTIONS),
            error=reason or run.error if run.state in UNDER_WAY and ended in INTERRUPTIONS else run.error,
            state=RunState.WAITING if run.state is RunState.RUNNING else run.state,
        )
        return True

    @writes
    def finish_run(self, call: bytes, chunk: int, state: RunState, now: float, error: str) -> None:
        run = self._find_run(call, chunk)
        if run is not None and run.state in UNDER_WAY:
            self._runs[run.run_id] = replace(run, state=state, finished_at=now, error=error)

    @writes
    def resume_run(self, run_id: str, app_id: str, function: int, call: bytes, now: float) -> bool:
        run = self._runs.get(run_id)
        if run is None or run.state not in RESUMABLE:
            return False
        refuse_unless(self._find_run(call, 0) in (None, run))
        self._runs[run_id] = replace(
            run,
            state=RunState.WAITING,
            finished_at=None,
            since=now,
            tries=0,
            app_id=app_id,
            function=function,
            call=call,
            chunk=0,
        )
        return True

    def _find_run(self, call: bytes, chunk: int) -> RunRecord | None:
        return next((run for run in self._runs.values() if (run.call, run.chunk) == (call, chunk)), None)

    def run(self, run_id: str) -> RunRecord:
        self._check_open()
        if run_id not in self._runs:
            raise NotFoundError(f"There is no run {run_id}.")
        return self._runs[run_id]

    def run_of(self, call: bytes, chunk: int) -> RunRecord | None:
        self._check_open()
        return self._find_run(call, chunk)

    def runs(
        self,
        *,
        app_id: str | None = None,
        prefix: str = "",
        under_way_only: bool = False,
        limit: int | None = None,
    ) -> Sequence[RunRecord]:
        self._check_open()
        found = [
            run
            for run in self._runs.values()
            if app_id in (None, run.app_id)
            and run.run_id.startswith(prefix)
            and not (under_way_only and run.finished_at is not None)
        ]
        return sorted(found, key=lambda run: run.created_at)[::-1][:limit]

    def runs_of_call(self, call: bytes) -> Sequence[RunRecord]:
        self._check_open()
        return sorted((run for run in self._runs.values() if run.call == call), key=lambda run: run.chunk)

    def attempts(self, run_id: str) -> Sequence[AttemptRecord]:
        self._check_open()
        return sorted(self._attempts.get(run_id, ()), key=lambda attempt: attempt.token)

    def open_attempts(self) -> Sequence[AttemptRecord]:
        self._check_open()
        open_ones = [one for attempts in self._attempts.values() for one in attempts if one.ended_at is None]
        return sorted(open_ones, key=lambda attempt: (attempt.run_id, attempt.token))

    def _expire_runs(self, before: float) -> int:
        old = [run.run_id for run in self._runs.values() if run.finished_at is not None and run.finished_at < before]
        for run_id in old:
            del self._runs[run_id]
            self._attempts.pop(run_id, None)
        return len(old)
