"""What every store promises of apps, containers, usage, decisions, volumes, secrets and retention."""

from __future__ import annotations

from dataclasses import replace

import pytest
from store_records import app, call, call_id, chunk, container, decision, result, secret, usage, volume, wait

from lorry.errors import AlreadyExistsError, NotFoundError
from lorry.model.records import AppState, FunctionRecord
from lorry.store.interface import Store


def test_apps_newest_first(store: Store) -> None:
    for record in (app(1), app(3, created_at=50.0), app(2), app(4, created_at=102.0)):
        wait(store.add_app, record)
    wait(store.set_app, "ap-1", AppState.STOPPED, 300.0)
    wait(store.set_app, "ap-9", AppState.STOPPED, 300.0)
    assert [record.app_id for record in store.apps()] == ["ap-4", "ap-2", "ap-1", "ap-3"]
    assert [record.app_id for record in store.apps(running_only=True)] == ["ap-4", "ap-2", "ap-3"]
    assert store.app("ap-1") == app(1, state=AppState.STOPPED, stopped_at=300.0)
    with pytest.raises(NotFoundError):
        store.app("ap-9")


def test_an_app_keeps_all_its_fields(store: Store) -> None:
    record = app(client_pid=7, client_started=8.5, version=2, state=AppState.DETACHED)
    wait(store.add_app, record)
    assert store.apps() == [record]


def test_deployments_are_versioned_by_name(store: Store) -> None:
    assert store.next_version("train") == 1
    assert store.deployment("train") is None
    for number, version in ((1, 1), (2, 2)):
        wait(store.add_app, app(number, version=version, state=AppState.DEPLOYED))
    wait(store.add_app, app(3, name="serve", version=7, state=AppState.DEPLOYED))
    assert store.deployment("train") == app(2, version=2, state=AppState.DEPLOYED)
    assert (store.next_version("train"), store.next_version("serve")) == (3, 8)
    wait(store.set_app, "ap-2", AppState.STOPPED, 300.0)
    assert store.deployment("train") == app(1, version=1, state=AppState.DEPLOYED)
    assert store.next_version("train") == 3


@pytest.mark.parametrize("twin", [app(1, name="other"), app(2, version=1)], ids=["id", "version"])
def test_two_apps_cannot_share_an_id_or_a_version(store: Store, twin: object) -> None:
    wait(store.add_app, app(1, version=1))
    with pytest.raises(AlreadyExistsError):
        wait(store.add_app, twin)


def test_a_function_number_belongs_to_its_triple(store: Store) -> None:
    for number in (1, 2):
        wait(store.add_app, app(number))
    triples = [("ap-1", "f", "{}"), ("ap-1", "f", "{1}"), ("ap-1", "g", "{}"), ("ap-2", "f", "{}")]
    numbers = [wait(store.add_function, *triple) for triple in triples]
    assert numbers == [1, 2, 3, 4]
    assert [wait(store.add_function, *triple) for triple in triples] == numbers
    assert store.function(3) == FunctionRecord(number=3, app_id="ap-1", tag="g", spec="{}")
    assert [function.number for function in store.functions("ap-1")] == [1, 2, 3]


def test_unknown_functions_and_apps(store: Store) -> None:
    with pytest.raises(NotFoundError):
        store.function(1)
    with pytest.raises(NotFoundError, match="ap-1"):
        wait(store.add_function, "ap-1", "f", "{}")
    assert store.functions("ap-1") == []


def test_containers_are_replaced_by_id_and_listed_newest_first(store: Store) -> None:
    for record in (container(1), container(3, app_id="ap-2"), container(2)):
        wait(store.put_container, record)
    stopped = container(2, state="stopped", stopped_at=300.0, reason="idle for 60 s", peak_memory=9)
    wait(store.put_container, stopped)
    assert store.containers() == [container(3, app_id="ap-2"), container(1)]
    assert store.containers(app_id="ap-1", live_only=False) == [stopped, container(1)]
    assert store.container("ct-2") == stopped
    with pytest.raises(NotFoundError, match="ct-9"):
        store.container("ct-9")


def test_usage_has_one_row_for_each_start(store: Store) -> None:
    for record in (usage(1, 160.0), usage(1), usage(2, app_id="ap-2"), usage(1, ended_at=130.0)):
        wait(store.add_usage, record)
    assert store.usage() == [usage(1, ended_at=130.0), usage(2, app_id="ap-2"), usage(1, 160.0)]
    assert store.usage(app_id="ap-2") == [usage(2, app_id="ap-2")]


def test_decisions_newest_first(store: Store) -> None:
    wait(store.add_decisions, [decision(1.0), decision(3.0, reason="a"), decision(3.0, reason="b")])
    wait(store.add_decisions, [decision(2.0), decision(9.0, subject="ct-1")])
    wait(store.add_decisions, [])
    assert [(d.at, d.reason) for d in store.decisions("ap-1", limit=3)] == [
        (3.0, "b"),
        (3.0, "a"),
        (2.0, "two calls wait"),
    ]


