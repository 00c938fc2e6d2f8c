"""Attacks on the server itself, from containers and through what they leave behind. More of them, on frames, tokens,
connections and Volumes of others: tests/e2e/test_hostile.py; on archives: tests/images."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import attackers
import pytest
from server_home import ServerHome, entered, wait_until

import lorry.server
from lorry import exception
from lorry.sdk.channel import current
from lorry.security.attacks import PROGRAMS
from lorry.server.api import INNER_METHODS


@pytest.fixture(scope="module", autouse=True)
def running(shared_home: ServerHome) -> Iterator[None]:
    with entered(shared_home), attackers.app.run():
        yield


pytestmark = pytest.mark.usefixtures("server")


@pytest.mark.parametrize("method", ["function_lookup", "bind", "call_info", "volume_lookup", "app_list", "df"])
def test_under_restrict_access_nothing_at_all_is_answered(method: str) -> None:
    assert "restrict_access" in attackers.confined_ask.remote(method, {"name": "attackers", "app": "attackers"})


def test_a_containers_token_opens_the_inner_methods_and_no_other() -> None:
    """Whatever the server learns to answer: code in a container may not ask for it unless a list says so."""
    server = Path(lorry.server.__file__).parent
    words = {
        word
        for path in server.glob("api*.py")
        for word in re.findall(r"async def ([a-z]+_?[a-z_]*)\(", path.read_text())
    }
    closed = sorted(word for word in words - INNER_METHODS if not word.startswith("_"))
    assert {"server_stop", "secret_put", "exec_start", "volume_delete"} <= set(closed)
    for method, said in zip(closed, attackers.ask_all.remote(closed), strict=True):
        assert f"may not ask for '{method}'" in said or "no method" in said, said


def test_a_container_finds_no_other_socket_of_the_server(server: ServerHome) -> None:
    assert attackers.find_another_door.remote() == []


IN_A_RUNNER = ("read_file", "replace_runner", "mount", "nest", "kernel_interfaces", "kernel_setting", "raw_disk")


@pytest.mark.parametrize("program", IN_A_RUNNER)
def test_code_in_the_runner_itself_has_no_more_rights_than_a_program_of_its_own(
    server: ServerHome, program: str
) -> None:
    """The runner is a fork of a template where that is possible: its walls are made in another way."""
    seed = (server.state / "secret.key").read_bytes()
    facts = {
        "path": str(server.state / "secret.key"),
        "digest": hashlib.sha256(seed).hexdigest(),
        "volume": "/mine",
        "runner": "/opt/lorry/lorry/runtime/main.py",
    }
    assert attackers.run_attack.remote((PROGRAMS / f"{program}.py").read_text(), facts) == "failed"


def test_the_runner_is_under_the_filter_of_containers() -> None:
    status = dict(line.split(":\t") for line in attackers.filters.remote().splitlines() if ":\t" in line)
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}


def test_links_in_a_volume_lead_nobody_out_of_it(server: ServerHome, tmp_path: Path) -> None:
    """Neither the server, which reads for `lorry volume get`, nor a client that copies to or from it."""
    secret_key = server.state / "secret.key"
    targets = [str(secret_key), "/etc/passwd", "../../../../../../etc/passwd", "/proc/self/environ"]
    attackers.plant_links.remote(targets)
    volume = attackers.mine
    for number in range(len(targets)):
        with pytest.raises(exception.Error):
            b"".join(volume.read_file(f"/link{number}"))
    for path in ("/folder/secret.key", "/../../secret.key", "../journal.db"):
        with pytest.raises(exception.Error):
            b"".join(volume.read_file(path))
        with pytest.raises(exception.Error):
            volume.remove_file(path)
    assert secret_key.exists()
    seen = [entry.path.strip("/") for entry in volume.listdir("/", recursive=True)]
    assert not [path for path in seen if path.startswith("folder/")]
    (tmp_path / "harmless").write_text("harmless")
    for path in ("/folder/planted", "/../planted"):
        with pytest.raises(exception.Error), volume.batch_upload(force=True) as batch:
            batch.put_file(tmp_path / "harmless", path)
    assert not (server.state / "planted").exists()


@pytest.mark.parametrize("path", ["/../../planted", "/root/../../planted", "/root/../../../etc/planted"])
def test_an_uploaded_tree_stays_in_its_folder(server: ServerHome, tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("planted")
    before = set(server.root.rglob("planted"))
    with contextlib.suppress(exception.Error):
        app = lorry.App("planter")
        image = lorry.Image.debian_slim().add_local_file(str(tmp_path / "file"), path)
        planter = app.function(image=image, serialized=True)(lambda: 1)
        with app.run():
            planter.remote()
    assert set(server.root.rglob("planted")) == before
    assert not Path("/etc/planted").exists()
    assert not Path("/planted").exists()


@pytest.mark.parametrize("function", ["poisoned", "poisonous_error"])
def test_a_poisoned_result_is_unpickled_by_who_asked_for_it_and_never_by_the_server(
    tmp_path: Path, function: str
) -> None:
    marks = tmp_path / "marks"
    spawned = getattr(attackers, function).spawn(str(marks))
    for ask in (lambda: getattr(attackers, function).remote(str(marks)), spawned.get):
        with contextlib.suppress(Exception):
            ask()
    who = set(marks.read_text().split()) if marks.exists() else set()
    assert who <= {str(os.getpid())}
    if function == "poisoned":
        assert who, "the poison has lost its sting"


def test_output_without_end_fills_no_disk_and_stops_nobody(
    own_server: ServerHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 MiB here; 10 GB are the same at 20 MiB/s. The newest output is what is kept."""
    monkeypatch.setenv("LORRY_LOG_LIMIT", "1")
    with attackers.flooders.run():
        call = attackers.flood.spawn(20)
        assert attackers.patient.remote() == 1
        call.get()
        size = sum(path.stat().st_size for path in (own_server.state / "logs").rglob("*") if path.is_file())
        assert 0 < size <= 2 << 20


