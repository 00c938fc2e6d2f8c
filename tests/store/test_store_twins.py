"""Random histories: the SQLite store and the memory store, which share no logic, must tell the same story."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from store_records import app, call, call_id, chunk, container, decision, result, run, secret, usage, volume

from lorry.errors import Error
from lorry.model.records import AppState, Status
from lorry.model.run import AttemptEnd, RunState
from lorry.model.selection import from_indices
from lorry.store.interface import Store
from lorry.store.memory import MemoryStore
from lorry.store.sqlite import SqliteStore

QUICK = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""Durability is not the question here, and hundreds of databases are made."""
Write = Callable[[Store], Awaitable[Any]]

calls = st.sampled_from([1, 1, 1, 2, 3])
chunks = st.sampled_from([0, 0, 1])
sizes = st.sampled_from([1, 4])
times = st.sampled_from([100.0, 200.0, 300.0])
names = st.sampled_from(["a", "b", None])
# Mostly single ranges; an index past the chunk now and then.
selections = st.one_of(
    st.sets(st.integers(0, 4), max_size=4).map(from_indices),
    st.sampled_from([((0, 2),), ((1, 3),), ((2, 4),), ((0, 4),)]),
)
statuses = st.sampled_from([Status.OK, Status.ERROR])


def write(verb: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Write]:
    def bind(values: tuple[Any, ...]) -> Write:
        def act(store: Store) -> Awaitable[Any]:
            return getattr(store, verb)(*values)

        act.__qualname__ = f"{verb}{values}"
        return act

    return st.tuples(*arguments).map(bind)


call_records = st.builds(call, calls, keep_results=st.booleans(), created_at=times)
chunk_records = st.builds(chunk, calls, chunks, sizes)
result_records = st.builds(result, calls, chunks, selections, statuses, at=times)
app_records = st.builds(app, calls, version=st.integers(0, 2), state=st.sampled_from(list(AppState)))

inputs = st.one_of(
    write("open_call", call_records),
    calls.flatmap(
        lambda n: write("accept_spawn", st.builds(call, st.just(n)), st.builds(chunk, st.just(n), chunks, sizes))
    ),
    write("accept_chunk", chunk_records),
    write("accept_chunk", chunk_records),
    write("close_call", calls.map(call_id), times),
    write("record_results", st.lists(result_records, max_size=3)),
    write("record_results", st.lists(result_records, max_size=3)),
    write("acknowledge", calls.map(call_id), chunks, selections),
    write("acknowledge", calls.map(call_id), chunks, selections),
    write("cancel_call", calls.map(call_id), times),
    write("note_attempts", calls.map(call_id), chunks, st.dictionaries(st.integers(0, 3), st.integers(1, 8))),
)
rows = st.one_of(
    write("add_app", app_records),
    write("set_app", calls.map("ap-{}".format), st.sampled_from(list(AppState)), times),
    write("add_function", calls.map("ap-{}".format), st.just("f"), st.sampled_from(["1", "2"])),
    write("put_container", st.builds(container, calls, stopped_at=st.none() | times)),
    write("add_usage", st.builds(usage, calls, times)),
    write("add_decisions", st.lists(st.builds(decision, times), max_size=2)),
    write("add_volume", st.builds(volume, calls, names)),
    write("delete_volume", calls.map("vo-{}".format)),
    write("put_secret", st.builds(secret, calls, names)),
    write("delete_secret", calls.map("se-{}".format)),
)
run_ids = calls.map("ru-{}".format)
containers = st.sampled_from(["ct-1", "ct-2"])
runs = st.one_of(
    write("begin_run", st.builds(run, calls, created_at=times), containers, times),
    write("begin_run", st.builds(run, calls, created_at=times), containers, times),
    write("move_head", run_ids, st.integers(1, 4), containers, st.just("ab" * 32), st.integers(0, 9)),
    write(
        "end_attempt",
        run_ids,
        containers,
        times,
        st.sampled_from(list(AttemptEnd)),
        st.sampled_from(["", "it died"]),
        st.none() | st.just(7),
        st.just(2.5),
    ),
    write(
        "finish_run", calls.map(call_id), chunks, st.sampled_from([RunState.DONE, RunState.FAILED]), times, st.just("")
    ),
    write("resume_run", run_ids, st.just("ap-2"), st.just(2), st.integers(4, 5).map(call_id), times),
)
expiry = st.tuples(times, times).map(lambda at: lambda store: store.expire(calls_before=at[0], rows_before=at[1]))
# Every history starts with a call that forgets and one that keeps, so that most of its verbs find something.
BEGINNING: list[Write] = [
    lambda store: store.open_call(call(1)),
    lambda store: store.open_call(call(2, keep_results=True)),
    lambda store: store.accept_chunk(chunk(1, 0, 4)),
    lambda store: store.accept_chunk(chunk(2, 0, 4)),
]
histories = st.lists(
    st.lists(st.one_of(inputs, inputs, inputs, rows, runs, runs), min_size=2, max_size=10), min_size=2, max_size=6
)


def view(store: Store) -> dict[str, Any]:
    """Everything that can be read."""
    ids = [call_id(number) for number in range(1, 4)]
    places = [(one, number) for one in ids for number in range(3)]
    apps = [f"ap-{number}" for number in range(1, 4)]
    return {
        "calls": [attempt(store.call, one) for one in ids],
        "listed": [store.calls("ap-1"), store.calls("ap-1", limit=1)],
        "chunks": [attempt(store.chunk, *place) for place in places],
        "results": [(store.results(one), store.results(one, after=(0, 1), limit=2)) for one in ids],
        "each": [store.result(*place, index) for place in places for index in range(5)],
        "unfinished": list(store.unfinished()),
        "apps": [store.apps(), store.apps(running_only=True), store.deployment("train")],
        "versions": store.next_version("train"),
        "functions": [store.functions(one) for one in apps],
        "runs": [
            store.runs(),
            store.runs(under_way_only=True),
            store.runs(app_id="ap-2", limit=1),
            store.runs(prefix="ru-2"),
        ],
        "run": [attempt(store.run, f"ru-{number}") for number in range(1, 4)],
        "attempts": [store.open_attempts(), *(store.attempts(f"ru-{number}") for number in range(1, 4))],
        "runs of": [(store.run_of(one, 0), store.runs_of_call(one)) for one in ids],
        "containers": [store.containers(), store.containers(live_only=False)],
        "usage": store.usage(),
        "decisions": store.decisions("ap-1"),
        "named": [store.volumes(), store.secrets(), attempt(store.secret, name="a")],
    }


def attempt(read: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    try:
        return read(*arguments, **named)
    except Error as error:
        return type(error)


async def tell(store: Store, batch: list[Write]) -> list[Any]:
    outcomes = await asyncio.gather(*(act(store) for act in batch), return_exceptions=True)
    return [type(outcome) if isinstance(outcome, Exception) else outcome for outcome in outcomes]


@settings(max_examples=120, deadline=None)
@given(histories, expiry)
def test_twins_agree(history: list[list[Write]], expire: Write) -> None:
    async def compare() -> None:
        for batch in [BEGINNING, *history, [expire]]:
            assert await tell(sqlite, batch) == await tell(memory, batch)
            assert view(sqlite) == view(memory)

    memory = MemoryStore()
    with tempfile.TemporaryDirectory(dir=QUICK) as folder:
        sqlite = SqliteStore.open(Path(folder, "state.db"), 100.0)
        try:
            asyncio.run(compare())
        finally:
            sqlite.close()
