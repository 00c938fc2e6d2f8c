"""Deployed apps: versions, names, secrets that change, and what is found under a name."""

from __future__ import annotations

import named
import versions
from server_asking import ask, log_lines
from server_home import ServerHome, wait_until

import lorry


def test_a_changed_secret_is_seen_by_the_next_container_and_never_in_the_logs(own_server: ServerHome) -> None:
    ask("secret_put", name="hub", values={"HUB_TOKEN": "first-token"})
    named.app.deploy(name="named")
    function = lorry.Function.from_name("named", "token")
    assert function.remote() == "first-token"
    ask("secret_put", name="hub", values={"HUB_TOKEN": "second-token"})
    for container in ask("container_list")["containers"]:
        ask("container_stop", container_id=container["container_id"])
    wait_until(lambda: not ask("container_list")["containers"])
    assert function.remote() == "second-token"
    assert named.app.deployed_id is not None
    assert log_lines(named.app.deployed_id) == ["the token is ***", "the token is ***"]


def test_a_new_version_takes_over_and_the_old_one_ends(own_server: ServerHome) -> None:
    versions.app.deploy()
    first = versions.app.deployed_id
    slow = lorry.Function.from_name("versions", "nap").spawn(1.0)
    versions.app.deploy()
    assert slow.get(timeout=30) == "awake"
    running = [app["app_id"] for app in ask("app_list")["apps"]]
    wait_until(lambda: first not in [app["app_id"] for app in ask("app_list")["apps"]])
    assert versions.app.deployed_id in running
    assert lorry.Function.from_name("versions", "square").remote(3) == 9


def test_a_deployment_is_found_by_name_although_a_run_of_that_name_came_later(own_server: ServerHome) -> None:
    versions.app.deploy()
    with versions.app.run():
        pass
    assert ask("app_lookup", app="versions")["app_id"] == versions.app.deployed_id