def test_a_secret_is_in_no_file_no_log_and_no_answer(server: ServerHome) -> None:
    """Printed, in pieces too, by a child, raised, returned, and by a dying container. What a function returns or raises
    is its caller's, who has it; a synchronous call leaves it nowhere else."""
    shown = []
    for how in ("print", "child", "raise", "die", "return"):
        try:
            shown.append(attackers.say_it.remote(how))
        except Exception as told:
            shown.append(str(told))
    assert attackers.CANARY in shown[2]
    assert shown[-1] == attackers.CANARY
    needle = attackers.CANARY.encode()
    logs = server.state / "logs"
    wait_until(lambda: any(contains(path, b"dying of") for path in files_of(logs)))
    assert [path for path in files_of(server.root) if contains(path, needle)] == []
    for answer in answers(str(attackers.app.app_id)):
        assert attackers.CANARY not in answer


def files_of(root: Path) -> Iterator[Path]:
    """Every file, while folders of containers come and go."""
    for folder, _, names in os.walk(root):
        yield from (Path(folder, name) for name in names)


def contains(path: Path, needle: bytes) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return path.is_file() and not path.is_symlink() and needle in path.read_bytes()
    return False


def answers(app_id: str) -> Iterator[str]:
    """What the server says to whoever may ask anything."""
    methods = "app_list secret_list container_list server_status df usage volume_list"
    for method in methods.split():
        with contextlib.suppress(exception.Error):
            yield json.dumps(current().ask(method, {"all": True}))
    yield json.dumps(current().ask("function_lookup", {"app_id": app_id, "tag": "say_it"}))
    yield json.dumps(current().ask("why", {"subject": app_id}), default=str)
    rows: list[object] = []
    current().ask("app_logs", {"app_id": app_id, "tail": 10_000}, rows.append)
    yield json.dumps(rows, default=str)