def test_volumes(store: Store) -> None:
    for record in (volume(2), volume(1, name=None), volume(3, name=None)):
        wait(store.add_volume, record)
    for twin in (volume(4), volume(2, name="other")):
        with pytest.raises(AlreadyExistsError):
            wait(store.add_volume, twin)
    assert store.volumes() == [volume(1, name=None), volume(2), volume(3, name=None)]
    assert store.volume(name="corpus") == store.volume(volume_id="vo-2") == volume(2)
    wait(store.delete_volume, "vo-2")
    for query in ({"name": "corpus"}, {"volume_id": "vo-2"}, {}):
        with pytest.raises(NotFoundError):
            store.volume(**query)


def test_a_secret_is_replaced_by_name(store: Store) -> None:
    for record in (secret(1), secret(2, name="aws"), secret(3, name=None), secret(4, keys=("C",))):
        wait(store.put_secret, record)
    assert store.secrets() == [secret(2, name="aws"), secret(4, keys=("C",))]
    assert store.secret(name="hf") == store.secret(secret_id="se-4") == secret(4, keys=("C",))
    assert store.secret(secret_id="se-3") == secret(3, name=None)
    wait(store.put_secret, secret(4, keys=("C",), used_at=5.0))
    assert store.secret(name="hf").used_at == 5.0
    wait(store.delete_secret, "se-4")
    for query in ({"name": "hf"}, {"secret_id": "se-1"}, {}):
        with pytest.raises(NotFoundError):
            store.secret(**query)


def test_expire_deletes_finished_calls_with_all_that_is_theirs(store: Store) -> None:
    for number, at in ((1, 200.0), (2, 400.0)):
        wait(store.accept_spawn, call(number), chunk(number))
        wait(store.record_results, [result(number, at=at)])
    wait(store.open_call, call(3))
    assert wait(store.expire, calls_before=300.0, rows_before=0.0) == 3
    with pytest.raises(NotFoundError):
        store.call(call_id(1))
    assert store.results(call_id(1)) == []
    assert len(store.results(call_id(2))) == 1
    assert wait(store.record_results, [result(1)]) == [False]
    assert store.call(call_id(3)) == call(3)


def test_expire_deletes_old_rows_and_keeps_usage(store: Store) -> None:
    for record in (container(1), container(2, stopped_at=200.0), container(3, stopped_at=400.0)):
        wait(store.put_container, record)
    wait(store.add_decisions, [decision(200.0), decision(400.0)])
    wait(store.add_usage, usage())
    assert wait(store.expire, calls_before=300.0, rows_before=300.0) == 2
    assert [c.container_id for c in store.containers(live_only=False)] == ["ct-3", "ct-1"]
    assert [d.at for d in store.decisions("ap-1")] == [400.0]
    assert store.usage() == [usage()]


def test_expire_keeps_apps_that_run_or_have_calls(store: Store) -> None:
    for number in (1, 2, 3):
        wait(store.add_app, app(number, version=number))
        wait(store.add_function, f"ap-{number}", "f", "{}")
    wait(store.open_call, call(app_id="ap-1"))
    for number in (1, 2):
        wait(store.set_app, f"ap-{number}", AppState.STOPPED, 200.0)
    assert wait(store.expire, calls_before=0.0, rows_before=300.0) == 1
    assert [record.app_id for record in store.apps()] == ["ap-3", "ap-1"]
    with pytest.raises(NotFoundError):
        store.function(2)
    assert wait(store.expire, calls_before=0.0, rows_before=300.0) == 0


def test_a_version_or_function_number_never_comes_twice(store: Store) -> None:
    wait(store.add_app, app(1, version=3, state=AppState.STOPPED, stopped_at=1.0))
    assert wait(store.add_function, "ap-1", "f", "{}") == 1
    wait(store.expire, calls_before=0.0, rows_before=300.0)
    assert store.apps() == []
    assert store.next_version("train") == 4
    wait(store.add_app, app(2))
    assert wait(store.add_function, "ap-2", "f", "{}") == 2


def test_sizes_name_the_database(store: Store) -> None:
    wait(store.open_call, call())
    wait(store.accept_chunk, chunk(payload=b"x" * 5000))
    assert store.sizes()["database"] >= 5000


def test_a_closed_store_says_so(store: Store) -> None:
    store.close()
    store.close()
    with pytest.raises(RuntimeError, match="closed"):
        store.apps()
    with pytest.raises(RuntimeError, match="closed"):
        wait(store.add_app, replace(app(), name="late"))


def test_the_first_epoch_is_one(store: Store) -> None:
    assert store.epoch == 1
