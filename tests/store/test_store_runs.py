"""What every store promises of training runs: tokens that grow, one head, and rows that survive."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_records import app, call, call_id, chunk, run, wait

from lorry.errors import NotFoundError
from lorry.model.records import AppState
from lorry.model.run import AttemptEnd, RunState
from lorry.store.interface import Store
from lorry.store.memory import MemoryStore
from lorry.store.rows import rows
from lorry.store.schema import TABLES
from lorry.store.sqlite import SqliteStore

A, B = "a" * 64, "b" * 64


def end(store: Store, container: str, ended: AttemptEnd = AttemptEnd.CONTINUE, reason: str = "") -> bool:
    return wait(store.end_attempt, "ru-1", container, 300.0, ended, reason, 9, 10.0)


def test_a_run_is_made_once_and_its_token_grows(store: Store) -> None:
    first = wait(store.begin_run, run(), "ct-1", 200.0)
    assert (first.run_id, first.token, first.attempts, first.state) == ("ru-1", 1, 1, RunState.RUNNING)
    assert end(store, "ct-1")
    assert store.run("ru-1").state is RunState.WAITING
    second = wait(store.begin_run, run(run_id="ru-other"), "ct-2", 201.0)
    assert (second.run_id, second.token, second.attempts, second.slices, second.seconds) == ("ru-1", 2, 2, 1, 10.0)
    assert store.run_of(call_id(1), 0) == second
    assert [attempt.container_id for attempt in store.attempts("ru-1")] == ["ct-1", "ct-2"]
    assert [attempt.container_id for attempt in store.open_attempts()] == ["ct-2"]


def test_a_container_that_asks_twice_has_one_attempt(store: Store) -> None:
    wait(store.begin_run, run(), "ct-1", 200.0)
    again = wait(store.begin_run, run(), "ct-1", 201.0)
    assert (again.token, again.attempts, again.tries, again.interruptions) == (2, 1, 1, 0)
    (attempt,) = store.attempts("ru-1")
    assert (attempt.token, attempt.started_at) == (2, 200.0)


def test_a_newer_attempt_ends_the_one_before_and_takes_its_right(store: Store) -> None:
    wait(store.begin_run, run(), "ct-1", 200.0)
    assert wait(store.move_head, "ru-1", 1, "ct-1", A, 5)
    begun = wait(store.begin_run, run(), "ct-2", 210.0)
    assert (begun.head_manifest, begun.head_step, begun.head_token, begun.interruptions) == (A, 5, 1, 1)
    assert not wait(store.move_head, "ru-1", 1, "ct-1", B, 6), "its token is old"
    assert not wait(store.move_head, "ru-1", 2, "ct-1", B, 6), "a token that it was not given"
    assert not wait(store.move_head, "ru-2", 2, "ct-2", B, 6), "no such run"
    assert store.run("ru-1").head_manifest == A
    assert wait(store.move_head, "ru-1", 2, "ct-2", B, 6)
    assert not end(store, "ct-1"), "it has ended"
    old, new = store.attempts("ru-1")
    assert (old.ended, old.ended_at, new.first_step, new.ended) == (AttemptEnd.KILLED, 210.0, 5, None)


def test_a_checkpoint_and_its_count_of_attempts_are_one_write(store: Store) -> None:
    wait(store.open_call, call(1))
    for number in (0, 1):
        wait(store.accept_chunk, chunk(1, number, 1))
        wait(store.note_attempts, call_id(1), number, {0: 2})
    wait(store.begin_run, run(1, 1), "ct-1", 200.0)

    def attempts() -> list[dict[int, int]]:
        return [dict(counts) for *_, counts in store.unfinished()]

    assert not wait(store.move_head, "ru-1", 9, "ct-1", A, 5)
    assert attempts() == [{0: 2}, {0: 2}]
    assert wait(store.move_head, "ru-1", 1, "ct-1", A, 5)
    assert attempts() == [{0: 2}, {0: 0}]


def test_interruptions_slices_and_the_last_error_are_counted(store: Store) -> None:
    ends = [
        (AttemptEnd.KILLED, "it died"),
        (AttemptEnd.CONTINUE, ""),
        (AttemptEnd.ERROR, "ValueError"),
        (AttemptEnd.CONTINUE, "a person stopped it"),
    ]
    for number, (ended, reason) in enumerate(ends):
        wait(store.begin_run, run(), f"ct-{number}", 200.0)
        assert end(store, f"ct-{number}", ended, reason)
    found = store.run("ru-1")
    assert (found.attempts, found.interruptions, found.slices, found.error) == (4, 2, 2, "ValueError")
    assert store.attempts("ru-1")[-1].reason == "a person stopped it"


def test_the_end_of_the_input_is_the_end_of_the_run(store: Store) -> None:
    wait(store.begin_run, run(), "ct-1", 200.0)
    wait(store.finish_run, call_id(1), 0, RunState.CANCELLED, 300.0, "somebody")
    wait(store.finish_run, call_id(1), 0, RunState.DONE, 301.0, "")
    assert wait(store.move_head, "ru-1", 1, "ct-1", A, 5), "its last save comes after it was cancelled"
    assert end(store, "ct-1", AttemptEnd.KILLED, "it did not save in time")
    found = store.run("ru-1")
    assert (found.state, found.finished_at, found.error, found.head_step) == (RunState.CANCELLED, 300.0, "somebody", 5)
    assert store.runs(under_way_only=True) == []


def test_resume_makes_it_another_calls_run(store: Store) -> None:
    wait(store.begin_run, run(), "ct-1", 200.0)
    assert not wait(store.resume_run, "ru-1", "ap-2", 2, call_id(9), 400.0), "it is under way"
    end(store, "ct-1", AttemptEnd.ERROR, "ValueError")
    wait(store.finish_run, call_id(1), 0, RunState.FAILED, 300.0, "ValueError")
    assert wait(store.resume_run, "ru-1", "ap-2", 2, call_id(9), 400.0)
    assert not wait(store.resume_run, "ru-1", "ap-3", 3, call_id(8), 401.0), "once"
    found = wait(store.begin_run, run(5, call=call_id(9)), "ct-2", 410.0)
    assert (found.run_id, found.token, found.attempts, found.tries, found.since) == ("ru-1", 2, 2, 1, 400.0)
    assert (found.app_id, found.function, found.state) == ("ap-2", 2, RunState.RUNNING)
    assert store.run_of(call_id(1), 0) is None


def test_runs_are_found(store: Store) -> None:
    for number, part in ((1, 0), (2, 0), (12, 0), (2, 1)):
        wait(store.begin_run, run(number, part, run_id=f"ru-{number}{part}"), f"ct-{number}{part}", 200.0)
    assert [one.run_id for one in store.runs()] == ["ru-120", "ru-21", "ru-20", "ru-10"]
    assert [one.run_id for one in store.runs(prefix="ru-2", limit=1)] == ["ru-21"]
    assert [one.run_id for one in store.runs(prefix="ru-1")] == ["ru-120", "ru-10"]
    assert [one.run_id for one in store.runs_of_call(call_id(2))] == ["ru-20", "ru-21"]
    assert store.runs(app_id="ap-9") == store.runs(prefix="%") == []
    with pytest.raises(NotFoundError):
        store.run("ru-9")


def test_a_finished_run_keeps_its_app_until_it_expires(store: Store) -> None:
    wait(store.add_app, app(1))
    wait(store.set_app, "ap-1", AppState.STOPPED, 300.0)
    wait(store.begin_run, run(), "ct-1", 200.0)
    wait(store.begin_run, run(2), "ct-2", 200.0)
    wait(store.finish_run, call_id(1), 0, RunState.FAILED, 350.0, "")

    def expired(before: float) -> list[str]:
        asyncio.run(_expire(store, before))
        return [one.run_id for one in store.runs()]

    assert expired(340.0) == ["ru-2", "ru-1"]
    assert [one.app_id for one in store.apps()] == ["ap-1"]
    assert expired(360.0) == ["ru-2"]
    assert store.attempts("ru-1") == []
    assert [one.app_id for one in store.apps()] == ["ap-1"], "the other run needs it"
    wait(store.finish_run, call_id(2), 0, RunState.DONE, 400.0, "")
    assert expired(500.0) == []
    assert store.apps() == []


async def _expire(store: Store, before: float) -> None:
    await store.expire(calls_before=0.0, rows_before=before)


steps = st.lists(
    st.tuples(st.sampled_from(["begin", "commit"]), st.sampled_from(["ct-1", "ct-2", "ct-3"])), max_size=30
)


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
@settings(max_examples=60, deadline=None)
@given(history=steps, burst=st.integers(1, 6))
def test_of_attempts_that_race_only_the_newest_moves_the_head(
    kind: str, history: list[tuple[str, str]], burst: int
) -> None:
    """Each container commits with the token that it was given last, several writes in flight at once: a head never
    comes from an attempt that was overtaken before its commit was asked for."""

    async def race(store: Store) -> None:
        given: dict[str, int] = {}
        newest, step = 0, 0
        for start in range(0, len(history), burst):
            expected, asked = [], []
            for verb, container in history[start : start + burst]:
                if verb == "begin":
                    newest += 1
                    given[container] = newest
                    asked.append(store.begin_run(run(), container, 200.0))
                    expected.append(newest)
                elif container in given:
                    step += 1
                    asked.append(store.move_head("ru-1", given[container], container, A, step))
                    expected.append(given[container] == newest)
            outcomes = await asyncio.gather(*asked)
            assert [getattr(outcome, "token", outcome) for outcome in outcomes] == expected

    with _opened(kind) as store:
        asyncio.run(race(store))


class _opened:
    def __init__(self, kind: str) -> None:
        self._folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        path = Path(self._folder.name, "state.db")
        self._store: Store = SqliteStore.open(path, 1.0) if kind == "sqlite" else MemoryStore()

    def __enter__(self) -> Store:
        return self._store

    def __exit__(self, *_: object) -> None:
        self._store.close()
        self._folder.cleanup()


def version_one(path: Path) -> None:
    """A database as the first release made it, with rows."""
    database = apsw.Connection(str(path))
    rows(database, TABLES)
    rows(database, "PRAGMA user_version = 1")
    rows(
        database,
        "INSERT INTO app (app_id, name, state, created_at, version) VALUES ('ap-1', 'train', 'deployed', 5, 1)",
    )
    rows(database, "INSERT INTO function (app_id, tag, spec) VALUES ('ap-1', 'f', '{}')")
    database.close()


def test_a_state_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    version_one(tmp_path / "state.db")
    store = SqliteStore.open(tmp_path / "state.db", 100.0)
    assert [one.app_id for one in store.apps()] == ["ap-1"]
    assert store.functions("ap-1")[0].number == 1
    begun = wait(store.begin_run, run(), "ct-1", 200.0)
    store.close()
    store = SqliteStore.open(tmp_path / "state.db", 101.0)
    assert store.runs() == [begun]
    store.close()


def test_a_migration_that_is_cut_short_leaves_the_state_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorry.store import schema

    version_one(tmp_path / "state.db")
    monkeypatch.setitem(schema.STEPS, 1, schema.STEPS[1] + "INSERT INTO nothing VALUES (1);")
    with pytest.raises(Exception, match="nothing"):
        SqliteStore.open(tmp_path / "state.db", 100.0)
    monkeypatch.undo()
    database = apsw.Connection(str(tmp_path / "state.db"))
    assert rows(database, "PRAGMA user_version") == [(1,)]
    assert rows(database, "SELECT name FROM sqlite_master WHERE name IN ('run', 'attempt')") == []
    database.close()
    store = SqliteStore.open(tmp_path / "state.db", 101.0)
    assert store.runs() == []
    store.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE run SET token = token - 1",
        "UPDATE run SET head_manifest = 'a'",
        "UPDATE run SET head_manifest = 'a', head_step = 1, head_token = token + 1",
        "UPDATE run SET state = 'done'",
        "INSERT INTO attempt (run_id, token, container_id, started_at) VALUES ('ru-1', 7, 'ct-2', 1)",
    ],
)
def test_the_schema_itself_refuses_what_must_never_be(tmp_path: Path, statement: str) -> None:
    store = SqliteStore.open(tmp_path / "state.db", 100.0)
    wait(store.begin_run, run(), "ct-1", 200.0)
    store.close()
    database = apsw.Connection(str(tmp_path / "state.db"))
    database.execute("PRAGMA foreign_keys = ON")
    with pytest.raises(apsw.ConstraintError):
        database.execute(statement)
    database.close()
