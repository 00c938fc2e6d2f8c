"""Scratch space that is limited, a disk that is full, and what everybody else notices of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import disk
import pytest
from server_asking import ask
from server_home import ServerHome, entered, wait_until

import lorry
from lorry import exception

PASSED = r"in its home and /tmp, more than ephemeral_disk=20.*Volume.*2 times"


@pytest.fixture(scope="module")
def running(shared_home: ServerHome) -> Iterator[lorry.App]:
    with entered(shared_home), disk.app.run():
        yield disk.app


@pytest.mark.usefixtures("running", "server")
@pytest.mark.parametrize("place", ["/tmp", "/root"])
def test_more_scratch_than_ephemeral_disk_ends_the_container_and_names_the_limit(place: str) -> None:
    with pytest.raises(exception.ResourceError, match=PASSED) as caught:
        disk.scratch.remote(place, 25, stay=True)
    assert int(re.findall(r"had (\d+) MiB", str(caught.value))[0]) > 20


@pytest.mark.usefixtures("running", "server")
def test_deleted_files_count_while_they_are_open() -> None:
    with pytest.raises(exception.ResourceError, match=PASSED):
        disk.unlinked.remote()


@pytest.mark.usefixtures("running", "server")
def test_below_the_limit_and_on_volumes_nothing_happens() -> None:
    assert disk.scratch.remote("/tmp", 10) == 10
    assert disk.scratch.remote("/out", 40) == 40


@pytest.mark.usefixtures("running", "server")
def test_a_refused_fork_says_how_many_processes_a_container_may_have() -> None:
    with pytest.raises(BlockingIOError) as caught:
        disk.fork_without_end.remote()
    assert re.search(r"may have \d+ processes and threads", caught.value.__notes__[0])


@pytest.mark.usefixtures("running")
def test_nothing_of_a_container_stays_on_disk_however_deep_it_nested_its_folders(server: ServerHome) -> None:
    disk.nest.remote(1500)
    rows: list[dict[str, str]] = ask("container_list", app_id=disk.app.app_id)["containers"]
    name = next(row["container_id"] for row in rows if row["function"] == "nest")
    folder = (server.state / "containers" / name).resolve()
    assert folder.exists()
    ask("container_stop", container_id=name)
    wait_until(lambda: not folder.exists(), 30)


# A full disk


@pytest.fixture
def small_disk() -> Iterator[ServerHome]:
    """A server whose whole state lies on a disk of 100 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root")
    root = Path(tempfile.mkdtemp(prefix="lorry-small-"))
    home = ServerHome(root)
    home.state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m,mode=700", "tmpfs", home.state], check=True)
    try:
        with entered(home):
            yield home
        home.stop()
    finally:
        subprocess.run(["umount", "-l", home.state], check=True)
        shutil.rmtree(root, ignore_errors=True)


def why_it_waits(app: lorry.App, function: str) -> str:
    rows: list[dict[str, str]] = ask("pending", app_id=app.app_id)["functions"]
    return next(row["reason"] for row in rows if row["function"] == function)


def test_a_full_disk_inside_harms_nobody_else_and_keeps_new_containers_waiting_with_a_reason(
    small_disk: ServerHome,
) -> None:
    again = lorry.App("disk-again")
    echo, fill, later = (again.function()(f.get_raw_f()) for f in (disk.echo, disk.fill, disk.later))
    with again.run() as app, ThreadPoolExecutor(1) as pool:
        assert echo.remote(1) == 1
        assert fill.remote(False) > 10
        with pytest.raises(OSError, match="No space left") as caught:
            fill.remote(True)
        assert "`lorry df`" in caught.value.__notes__[0]
        assert echo.remote(2) == 2  # it has a container, and nothing of it needs the disk
        with pytest.raises(exception.StorageFullError):
            echo.spawn(bytes(200_000))
        waiting = pool.submit(later.remote, 3)
        wait_until(lambda: "no container starts below 5%" in why_it_waits(app, "later"))
        rows: list[dict[str, str]] = ask("container_list", app_id=app.app_id)["containers"]
        ask("container_stop", container_id=next(row["container_id"] for row in rows if row["function"] == "fill"))
        assert waiting.result(timeout=60) == 3
        assert echo.spawn(4).get(timeout=60) == 4
